"""Real esperds, one for each rank, for tests that need them."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import threading
import unittest
from typing import Any, Callable, Dict, List, Optional

import esperd

FAULTY = os.environ.get("ESPERD_FAULTY_BINARY", "")  # built with -tags esperdfault
BINARY = os.environ.get("ESPERD_BINARY") or shutil.which("esperd") or ""


def needs_esperd(test: Any) -> Any:
    return unittest.skipUnless(BINARY, "there is no esperd: set ESPERD_BINARY, or install it on PATH")(test)


def needs_faulty(test: Any) -> Any:
    return unittest.skipUnless(FAULTY, "there is no faulty esperd: set ESPERD_FAULTY_BINARY to one built with -tags esperdfault")(test)


def free_ports(n: int) -> List[int]:
    sockets = [socket.socket() for _ in range(n)]
    try:
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]
    finally:
        for s in sockets:
            s.close()


class World:
    """One `esperd run` for each rank, which may be killed and started again.

    ``environment`` is for all of them; ``faults`` for ranks whose esperd is one that
    goes wrong.
    """

    def __init__(self, test: unittest.TestCase, size: int, *flags: str, environment: Optional[Dict[str, str]] = None,
                 faults: Optional[Dict[int, Dict[str, str]]] = None) -> None:
        self.size, self.flags, self.environment, self.faults = size, flags, {**os.environ, **(environment or {})}, faults or {}
        self.dir = tempfile.mkdtemp(prefix="world")
        self.ports = free_ports(size)
        self._processes: List[Optional["subprocess.Popen[bytes]"]] = [None] * size
        test.addCleanup(shutil.rmtree, self.dir)
        test.addCleanup(self.end)
        for rank in range(size):
            self.start(rank)

    def socket(self, rank: int) -> str:
        return os.path.join(self.dir, f"s{rank}")

    def log(self, rank: int) -> str:
        with open(os.path.join(self.dir, f"log{rank}"), encoding="utf-8") as f:
            return f.read()

    def start(self, rank: int) -> None:
        command = [FAULTY if rank in self.faults else BINARY, "run", "--rank", str(rank), "--world-size", str(self.size), "--run-id", "test", "--log-format", "json",
                   "--data-dir", os.path.join(self.dir, f"rank{rank}"), "--socket", self.socket(rank), "--listen", f"127.0.0.1:{self.ports[rank]}", *self.flags]
        if self.size > 1:
            command += ["--join", f"127.0.0.1:{self.ports[0]}"]
        with open(os.path.join(self.dir, f"log{rank}"), "ab") as log:
            self._processes[rank] = subprocess.Popen(command, stderr=log, stdin=subprocess.DEVNULL, env={**self.environment, **self.faults.get(rank, {})})

    def kill(self, rank: int) -> None:
        process, self._processes[rank] = self._processes[rank], None
        if process:
            process.kill()
            process.wait()

    def end(self) -> None:
        for rank in range(self.size):
            self.kill(rank)

    def on_all(self, do: Callable[[int], Any]) -> List[Any]:
        """Do something for every rank at once, as so many trainers would, and
        return what came of it: a value, or the exception."""
        out: List[Any] = [None] * self.size

        def one(rank: int) -> None:
            try:
                out[rank] = do(rank)
            except Exception as error:
                out[rank] = error

        threads = [threading.Thread(target=one, args=(r,), daemon=True) for r in range(self.size)]
        for t in threads:
            t.start()
        for t in threads:
            t.join(60)
        return out

    def connect(self, test: unittest.TestCase, **options: Any) -> List[esperd.Client]:
        options.setdefault("slots", ["r0c0", "r0c1"])
        clients = self.on_all(lambda rank: esperd.connect(self.socket(rank), rank=rank, world_size=self.size, **options))
        for c in clients:
            if isinstance(c, Exception):
                raise c
            test.addCleanup(c.close)
        return clients
