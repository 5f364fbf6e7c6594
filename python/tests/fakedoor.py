"""A trainer's door without an esperd behind it, which does what a test wants.

It answers every call as if it were granted, unless the test has put something
else first: a callable that is given the request and writes what it likes.
"""

from __future__ import annotations

import collections
import json
import logging
import os
import socket
import tempfile
import threading
import unittest
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

import esperd


class Request(NamedTuple):
    method: str
    path: str
    body: Dict[str, Any]

    @property
    def op(self) -> str:
        return self.path.rsplit("/", 1)[-1]

    @property
    def kind(self) -> str:
        if self.method == "GET":
            return {"/healthz": "health", "/v1/ranks": "ranks"}.get(self.path.partition("?")[0], "get")
        return self.op if self.op in ("session", "requests", "busy", "close", "checkpoint", "ready", "failed") else "call"


Trick = Callable[["Peer", Request], None]


class Peer:
    """One connection, from the door's side."""

    def __init__(self, door: "FakeDoor", sock: socket.socket) -> None:
        self.door, self.socket, self.file = door, sock, sock.makefile("rb")

    def read(self) -> Optional[Request]:
        line = self.file.readline().decode()
        if not line:
            return None
        method, path, _ = line.split()
        length = 0
        while True:
            header = self.file.readline().decode().strip().lower()
            if not header:
                break
            if header.startswith("content-length:"):
                length = int(header.split(":")[1])
        if self.door.interrupt:  # an answer to a request of which no more is read
            self.send(self.door.interrupt)
            return None
        body = self.file.read(length)
        return Request(method, path, json.loads(body) if body else {})

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self, document: Any, status: int = 200) -> None:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        self.send(b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body))

    def hang_up(self) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)


class FakeDoor:
    def __init__(self, path: Optional[str] = None) -> None:
        self.directory = None if path else tempfile.TemporaryDirectory(prefix="door")
        self.path = path or os.path.join(self.directory.name, "s")
        self.requests: List[Request] = []
        self._tricks: Dict[str, List[Trick]] = collections.defaultdict(list)
        self.released = threading.Event()
        self.interrupt = b""
        self.fences: Dict[Tuple[str, int], int] = {}  # by model and call: fences up to it
        self.slot_names = ["r0c0", "r0c1"]
        self.index, self.counts = 10, False  # of the next entry; whether each call makes one
        self.generation = 1
        self.word: Optional[Dict[str, Any]] = None
        self.open()

    def open(self) -> None:
        self._peers: List[Peer] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen(16)
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def shut(self) -> None:
        """Go away, with all connections, as a killed esperd does."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        os.unlink(self.path)
        for p in self._peers:
            try:
                p.hang_up()
            except OSError:
                pass

    def close(self) -> None:
        self.released.set()
        self.shut()
        if self.directory:
            self.directory.cleanup()

    def play(self, *tricks: Trick, at: str = "call") -> None:
        """Answer the next numbered calls (or requests of another kind) with
        these, one after the other."""
        self._tricks[at].extend(tricks)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            peer = Peer(self, sock)
            self._peers.append(peer)
            threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer: Peer) -> None:
        try:
            while True:
                request = peer.read()
                if request is None:
                    return
                self.requests.append(request)
                tricks = self._tricks[request.kind]
                play = tricks.pop(0) if tricks else self.grant
                play(peer, request)
        except OSError:
            pass
        finally:
            peer.file.close()
            peer.socket.close()

    def grant(self, peer: Peer, request: Request) -> None:
        model = request.body.get("model", "main")
        other = {"health": {"status": "ok"}, "ranks": {"ranks": []}, "busy": {"ok": True}, "close": {"ok": True}, "requests": {"index": 77},
                 "ready": {"ok": True}, "failed": {"ok": True},
                 "checkpoint": {"mark": "bm8gbWFyaw=="}}.get(request.kind)
        if request.kind == "get":
            other = {"index": 99, "round": {"number": 3}}
        if request.kind == "session":
            other = self.session(model, request.body.get("answered", 0))
        if other is not None:
            peer.answer(other)
            return
        fences = request.op in ("step", "fence", "reset", "resume")
        self.fences[model, request.body["call"]] = request.body["fence"] + fences
        index = self.index
        self.index += self.counts
        if fences:
            peer.answer({"epoch": 0, "index": index, "changes": [], "slots": self.slots()})
        elif request.op in ("advance", "verdict"):
            peer.answer({**DECISION, "index": index})
        else:
            peer.answer({"slot": "r0c0", "seed": 1, "stage": "GERMINATED", "alpha": 0, "index": index})

    def session(self, model: str, answered: int) -> Dict[str, Any]:
        return {"session": "s", "run_id": "run-1", "lineage": "abc", "node": "n", "round": 3, "model": model, "generation": self.generation,
                "next_call": answered + 1, "next_fence": self.fences.get((model, answered), 0), "epoch": -1, "index": 9, "slots": self.slots(),
                **({"word": self.word} if self.word else {})}

    def slots(self) -> List[Dict[str, Any]]:
        return [{"name": n, "stage": "DORMANT", "alpha": 0, "germinations": 0} for n in self.slot_names]

    def called(self) -> List[Request]:
        return self.of("call")

    def sessions(self) -> List[Request]:
        return self.of("session")

    def of(self, kind: str) -> List[Request]:
        return [r for r in self.requests if r.kind == kind]


DECISION = {"gate": "G2", "passed": False, "score": 0.25, "checks_passed": ["a"], "checks_failed": ["b", "c"], "message": "m", "slot": "r0c0",
            "seed": 1, "stage": "TRAINING", "index": 10, "agreed": False,
            "local": {"gate": "G2", "passed": True, "score": 1, "checks_passed": [], "checks_failed": [], "message": ""}}


def problem(code: str, status: int, **more: Any) -> Trick:
    """Answer with a problem document."""
    document = {"type": "https://esperd.dev/problems/" + code, "title": "t", "status": status, "detail": f"what {code} says", **more}
    return lambda peer, _: peer.answer(document, status)


def lose(peer: Peer, _: Request) -> None:
    """Hang up instead of answering: nobody knows what became of the call."""
    peer.hang_up()


def send(data: bytes) -> Trick:
    """Answer with these bytes, then hang up."""

    def trick(peer: Peer, _: Request) -> None:
        peer.send(data)
        peer.hang_up()

    return trick


def hang(peer: Peer, request: Request) -> None:
    """Answer when the test releases it."""
    peer.door.released.wait(30)
    peer.door.grant(peer, request)


class DoorTest(unittest.TestCase):
    def setUp(self):
        self.door = FakeDoor()
        self.addCleanup(self.door.close)
        logging.getLogger("esperd").setLevel(logging.CRITICAL)

    def connect(self, **options):
        options.setdefault("rank", 1)
        options.setdefault("world_size", 2)
        options.setdefault("away_timeout", 10)
        client = esperd.connect(self.door.path, **options)
        self.addCleanup(client.close)
        return client

    def numbers(self):
        return [r.body["call"] for r in self.door.called()]
