"""The seeds' memory: modules bound to the arena that esperd laid out.

torch is imported when a module is attached, so that who has none needs none.
"""

from __future__ import annotations

import array
import json
import mmap
import os
import socket
import struct
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, NamedTuple, Optional, Tuple

from esperd._arguments import slot_path
from esperd._trainer import Trainer
from esperd._unnumbered import Unnumbered
from esperd.errors import ArenaLost, ConfigMismatch, EsperdError, Refused, Unavailable, error_of

if TYPE_CHECKING:
    import torch

_HEADER_BYTES, _ENTRY_BYTES, _ALPHA_AT = 64, 32, 16  # of the table at the arena's start
_RIGHTS_MAX = 253  # file descriptors in one message
_HEAD_BYTES_MAX = 64 << 10
_TIMEOUT_S = 60.0
_ALIGN = 64
_KINDS = ("replicated", "sharded", "local")

_Json = Dict[str, Any]


class _Bound(NamedTuple):
    """One parameter of a module."""

    name: str
    dtype: str
    shape: Tuple[int, ...]
    parameter: int  # offsets in the arena, bytes
    gradient: int


class _Seat(NamedTuple):
    """A module in its slot's memory."""

    module: Any
    seed: int
    bound: Tuple[_Bound, ...]


class Arena:
    """The arena of one model, and what is bound to it."""

    def __init__(self, trainer: Trainer, model: str, unnumbered: Unnumbered, slot_names: Tuple[str, ...]) -> None:
        self._trainer, self._model, self._unnumbered, self._slot_names = trainer, model, unnumbered, slot_names
        self._memory: Any = None  # a tensor of bytes; None: not taken yet
        self._inode = 0
        self._seats: Dict[str, _Seat] = {}
        self._gone: Dict[str, List[Any]] = {}  # parameters of the last pruned seed, by slot
        self._spans: List[_Json] = []
        self._held: List[_Json] = []  # of attest(more=True)

    def attach(self, module: Any, slot: str, contents: str) -> None:
        import torch

        parameters = list(module.named_parameters())
        for name, p in parameters:
            kind = type(getattr(p, "data", p)).__name__, type(p).__name__
            if "DTensor" in kind or "FlatParameter" in kind or hasattr(p, "_is_flat_param"):
                raise Refused(f"attach: {name} is a {kind[1]}, whose storage is its framework's (DTensor, FSDP), and cannot be bound to the arena: own the memory, and compare it by attest(kind=\"sharded\")")
        body = [{"name": n, "dtype": _dtype(p), "shape": list(p.shape)} for n, p in parameters]
        view = self._ask(slot_path(slot, "attach"), {"tensors": body})
        if self._memory is None:
            self._take()
        if view.get("lost") and contents != "module":
            raise ArenaLost(f"attach: the contents of seed {view['seed']} in slot {slot} were lost with an esperd or left by a rewind: load them into the module, and attach it with contents=\"module\"")
        bound = tuple(_Bound(t["name"], t["dtype"], tuple(t["shape"]), t["parameter"], t["gradient"]) for t in view["tensors"])
        for (_, p), b in zip(parameters, bound):
            if p.device.type != "cpu":
                raise ConfigMismatch(f"attach: {b.name} is on {p.device}, and the arena is the host's: expected a parameter on the CPU")
        with torch.no_grad():
            for (_, p), b in zip(parameters, bound):
                place = self._at(b.parameter, b)
                if contents == "module":
                    place.copy_(p.data)
                p.data, p.grad = place, self._at(b.gradient, b)
        self._seats[slot] = _Seat(module, view["seed"], bound)
        if view.get("lost"):
            self.loaded(slot)

    def loaded(self, slot: str) -> None:
        self._ask(slot_path(slot, "loaded"), {})

    def check(self) -> None:
        """Have every bound parameter lie in the arena: what has moved without
        being changed is brought back, and anything else raises."""
        import torch

        with torch.no_grad():
            for slot, seat in self._seats.items():
                now = dict(seat.module.named_parameters())
                for b in seat.bound:
                    p = now.get(b.name)
                    if p is None or _dtype(p) != b.dtype or tuple(p.shape) != b.shape or p.device.type != "cpu":
                        what = "gone" if p is None else f"{_dtype(p)} {list(p.shape)} on {p.device}"
                        raise ConfigMismatch(f"slot {slot}: parameter {b.name} was {b.dtype} {list(b.shape)} in the arena, and is {what} now: undo it (.half(), .to()?), or train this seed outside the arena")
                    self._bring_back(slot, b, p)

    def _bring_back(self, slot: str, b: _Bound, p: Any) -> None:
        place, gradient = self._at(b.parameter, b), self._at(b.gradient, b)
        if p.data_ptr() != place.data_ptr() or not p.is_contiguous():
            place.copy_(p.data)
            p.data = place
        if p.grad is None:  # zero_grad(set_to_none=True): there is no gradient
            gradient.zero_()
            p.grad = gradient
        elif p.grad.data_ptr() != gradient.data_ptr():
            if p.grad._is_view():
                raise ConfigMismatch(f"slot {slot}: the gradient of {b.name} is a view of other memory, as DDP's buckets are: make DDP with gradient_as_bucket_view=False, or use reduce() for the seeds")
            gradient.copy_(p.grad)
            p.grad = gradient

    def fenced(self, fence: Any, arena: _Json) -> Tuple[str, ...]:
        """Follow a fence. Returns the slots whose contents have to be loaded."""
        import torch

        released = {c.slot for c in fence.plan if c.op == "release"}
        for slot in released & set(self._seats):
            self._leave(slot)
        self._spans = arena.get("spans", [])
        lost = [x["slot"] for x in arena.get("lost", ())]
        if arena.get("device"):
            raise EsperdError(f"the device of the arena fails on rank {self._trainer.rank}: {arena['device']}; training in it ends here, the log is right all the same")
        if not arena.get("remap") or self._memory is None:
            return tuple(lost)
        before = self._inode
        old = {slot: [(p.data, p.grad) for p in seat.module.parameters()] for slot, seat in self._seats.items()}
        self._take()
        if self._inode == before:
            return tuple(lost)
        with torch.no_grad():  # esperd was started anew: what it lost is still here
            for slot, seat in self._seats.items():
                for p, b, (data, grad) in zip(seat.module.parameters(), seat.bound, old[slot]):
                    place, gradient = self._at(b.parameter, b), self._at(b.gradient, b)
                    place.copy_(data)
                    if grad is not None:
                        gradient.copy_(grad)
                    p.data, p.grad = place, gradient
        for slot in lost:
            if slot in self._seats:
                self.loaded(slot)
        return tuple(s for s in lost if s not in self._seats)

    def reduce(self, group: Any) -> None:
        import torch
        import torch.distributed as dist

        self.check()
        with torch.no_grad():
            for s in self._spans:
                dtype = getattr(torch, s["dtype"])
                size = torch.empty(0, dtype=dtype).element_size()
                span = self._memory[s["offset"] : s["offset"] + s["elements"] * size].view(dtype)
                dist.all_reduce(span, group=group)
                span.div_(dist.get_world_size(group))

    def alpha(self, slot: str) -> Any:
        import torch

        if slot not in self._slot_names:
            raise Refused(f"alpha: no slot {slot!r}", code="unknown-slot")
        if self._memory is None:
            self._take()
        at = _HEADER_BYTES + self._slot_names.index(slot) * _ENTRY_BYTES + _ALPHA_AT
        return self._memory[at : at + 4].view(torch.float32)[0]

    def forget(self, optimizer: Any, slot: str) -> None:
        for p in self._gone.pop(slot, []):
            optimizer.state.pop(p, None)

    def attest(self, tensors: Mapping[str, Any], shard: Optional[str], kind: str, more: bool) -> None:
        if kind not in _KINDS:
            raise ValueError(f"kind: expected one of {', '.join(_KINDS)}, got {kind!r}")
        named = dict(tensors) if kind != "local" else {}
        prints = self._fingerprints(list(named.values())) if named else []
        for name, fingerprint in zip(named, prints):
            self._held.append({"name": name, "kind": kind, "fingerprint": fingerprint, **({"shard": shard} if shard else {})})
        if not more:
            held, self._held = self._held, []
            self._ask("/v1/attest", {"tensors": held})

    def _leave(self, slot: str) -> None:
        """Take a module out of memory that is another seed's from now on."""
        seat = self._seats.pop(slot)
        self._gone[slot] = list(seat.module.parameters())
        for p in self._gone[slot]:
            p.data, p.grad = p.data.clone(), None

    def _at(self, offset: int, b: _Bound) -> Any:
        import torch

        dtype = getattr(torch, b.dtype)
        count = 1
        for n in b.shape:
            count *= n
        size = torch.empty(0, dtype=dtype).element_size()
        return self._memory[offset : offset + count * size].view(dtype).view(b.shape)

    def _ask(self, path: str, arguments: _Json) -> _Json:
        return self._unnumbered.ask(path, arguments)

    def _take(self) -> None:
        """Take the arena: one file of memory, as large as it is."""
        import torch

        with self._upgraded({}) as s:
            offer = _document(s)
            fds: List[int] = []
            try:
                while len(fds) < sum("ipc" not in c for c in offer["chunks"]):
                    data, control, _, _ = s.recvmsg(1, socket.CMSG_SPACE(4 * _RIGHTS_MAX))
                    if not data:
                        raise Unavailable("esperd hung up while it handed the arena over: the call may be made again")
                    for _, _, rights in control:
                        more = array.array("i")
                        more.frombytes(rights[: len(rights) // 4 * 4])
                        fds.extend(more)
                if offer["kind"] != "host":
                    raise Refused(f"the arena is on a device of the kind {offer['kind']}, and this client maps the host's only: start esperd with --device host")
                inode = os.fstat(fds[0]).st_ino
                if inode != self._inode:
                    self._memory, self._inode = torch.frombuffer(mmap.mmap(fds[0], offer["size"]), dtype=torch.uint8), inode
            finally:
                for fd in fds:
                    os.close(fd)

    def _fingerprints(self, tensors: List[Any]) -> List[str]:
        """Have tensors fingerprinted, in a file that esperd reads."""
        import torch

        described: List[_Json] = []
        size = 0
        flat = [t.detach().contiguous().cpu() for t in tensors]
        for t in flat:
            n = t.numel() * t.element_size()
            described.append({"dtype": _dtype(t), "shape": list(t.shape), "offset": size, "bytes": n})
            size += -(-n // _ALIGN) * _ALIGN
        fd = os.memfd_create("esperd-tensors")
        try:
            os.ftruncate(fd, max(size, 1))
            memory = torch.frombuffer(mmap.mmap(fd, max(size, 1)), dtype=torch.uint8)
            for t, d in zip(flat, described):
                if d["bytes"]:
                    memory[d["offset"] : d["offset"] + d["bytes"]].copy_(t.reshape(-1).view(torch.uint8))
            with self._upgraded({"tensors": described}) as s:
                s.sendmsg([b"f"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
                answer = _document(s)
        finally:
            os.close(fd)
        if "error" in answer:
            raise EsperdError(f"attest: {answer['error']}")
        return list(answer["fingerprints"])

    def _upgraded(self, arguments: _Json) -> socket.socket:
        """Return a connection that has changed to the arena's protocol."""
        body = json.dumps({"session": self._trainer.incarnation, "model": self._model, **arguments}).encode()
        s = socket.socket(socket.AF_UNIX)
        try:
            s.settimeout(_TIMEOUT_S)
            s.connect(self._trainer.socket)
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
            raise Unavailable(f"the arena cannot be taken from {self._trainer.socket}: {error}") from error
        except BaseException:
            s.close()
            raise


def _dtype(t: Any) -> str:
    return str(t.dtype).replace("torch.", "")


def _exactly(s: socket.socket, n: int) -> bytes:
    out = b""
    while len(out) < n:
        part = s.recv(n - len(out))
        if not part:
            raise OSError("esperd hung up")
        out += part
    return out


def _document(s: socket.socket) -> _Json:
    (n,) = struct.unpack("<I", _exactly(s, 4))
    document = json.loads(_exactly(s, n))
    assert isinstance(document, dict)
    return document
