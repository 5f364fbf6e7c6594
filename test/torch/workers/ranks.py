"""Runs one case on several ranks: python3 ranks.py CASE WAY DIRECTORY

CASE is a module beside this file, WAY a function of it, which is called on every
rank as way(rank, world, say). What a rank says goes to DIRECTORY/rankN.jsonl, an
object a line, with the clock that all ranks share; what became of it is its last
line. torch is imported once and the ranks are forked from here, which is what
makes a dozen cases affordable.

The environment: RANKS, MASTER_PORT, HANG_MAX_S (a rank that is still there then
has hung, and is ended), and for cases with esperd ESPERD_SOCKET, in which {rank}
becomes the rank.
"""

import datetime
import importlib
import json
import os
import pathlib
import signal
import sys
import time
import traceback

import torch
import torch.distributed as dist

ROOT = pathlib.Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "python"), str(ROOT / "examples")]


class Say:
    """Writes lines that survive whatever ends the process."""

    def __init__(self, path):
        self.fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def __call__(self, what, **fields):
        os.write(self.fd, json.dumps({"what": what, "at": time.monotonic(), **fields}).encode() + b"\n")


def join(rank, world, timeout_s):
    """Bring up the process group."""
    dist.init_process_group("gloo", rank=rank, world_size=world, timeout=datetime.timedelta(seconds=timeout_s))


def run(case, way, rank, world, directory):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    torch.manual_seed(rank)
    say = Say(os.path.join(directory, f"rank{rank}.jsonl"))
    try:
        getattr(importlib.import_module(case), way)(rank, world, say)
    except Exception as error:
        traceback.print_exc()
        tell(say, "raised", error)
        return 1
    say("done")
    return 0


def tell(say, what, error):
    """Say what an error knows."""
    evidence = {}
    if hasattr(error, "code"):  # esperd's
        evidence = {"code": error.code, "got": str(error.got), "got_site": error.got_site, "want": str(error.want),
                    "want_site": error.want_site, "culprit": error.fault.rank if error.fault else None}
    say(what, error=type(error).__name__, text=str(error), **evidence)


def main():
    case, way, directory = sys.argv[1:]
    world = int(os.environ["RANKS"])
    os.environ.update(MASTER_ADDR="127.0.0.1", GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    for rank in range(world):
        if os.fork() == 0:
            status = 2
            try:
                signal.alarm(int(os.environ["HANG_MAX_S"]))
                status = run(case, way, rank, world, directory)
            finally:
                sys.stderr.flush()
                os._exit(status)  # the process group of a case that failed does not always come down
    for _ in range(world):
        os.wait()


if __name__ == "__main__":
    main()
