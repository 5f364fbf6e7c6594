"""What goes over the trainer's socket as file descriptors: the arena to the
trainer, and tensors in a file to esperd. A connection changes to a protocol of
its own for it: a length (4 bytes, little-endian) and JSON, then a byte for each
batch of file descriptors.
"""

from __future__ import annotations

import array
import json
import mmap
import os
import socket
import struct
from typing import Any, Dict, Iterator, List

from esperd._trainer import Trainer
from esperd.errors import EsperdError, Unavailable, error_of

__all__ = ["Handover", "dtype_of", "fingerprints"]

_RIGHTS_MAX = 253  # file descriptors in one message
_HEAD_BYTES_MAX = 64 << 10
_TIMEOUT_S = 60.0
_ALIGN = 64
_OTHER = "is it of another release than this client?"

_Json = Dict[str, Any]


class Handover:
    """An arena on its way: ``with Handover(...) as h``."""

    def __init__(self, trainer: Trainer, model: str) -> None:
        self._path = trainer.socket
        self._socket = _upgraded(trainer, {"model": model})
        try:
            self.offer = _document(self._socket, "chunks")
        except OSError as error:
            self._socket.close()
            raise self._cut_off(error) from error
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> "Handover":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def files(self) -> Iterator[int]:
        """Yield a file descriptor for each chunk, in their order; it is closed
        when the next one is asked for."""
        left = sum("ipc" not in c for c in self.offer["chunks"])
        while left > 0:
            batch = self._batch()
            left -= len(batch)
            try:
                while batch:
                    yield batch[0]
                    os.close(batch.pop(0))
            finally:
                for fd in batch:
                    os.close(fd)

    def _batch(self) -> List[int]:
        try:
            data, control, flags, _ = self._socket.recvmsg(1, socket.CMSG_SPACE(4 * _RIGHTS_MAX), socket.MSG_CMSG_CLOEXEC)
        except OSError as error:
            raise self._cut_off(error) from error
        fds = array.array("i")
        for _, _, rights in control:
            fds.frombytes(rights[: len(rights) // 4 * 4])
        if data and fds and not flags & socket.MSG_CTRUNC:
            return list(fds)
        for fd in fds:
            os.close(fd)
        if flags & socket.MSG_CTRUNC:
            raise EsperdError(f"the arena comes as many files, and this process may open no more: raise its limit (ulimit -n), with room for {_RIGHTS_MAX} at a time")
        raise self._cut_off("it hung up")

    def _cut_off(self, why: object) -> Unavailable:
        return Unavailable(f"esperd stopped while it handed the arena over at {self._path}: {why}; the call may be made again")


def dtype_of(t: Any) -> str:
    """Return a tensor's element type as the log names it."""
    return str(t.dtype).replace("torch.", "")


def fingerprints(trainer: Trainer, model: str, tensors: List[Any]) -> List[str]:
    """Have tensors fingerprinted, in a file that esperd reads."""
    import torch

    described: List[_Json] = []
    size = 0
    flat = [t.detach().resolve_conj().resolve_neg().contiguous().cpu() for t in tensors]
    for t in flat:
        n = t.numel() * t.element_size()
        described.append({"dtype": dtype_of(t), "shape": list(t.shape), "offset": size, "bytes": n})
        size += -(-n // _ALIGN) * _ALIGN
    fd = os.memfd_create("esperd-tensors")
    try:
        os.ftruncate(fd, max(size, 1))
        memory = torch.frombuffer(mmap.mmap(fd, max(size, 1)), dtype=torch.uint8)
        for t, d in zip(flat, described):
            if d["bytes"]:
                memory[d["offset"] : d["offset"] + d["bytes"]].copy_(t.reshape(-1).view(torch.uint8))
        with _upgraded(trainer, {"model": model, "tensors": described}) as s:
            try:
                s.sendmsg([b"f"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
                answer = _document(s)
            except OSError as error:
                raise Unavailable(f"esperd stopped while it read tensors at {trainer.socket}: {error}; the call may be made again") from error
    finally:
        os.close(fd)
    if "error" in answer:
        raise EsperdError(f"attest: {answer['error']}")
    prints = answer.get("fingerprints")
    if not isinstance(prints, list) or len(prints) != len(tensors):
        raise EsperdError(f"attest: expected {len(tensors)} fingerprints of esperd, got something else: {_OTHER}")
    return prints


def _upgraded(trainer: Trainer, arguments: _Json) -> socket.socket:
    """Return a connection that has changed to the arena's protocol."""
    body = json.dumps({"session": trainer.incarnation, **arguments}).encode()
    s = socket.socket(socket.AF_UNIX)
    try:
        s.settimeout(_TIMEOUT_S)
        s.connect(trainer.socket)
        s.sendall(b"POST /v1/arena HTTP/1.1\r\nHost: esperd\r\nConnection: Upgrade\r\nUpgrade: esperd-arena\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        head = b""
        while not head.endswith(b"\r\n\r\n") and len(head) < _HEAD_BYTES_MAX:
            head += _exactly(s, 1)  # what follows may carry file descriptors
        if head.split(b" ")[1:2] != [b"101"]:
            rest = b""
            while not rest.rstrip().endswith(b"}") and len(rest) < _HEAD_BYTES_MAX:
                rest += _exactly(s, 1)
            raise error_of(json.loads(rest[rest.index(b"{") :]))
        return s
    except (OSError, ValueError) as error:
        s.close()
        raise Unavailable(f"the arena cannot be taken from {trainer.socket}: {error}") from error
    except BaseException:
        s.close()
        raise


def _exactly(s: socket.socket, n: int) -> bytes:
    out = b""
    while len(out) < n:
        part = s.recv(n - len(out))
        if not part:
            raise OSError("esperd hung up")
        out += part
    return out


def _document(s: socket.socket, *names: str) -> _Json:
    (n,) = struct.unpack("<I", _exactly(s, 4))
    text = _exactly(s, n)
    try:
        document = json.loads(text)
    except ValueError:
        document = None
    if not isinstance(document, dict) or not all(name in document for name in names):
        raise EsperdError(f"esperd answered with something else than an object with {', '.join(names) or 'names'}, in {n} bytes: {_OTHER}")
    return document
