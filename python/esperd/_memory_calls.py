"""The calls on room, memory and what devices hold."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Dict, Mapping, Optional, SupportsIndex

from esperd._arguments import one_of, slot_path, text, whole
from esperd._calls import Calls
from esperd._family import Family
from esperd._trainer import OBSERVE

if TYPE_CHECKING:
    from esperd._arena import Arena

__all__ = ["MemoryCalls"]

_REASON_BYTES_MAX = 1024

_log = logging.getLogger("esperd")


class MemoryCalls:
    """Of a trainer's model. None of them has a number."""

    _calls: Calls
    _family: Family
    _mode: str
    _name: str
    _arena: "Optional[Arena]" = None

    def ready(self, slot: str, *, seed: Optional[SupportsIndex] = None) -> None:
        """Say that this rank has room for the slot's seed: its module is made, on
        its device.

        With ``connect(residency=True)`` a germinated seed waits for that of every
        rank. It has no number, may be said twice, and counts from the next fence
        that finds it in the log. In the mode observe it does nothing.

        Args:
            seed: germination count of the seed that is meant. None: the one that
                this rank saw last in the slot.

        Raises:
            Refused: this rank has seen no seed in the slot yet.
        """
        self._vote(slot, "ready", {}, seed)

    def failed(self, slot: str, reason: str = "", *, seed: Optional[SupportsIndex] = None) -> None:
        """Say that this rank has no room for the slot's seed, as when its device
        is out of memory: the next fence that finds it in the log prunes the seed
        on all ranks, with this rank and the reason in the log.

        Args:
            reason: of which the first 1,024 bytes are kept.
            seed: as of :meth:`ready`.
        """
        kept = text("reason", reason).encode("utf-8", "replace")[:_REASON_BYTES_MAX].decode("utf-8", "ignore")
        self._vote(slot, "failed", {"reason": kept}, seed)

    def attach(self, module: Any, *, slot: str, contents: str = "arena") -> None:
        """Bind a module's parameters and gradients to the slot's seed in the arena,
        in place: plain torch optimizers and DDP go on working, and ``state_dict``
        saves and loads them.

        At every fence and every :meth:`reduce` it is checked that they still lie
        there. What has only moved (``zero_grad(set_to_none=True)``, a memory
        format) is brought back; what was changed raises. On a GPU a fence first
        waits for all that torch has started there.

        A seed's room in the arena is esperd's to vote on: :meth:`ready` and
        :meth:`failed` are not called. Where this rank has none, catch
        :class:`NoRoom` and go on: a fence soon prunes the seed on all ranks.

        When a seed goes, its memory is given back: the module gets memory of its
        own, and a CUDA graph over what was bound must not be replayed.

        Args:
            contents: ``"arena"``: the module takes what is in the arena, at first
                the log's initial bits. ``"module"``: the arena takes what is in
                the module, as after loading a checkpoint.

        Raises:
            ConfigMismatch: the module's parameters are not the log's blueprint, or
                not on the arena's device, or there is no arena.
            NoRoom: this rank has no memory for the seed, which will be pruned.
            ArenaLost: the contents are lost, and have to be loaded first.
            Refused: DTensor, or FSDP's flat parameters.
        """
        self._memory().attach(module, text("slot", slot), one_of("contents", contents, ("arena", "module")))

    def loaded(self, slot: str) -> None:
        """Say that the contents of a lost seed are in its module, which is bound."""
        self._memory().loaded(text("slot", slot))

    def reduce(self, group: Any = None) -> None:
        """Average the gradients of all seeds that learn over the ranks: one
        all-reduce of torch.distributed for each element type. In a world of one
        without a process group there is nothing to average.

        Raises:
            Refused: there is no process group, and more than one rank.
        """
        self._memory().reduce(group)

    def alpha(self, slot: str) -> Any:
        """Return a tensor over the slot's alpha in the arena's table, on its
        device. It changes with each fence, by itself, and always is the same one."""
        return self._memory().alpha(text("slot", slot))

    def masters(self, slot: str) -> Dict[str, Any]:
        """Return the float32 copies of the parameters of the module that is
        attached in a slot, by name: those that are declared (``Tensor(...,
        master=True)``). They begin as the log's initial numbers, not rounded, or
        with ``contents="module"`` as the module's. They stay the same tensors, to
        be given to an optimizer; copying them to the parameters after its step,
        and loading them before :meth:`loaded`, is the trainer's work.

        Raises:
            Refused: no module is attached there.
        """
        return self._memory().masters(text("slot", slot))

    def forget(self, optimizer: Any, slot: str) -> None:
        """Drop an optimizer's state of the seed that was pruned in a slot last."""
        self._memory().forget(optimizer, text("slot", slot))

    def attest(self, tensors: Optional[Mapping[str, Any]] = None, shard: Optional[str] = None, kind: str = "replicated", *, more: bool = False) -> None:
        """Have tensors compared with those of the ranks that hold the same, as
        they are at this rank's last fence; call it right after one, on every
        rank. What differs is said by :attr:`Fence.differs` of the next fence.
        What is bound in the arena is compared without being named. A tensor on a
        GPU is fingerprinted there, on torch's current stream, behind what was
        started on it.

        Args:
            tensors: by name, the same on all ranks.
            shard: of kind sharded: which one.
            kind: ``"replicated"``: all ranks hold the same. ``"sharded"``: those
                with the same shard do. ``"local"``: nothing is compared.
            more: there are others of this fence; the last call sends them all.
        """
        if self._mode != OBSERVE:
            self._memory().attest(tensors or {}, shard, kind, more)

    def _memory_ends(self) -> None:
        """What is bound becomes the trainer's own, where it would end with esperd."""
        try:
            if self._arena is not None:
                self._arena.close()
        except Exception as error:  # the trainer ends, and esperd is still to be told
            _log.warning("modules are left in memory that ends with esperd: %s", error)

    def _memory(self) -> "Arena":
        from esperd._arena import Arena  # and so ctypes, for whom it is there

        self._family.trainer.check_process()
        if self._arena is None:
            self._arena = Arena(self._family.trainer, self._name, self._calls.unnumbered, self._calls.slot_names)
        return self._arena

    def _vote(self, slot: str, what: str, arguments: Dict[str, Any], seed: Optional[SupportsIndex]) -> None:
        path = slot_path(slot, what)
        if seed is not None:
            arguments["seed"] = whole("seed", seed)
        self._calls.guarded(lambda: self._calls.unnumbered.vote(path, arguments), None)
