"""The seeds' memory: modules bound to the arena that esperd laid out, on the host
or on a GPU.

esperd touches it only inside a call that this process waits in, and answers when
the device has finished; before such a call all that torch has started is waited
for. So the two need no events to go by.

torch is imported when a module is attached, so that who has none needs none.
"""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Set, Tuple

from esperd import _fingerprint, _handover, _torch_gpu
from esperd._arguments import slot_path
from esperd._handover import dtype_of
from esperd._mapped import Mapped, mapped
from esperd._trainer import Trainer
from esperd._unnumbered import Unnumbered
from esperd.errors import ArenaLost, ConfigMismatch, EsperdError, Refused

_HEADER_BYTES, _ENTRY_BYTES, _ALPHA_AT = 64, 32, 16  # of the table at the arena's start
_KINDS = ("replicated", "sharded", "local")

_Json = Dict[str, Any]


class _Bound(NamedTuple):
    """One parameter of a module."""

    name: str
    dtype: str
    shape: Tuple[int, ...]
    parameter: int  # offsets in the arena, bytes
    gradient: int
    master: Optional[int]  # None: none is declared


class _Seat(NamedTuple):
    """A module in its slot's memory."""

    module: Any
    seed: int
    bound: Tuple[_Bound, ...]
    masters: Dict[str, Any]


class Arena:
    """The arena of one model, and what is bound to it."""

    def __init__(self, trainer: Trainer, model: str, unnumbered: Unnumbered, slot_names: Tuple[str, ...]) -> None:
        self._trainer, self._model, self._unnumbered, self._slot_names = trainer, model, unnumbered, slot_names
        self._name = ""  # of the arena that is mapped
        self._mapped: Optional[Mapped] = None
        self._memory: Any = None  # a tensor of bytes over it; None: not taken yet
        self._behind = False  # esperd's has other chunks than are mapped here
        self._moved = False  # to another arena, since the last fence
        self._alphas: Dict[str, Any] = {}  # what alpha() has given out, by slot
        self._seats: Dict[str, _Seat] = {}
        self._gone: Dict[str, List[Any]] = {}  # parameters of the last pruned seed, by slot
        self._spans: List[_Json] = []
        self._lost: Set[str] = set()  # slots whose contents esperd does not have
        self._held: List[_Json] = []  # of attest(more=True)

    def attach(self, module: Any, slot: str, contents: str) -> None:
        import torch

        parameters = list(module.named_parameters())
        for name, p in parameters:
            kind = type(getattr(p, "data", p)).__name__, type(p).__name__
            if "DTensor" in kind or "FlatParameter" in kind or hasattr(p, "_is_flat_param"):
                raise Refused(f"attach: {name} is a {kind[1]}, whose storage is its framework's (DTensor, FSDP), and cannot be bound to the arena: own the memory, and compare it by attest(kind=\"sharded\")")
        body = [{"name": n, "dtype": dtype_of(p), "shape": list(p.shape)} for n, p in parameters]
        view = self._ask(slot_path(slot, "attach"), {"tensors": body})
        self._catch_up()
        if view.get("lost") and contents != "module":
            raise ArenaLost(f"attach: the contents of seed {view['seed']} in slot {slot} were lost with an esperd or left by a rewind: load them into the module, and attach it with contents=\"module\"")
        bound = tuple(_Bound(t["name"], t["dtype"], tuple(t["shape"]), t["parameter"], t["gradient"], t.get("master")) for t in view["tensors"])
        for (_, p), b in zip(parameters, bound):
            if p.device != self._memory.device:
                raise ConfigMismatch(f"attach: {b.name} is on {p.device}, and the arena on {self._memory.device}: move the module there first, or start esperd with another --device (a GPU's is the one that was torch's current one in esperd.connect())")
        masters = {b.name: self._master_at(b).detach() for b in bound if b.master is not None}
        with torch.no_grad():
            for (_, p), b in zip(parameters, bound):
                place = self._at(b.parameter, b)
                if contents == "module":
                    place.copy_(p.data)
                    if b.name in masters:
                        masters[b.name].copy_(p.data)
                p.data, p.grad = place, self._at(b.gradient, b)
        self._seats[slot] = _Seat(module, view["seed"], bound, masters)
        if view.get("lost"):
            self.loaded(slot)

    def loaded(self, slot: str) -> None:
        self._ask(slot_path(slot, "loaded"), {})
        self._lost.discard(slot)

    def check(self) -> None:
        """Have every bound parameter lie in the arena: what has moved without
        being changed is brought back, and anything else raises."""
        import torch

        if self._behind:
            self._catch_up()
        with torch.no_grad():
            for slot, seat in self._seats.items():
                now = dict(seat.module.named_parameters())
                for b in seat.bound:
                    p = now.get(b.name)
                    if p is None or dtype_of(p) != b.dtype or tuple(p.shape) != b.shape or p.device != self._memory.device:
                        what = "gone" if p is None else f"{dtype_of(p)} {list(p.shape)} on {p.device}"
                        raise ConfigMismatch(f"slot {slot}: parameter {b.name} was {b.dtype} {list(b.shape)} in the arena, and is {what} now: undo it (.half(), .to()?), or train this seed outside the arena")
                    self._bring_back(slot, b, p)

    def before_fence(self) -> None:
        """Check, and let esperd have the memory."""
        self._held = []  # as it was at the last fence
        self.check()
        self._wait()

    def _wait(self) -> None:
        if self._mapped is not None:
            self._mapped.wait()

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

    def fenced(self, fence: Any, arena: _Json) -> Tuple[Tuple[str, ...], bool]:
        """Follow a fence. Returns the slots whose contents have to be loaded, and
        whether what is bound lies at other addresses."""
        released = {c.slot for c in fence.plan if c.op == "release"}
        for slot in released & set(self._seats):
            self._leave(slot)
        self._spans = arena.get("spans", [])
        self._lost -= released
        lost = [x["slot"] for x in arena.get("lost", ())]
        if arena.get("device"):
            raise EsperdError(f"the device of the arena fails on rank {self._trainer.rank}: {arena['device']}; training in it ends here, the log is right all the same")
        self._lost.update(lost)
        if arena.get("remap") and self._memory is not None:
            self._behind = True
            self._catch_up()
        moved, self._moved = self._moved, False
        return tuple(s for s in lost if s in self._lost), moved

    def reduce(self, group: Any) -> None:
        import torch
        import torch.distributed as dist

        self.check()
        if not (dist.is_available() and dist.is_initialized()):
            if self._trainer.world_size == 1:
                return  # the average is what is there
            raise Refused(f"reduce: expected a process group of torch.distributed over the {self._trainer.world_size} ranks, got none: call torch.distributed.init_process_group() before")
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
        self._catch_up()
        if slot not in self._alphas:
            t = self._alphas[slot] = torch.zeros((), device=self._memory.device)
            t.data = self._alpha_at(slot)  # so it is no view, which would keep an old arena
        return self._alphas[slot]

    def _alpha_at(self, slot: str) -> Any:
        import torch

        at = _HEADER_BYTES + self._slot_names.index(slot) * _ENTRY_BYTES + _ALPHA_AT
        return self._memory[at : at + 4].view(torch.float32)[0]

    def masters(self, slot: str) -> Dict[str, Any]:
        if slot not in self._seats:
            raise Refused(f"masters: no module is attached in slot {slot!r}: attach one first")
        return dict(self._seats[slot].masters)

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
            self._wait()
            held, self._held = self._held, []
            self._ask("/v1/attest", {"tensors": held})

    def _leave(self, slot: str) -> None:
        """Take a module out of memory that is another seed's from now on."""
        seat = self._seats.pop(slot)
        self._gone[slot] = [*seat.module.parameters(), *seat.masters.values()]
        for p in self._gone[slot]:
            p.data, p.grad = p.data.clone(), None

    def _master_at(self, b: _Bound) -> Any:
        return self._at(b.master or 0, b._replace(dtype="float32"))

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

    def _catch_up(self) -> None:
        """Have mapped what esperd has. What fails is tried again at the next call."""
        if self._memory is not None and not self._behind:
            return
        with _handover.Handover(self._trainer, self._model) as h:
            old, name = self._mapped, h.offer.get("arena")
            if not name:
                raise EsperdError("the arena has no name: this esperd is older than its client; start one of the same release")
            new = mapped(h.offer) if old is None or name != self._name else old
            new.follow(h.offer["chunks"], h.files())
        if new is not old:
            self._move(new.tensor())
            self._mapped, self._name = new, name
        self._behind = False
        if new is not old:  # esperd was started anew: what it lost was still here
            for slot in self._lost & set(self._seats):
                self.loaded(slot)

    def _move(self, memory: Any) -> None:
        """Change to another arena, and take along what is bound."""
        import torch

        if self._memory is not None and memory.device != self._memory.device:
            raise ConfigMismatch(f"the arena is on {memory.device} now, and was on {self._memory.device}: start esperd with the same --device as before")
        self._moved = self._memory is not None
        self._memory = memory
        for slot, t in self._alphas.items():
            t.data = self._alpha_at(slot)
        with torch.no_grad():
            for seat in self._seats.values():
                for p, b in zip(seat.module.parameters(), seat.bound):
                    place, gradient = self._at(b.parameter, b), self._at(b.gradient, b)
                    place.copy_(p.data)
                    if p.grad is not None:
                        gradient.copy_(p.grad)
                    p.data, p.grad = place, gradient
                    if b.name in seat.masters:
                        place, m = self._master_at(b), seat.masters[b.name]
                        place.copy_(m.data)
                        m.data = place

    def _fingerprints(self, tensors: List[Any]) -> List[str]:
        """Have tensors fingerprinted where they are."""
        out = [""] * len(tensors)
        places = [_torch_gpu.of(t) for t in tensors]
        for place in set(places):
            here = [i for i, p in enumerate(places) if p == place]
            some = [tensors[i] for i in here]
            prints = _handover.fingerprints(self._trainer, self._model, some) if place is None else _fingerprint.fingerprints(some, place)
            for i, p in zip(here, prints):
                out[i] = p
        return out

    def close(self) -> None:
        """Let go of memory that ends with esperd's session, which keeps none that
        was taken as files."""
        if self._mapped is None or not self._mapped.lent:
            return
        for slot in list(self._seats):
            self._leave(slot)
        for t in self._alphas.values():
            t.data = t.data.clone()
        self._mapped = self._memory = None
