"""Starting this rank's esperd from the trainer."""

from __future__ import annotations

import atexit
import os
import select
import shutil
import subprocess
import time
from typing import IO, List, Optional, Union

from esperd.errors import Unavailable

__all__ = ["Launched", "launch"]

# esperd exec runs this beside the esperd, and both end together: it says where
# the esperd is, then waits for the end of its standard input, which comes when
# the trainer closes it, or dies, in whatever way.
_LIFELINE = 'printf "%s\\n%s\\n%s\\n" "$ESPERD_SOCKET" "$ESPERD_DATA_DIR" "$ESPERD_RUN_ID"; exec cat >/dev/null'

_DRAIN_MAX_S = 35.0  # esperd itself takes 30 s at most
_KILL_MAX_S = 5.0
_LOG_TAIL_BYTES = 2000

_launched: List["Launched"] = []


class Launched:
    """An esperd that this process has started. It ends with this process, or
    when it is closed; a context manager.

    Attributes:
        socket: path of the trainer's door, which :func:`connect` finds by itself.
        data_dir: where the log is.
        run_id: empty as long as it is not known.
        pid: of ``esperd exec``.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", socket: str, data_dir: str, run_id: str) -> None:
        self._process = process
        self._owner = os.getpid()
        self.socket, self.data_dir, self.run_id, self.pid = socket, data_dir, run_id, process.pid

    def close(self) -> None:
        """End it in order: it waits until every live rank has the whole log, for
        30 seconds at most."""
        if os.getpid() != self._owner:
            return  # a forked child's copy
        if self in _launched:
            _launched.remove(self)
            atexit.unregister(self.close)
        _end(self._process)

    def _let_go(self) -> None:
        """A forked child holds no lifeline."""
        if self._process.stdin is not None:
            self._process.stdin.close()

    def __enter__(self) -> "Launched":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def launch(*flags: str, binary: Optional[str] = None, log: Union[str, "os.PathLike[str]", None] = None, timeout: float = 60.0) -> Launched:
    """Start the esperd of this rank, and return when it takes connections.

    It learns who it is from the environment, as ``esperd run`` does: from
    ESPERD_*, or from torchrun's, SLURM's or MPI's variables. It is for trainers
    that are not started by ``esperd exec``.

    Args:
        flags: of ``esperd run``, such as ``"--data-dir", "/scratch/run7"``.
        binary: the program. None: ESPERD_BINARY, else ``esperd`` on PATH.
        log: file to which its log is appended. None: this process's stderr.
        timeout: seconds until it has to take connections.

    Raises:
        Unavailable: it does not start; the text has the end of its log file.
    """
    program = binary or os.environ.get("ESPERD_BINARY") or shutil.which("esperd")
    if not program:
        raise Unavailable("there is no esperd on PATH, expected the program: install it, or say where it is by binary= or ESPERD_BINARY")
    command = [program, "exec", *flags, "--", "sh", "-c", _LIFELINE]
    file: Optional[IO[bytes]] = open(log, "ab") if log is not None else None
    try:
        # In a session of its own, it does not get the Ctrl-C that is for the
        # trainer, which may still want to make a call.
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, start_new_session=True)
    except OSError as error:
        raise Unavailable(f"cannot start {program}: {error}; say where esperd is by binary= or ESPERD_BINARY") from error
    finally:
        if file is not None:
            file.close()
    try:
        socket, data_dir, run_id = _greeting(process, timeout)
    except BaseException as error:
        _end(process, at_once=True)
        if isinstance(error, _NoGreeting):
            raise Unavailable(f"{' '.join(command[:-4])} {error}: {_end_of(log)}") from None
        raise
    handle = Launched(process, socket, data_dir, run_id)
    _launched.append(handle)
    atexit.register(handle.close)
    return handle


def current_socket() -> Optional[str]:
    """Return the socket of the esperd that this process, or the one that it was
    forked from, launched last."""
    return _launched[-1].socket if _launched else None


def _let_go() -> None:
    for handle in _launched:
        handle._let_go()


os.register_at_fork(after_in_child=_let_go)


class _NoGreeting(Exception):
    pass


def _greeting(process: "subprocess.Popen[bytes]", timeout: float) -> List[str]:
    assert process.stdout is not None
    deadline, said = time.monotonic() + timeout, b""
    with process.stdout as out:
        while said.count(b"\n") < 3:
            ready, _, _ = select.select([out], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise _NoGreeting(f"took no connections within {timeout:g} s")
            chunk = os.read(out.fileno(), 4096)
            if not chunk:
                raise _NoGreeting(f"ended with status {process.wait()}")
            said += chunk
    return os.fsdecode(said).split("\n")[:3]


def _end(process: "subprocess.Popen[bytes]", at_once: bool = False) -> None:
    assert process.stdin is not None
    process.stdin.close()
    if at_once:
        process.kill()
    for patience, push in ((_DRAIN_MAX_S, process.terminate), (_KILL_MAX_S, process.kill)):
        try:
            process.wait(patience)
            return
        except subprocess.TimeoutExpired:
            push()
    process.wait()


def _end_of(log: Union[str, "os.PathLike[str]", None]) -> str:
    if log is None:
        return "its log, on stderr, says why"
    with open(log, "rb") as f:
        f.seek(max(0, f.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
        return f"the log {os.fspath(log)} ends with\n" + f.read().decode("utf-8", "replace").strip()
