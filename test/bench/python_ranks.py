"""The ranks of one world size: python3 python_ranks.py SPEC

SPEC is the JSON of python.go. torch is imported once and the ranks are forked from
here. Every rank makes the same operations in the same order; rank 0 writes what
was measured, an object a line.

An operation begins at a moment that the ranks have agreed on, a little ahead,
which they sleep until: so none of the barrier before it is measured, and none
of what the last operation has left to do. Its time is from the first
rank's call until the last rank has its answer. The last rank's call would be a
later beginning, but what is under test competes with the ranks for the
processors and delays that call: its work would be left out. The time from there
is written beside it.
"""

import datetime
import functools
import itertools
import json
import os
import pathlib
import random
import signal
import sys
import time
import traceback

import torch
import torch.distributed as dist

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "python"), str(ROOT / "test" / "torch" / "workers")]

import esperd  # noqa: E402
from loops import GateLevel, GateResult, broadcast_gate  # noqa: E402

COLLECTIVE_MAX = datetime.timedelta(minutes=2)
SLOT = "r0c0"
# Seeds that come to BLENDING at once, and stay there in a ramp that ends after
# the benchmark.
AT_ONCE = {"min_training_improvement": -100, "min_blending_epochs": 0, "min_seed_gradient_ratio": -1}
TICKS = 100_000


def gate_result(rank, i):
    """What a gate says on this rank. It fails everywhere, so that the seed stays
    in its stage; by how much is each rank's own, as in training."""
    better = 0.01 * rank + 0.001 * (i % 7)
    return GateResult(GateLevel.G2, False, score=better / 5, checks_passed=["min_epochs_met_12", "gradient_health_0.94"],
                      checks_failed=[f"improvement_insufficient_{better:.2f}%"], message=f"Improvement: {better:.2f}%, below 0.50%")


class Esperd:
    """One job of esperds, with a client of this rank's."""

    def __init__(self, spec, rank):
        self.rank, self.pids, self.epochs = rank, spec["pids"], 0
        never = {"min_training_improvement": 100}
        self.client = esperd.connect(spec["socket"], rank=rank, world_size=spec["world"], slots=[SLOT], gates=never)
        self.client.germinate(SLOT, "conv")
        self.client.advance(SLOT)
        self.blending = {n: self.blend(n) for n in spec["slots"]}

    def operations(self):
        """Return what is measured, by name."""
        steps = {f"step {n}": functools.partial(self.step, model, n) for n, model in self.blending.items()}
        return {"verdict": self.verdict, "advance": self.advance, **steps}

    def verdict(self, i):
        return self.client.sync_gate(SLOT, gate_result(self.rank, i))

    def advance(self, i):
        self.client.observe(SLOT, accuracy=50 + self.rank + (i % 7) / 10, gradient_ratio=0.0137, gradient_norm=1.883, gradient_health=0.94)
        return self.client.advance(SLOT)

    def blend(self, n):
        """Open a model of n slots whose alpha every tick changes."""
        model = self.client.model(f"slots{n}", slots=[f"s{i}" for i in range(n)], gates=AT_ONCE)
        for i in range(n):
            model.germinate(f"s{i}", "conv", blend="linear", tempo=TICKS)
            for stage in ("TRAINING", "BLENDING"):
                model.observe(f"s{i}", accuracy=50.0, gradient_ratio=1.0)
                decision = model.advance(f"s{i}")
                if decision.stage != stage:
                    raise AssertionError(f"expected s{i} in {stage}, got {decision}: the gates want something else than AT_ONCE gives")
        return model

    def step(self, model, n, i):
        self.epochs += 1
        fence = model.step_epoch(self.epochs)
        if len(fence.changes) != n:
            raise AssertionError(f"expected the alpha of {n} slots to change, got {fence.changes}: the ramps have ended (TICKS)")

    def close(self):
        self.client.close()

    def processor_ns(self):
        """Processor time that the esperds of all ranks have had."""
        ticks = 0
        for pid in self.pids:
            fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks * 1_000_000_000 // os.sysconf("SC_CLK_TCK")


class Broadcast:
    """What users have without esperd."""

    def __init__(self, rank):
        self.rank = rank

    def operations(self):
        return {"verdict": lambda i: broadcast_gate(gate_result(self.rank, i))}

    def processor_ns(self):
        return 0

    def close(self):
        pass


def start_together(ahead_ns):
    """Return on all ranks at about the same moment."""
    at = torch.tensor([time.monotonic_ns() + ahead_ns])
    dist.all_reduce(at, op=dist.ReduceOp.MAX)
    time.sleep(max(0, at.item() - time.monotonic_ns()) / 1e9)


def block(operation, ops, ahead_ns):
    """Return when each operation began and ended, by rank: ranks x ops x 2."""
    stamps = []
    for i in range(ops):
        start_together(ahead_ns)
        began = time.monotonic_ns()
        operation(i)
        stamps.append((began, time.monotonic_ns()))
    mine = torch.tensor(stamps)
    all_ranks = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(all_ranks, mine)
    return torch.stack(all_ranks)


def measures(stamps, processor_ns):
    began, ended = stamps[..., 0], stamps[..., 1]
    last = ended.max(0).values
    return {"all": (last - began.min(0).values).tolist(), "late": (last - began.max(0).values).tolist(),
            "rank0": (ended[0] - began[0]).tolist(), "processor": [processor_ns // stamps.shape[1]]}


def take_turns(systems, spec, say):
    blocks = [(name, what, operation) for name, s in systems.items() for what, operation in s.operations().items()]
    for _, _, operation in blocks:
        block(operation, spec["warmup"], spec["ahead"])
    for turn in range(spec["turns"]):
        random.Random(turn).shuffle(blocks)  # the same on every rank; nobody always comes after the same one
        for name, what, operation in blocks:
            before = systems[name].processor_ns()
            stamps = block(operation, spec["ops"], spec["ahead"])
            say(system=name, what=what, turn=turn, ns=measures(stamps, systems[name].processor_ns() - before))


def check_cost(client, loops, repeats, say):
    """What the step check costs above a call of a function that does nothing:
    the best of some repeats, as in timeit, since what disturbs only adds."""
    def nothing():
        pass

    if not hasattr(client, "check"):
        return
    seen = client.check()
    client.fence(1)
    dist.barrier()
    if (seen, client.check()) != (True, False):
        raise AssertionError(f"expected check() to see that there were calls before a fence, and nothing after it, got {seen} and "
                             f"{client.check()}: what it costs would say nothing; look at the memory that esperd writes (python/esperd/_word.py)")
    if dist.get_rank() > 0:
        return  # the others rest
    empty, check = [], []
    for _ in range(repeats):
        empty.append(loop_ns(nothing, loops))
        check.append(loop_ns(client.check, loops))
    say(what="check", ns={"all": [round(min(check) - min(empty))], "empty": [round(min(empty))]})


def loop_ns(function, loops):
    began = time.perf_counter_ns()
    for _ in itertools.repeat(None, loops):
        function()
    return (time.perf_counter_ns() - began) / loops


def run(rank, spec):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=spec["world"], timeout=COLLECTIVE_MAX)

    def say(**line):
        if rank == 0:
            print(json.dumps(line), flush=True)

    say(what="versions", system=f"Python {sys.version.split()[0]}, torch {torch.__version__}")
    systems = {"broadcast": Broadcast(rank)}
    for s in spec["systems"]:
        systems[s["name"]] = Esperd({**s, "world": spec["world"]}, rank)
    take_turns(systems, spec, say)
    if spec["check_repeats"]:
        check_cost(systems[spec["systems"][0]["name"]].client, spec["check_loops"], spec["check_repeats"], say)
    dist.barrier()
    for s in systems.values():
        s.close()


def end(children):
    for pid in children:
        os.kill(pid, signal.SIGKILL)


def main():
    spec = json.loads(sys.argv[1])
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=spec["port"], GLOO_SOCKET_IFNAME="lo")
    children = set()
    for rank in range(spec["world"]):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                run(rank, spec)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)  # the process group of a rank that failed does not always come down
        children.add(pid)
    while children:
        pid, status = os.wait()
        children.discard(pid)
        if status:  # the others would wait for it
            end(children)
            sys.exit(f"python_ranks.py: a rank of {spec['world']} failed, and the others were ended")


if __name__ == "__main__":
    main()
