"""Slots of esper-lite's interface, kept as the log has them.

    slots = SlotGroup(ep, model.seed_slots)        # by name, as ep was configured
    slots["r0c0"].germinate("conv_light", host_module=model.host)
    for epoch in range(epochs):
        train_and_evaluate()                       # record_accuracy, sync_telemetry, ...
        result = slots["r0c0"].advance_stage()     # rank 0's, on every rank
        for slot in slots.values():
            slot.step_epoch()                      # or once: slots.step_epoch()

Each call tells the log what the slot has measured, has rank 0 decide, and does
what was decided with the slot's own methods. Then slot and log are compared: a
slot that is not as the log has it raises :class:`SlotDrift`.

A slot is any object with the methods and fields of esper-lite's ``SeedSlot``
that are used here; that package is not needed. The model goes on using its own
slot objects for everything but these calls.
"""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any, Callable, Dict, Iterator, Mapping, Optional, Protocol, SupportsIndex, Tuple

from esperd._slot_objects import COOLDOWN, SlotDrift, config_of, differences, named, readings_of, replaced, same, stage_of
from esperd._trainer import KEYED
from esperd.client import Client
from esperd.errors import Refused
from esperd.values import Fence, Slot

__all__ = ["ReplicatedSlot", "SlotDrift", "SlotGroup", "SlotMapping", "config_of"]

_NEXT = {"GERMINATED": "TRAINING", "TRAINING": "BLENDING", "BLENDING": "HOLDING", "HOLDING": "FOSSILIZED"}


class SlotMapping(Protocol):
    """Slot objects by name: a dict, or torch's ModuleDict."""

    def items(self) -> Any: ...


class SlotGroup(Mapping[str, "ReplicatedSlot"]):
    """The slots of one model, by name."""

    def __init__(self, ep: Client, slots: SlotMapping) -> None:
        """Take slots over, as they are in the log.

        Args:
            ep: the model's client.
            slots: slot objects by the names that the log has for them: those
                that the trainer steps each epoch, and no others.

        Raises:
            Refused: the model has no slot of that name, or the client's mode is
                not keyed.
            SlotDrift: a slot is not as the log has it, such as an empty one for
                which the log has a seed from before a restart.
        """
        if ep.mode != KEYED:
            raise Refused(
                f'SlotGroup: expected a client of the mode keyed, in which every rank makes the same calls, got one of the mode {ep.mode}: '
                'connect with mode="keyed"'
            )
        self._ep = ep
        self._epoch = ep.session.epoch
        self._slots = {name: ReplicatedSlot(self, name, slot) for name, slot in slots.items()}
        # What each slot that has not done its part of the last epoch step needs for it: the log's slot before, and the fence.
        self._owed: Dict[str, Tuple[Slot, Fence]] = {}
        log = ep.slots()
        for name, slot in self._slots.items():
            if name not in log:
                raise Refused(f"model {ep.name} has no slot {name!r}, expected some of {', '.join(log)}", code="unknown-slot")
            slot._compare(log[name])

    def __getitem__(self, name: str) -> "ReplicatedSlot":
        return self._slots[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._slots)

    def __len__(self) -> int:
        return len(self._slots)

    def step_epoch(self, epoch: Optional[SupportsIndex] = None) -> Fence:
        """Close an epoch, and bring every slot to where the log has it.

        Args:
            epoch: its number, above that of the last one. None: the one after the
                group's last, at first after the last one when ep connected.

        Raises:
            Refused: some slots were stepped one by one, and others not yet.
            SlotDrift: a slot was, or is now, not as the log has it.
        """
        self._closable()
        fence = self._close(epoch)
        for slot in self.values():
            self._step(slot)
        return fence

    def fence(self, n: SupportsIndex) -> Fence:
        """Close a stretch of calls without a tick, as :meth:`Client.fence`, and
        prune the slots for which somebody else asked that."""
        self._closable()
        self._report()
        fence = self._ep.fence(n)
        for name, slot in self.items():
            slot._follow(fence.slots[name], fence.index)
        return fence

    def _closable(self) -> None:
        if self._owed:
            raise Refused(f"epoch {self._epoch} is not over: expected step_epoch() of {', '.join(self._owed)} first, as of the other slots")

    def _report(self) -> Mapping[str, Slot]:
        """Tell the log what all slots have measured, and return what it has."""
        log = self._ep.slots()
        for name, slot in self.items():
            slot._compare(log[name])
            slot._observe()
        return log

    def _close(self, epoch: Optional[SupportsIndex]) -> Fence:
        log = self._report()
        fence = self._ep.step_epoch(self._epoch + 1 if epoch is None else epoch)
        self._epoch, self._owed = fence.epoch, {name: (log[name], fence) for name in self}
        return fence

    def _step(self, slot: "ReplicatedSlot") -> None:
        """Do a slot's part of an epoch. The first one closes it for all."""
        if not self._owed:
            self._close(None)
        if slot._name not in self._owed:
            raise Refused(
                f"{slot._name} was stepped in epoch {self._epoch} already, and {', '.join(self._owed)} not yet: expected step_epoch() of "
                "every slot of the group once an epoch, or step_epoch() of the group"
            )
        slot._tick(*self._owed.pop(slot._name))


class ReplicatedSlot:
    """A slot as trainers know it, whose calls are decided in the log.

    All ranks make the same calls; what each has measured may differ. A call
    raises :class:`SlotDrift`, before it does anything, where the slot is not as
    the log has it.

    What is not listed here, such as ``state``, ``alpha`` and ``seed``, is the
    slot object's own. So is ``force_alpha``: it changes the alpha of this rank
    alone while its block lasts, in which no other call may be made.

    In the log an epoch counts once, however many accuracies a slot records in
    it; only gates that an epoch step asks by itself can tell.
    """

    __slots__ = ("_group", "_name", "_slot", "_epochs")

    def __init__(self, group: SlotGroup, name: str, slot: Any) -> None:
        """Not for users: see :class:`SlotGroup`."""
        self._group = group
        self._name = name
        self._slot = slot
        self._epochs = 0 if slot.state is None else slot.state.metrics.epochs_total  # whose accuracies were observed

    def __getattr__(self, name: str) -> Any:
        if name in ReplicatedSlot.__slots__:  # of a copy that has none yet
            raise AttributeError(name)
        return getattr(self._slot, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ReplicatedSlot.__slots__:
            object.__setattr__(self, name, value)
        else:
            setattr(self._slot, name, value)

    def __repr__(self) -> str:
        return f"<esperd.slots.ReplicatedSlot {self._name!r} of {self._group._ep!r}>"

    def germinate(
        self,
        blueprint_id: str,
        seed_id: Optional[str] = None,
        host_module: Any = None,
        blend_algorithm_id: str = "sigmoid",
        blend_tempo_epochs: int = 5,
        alpha_algorithm: Any = None,
        alpha_target: Optional[float] = None,
        topology: Optional[str] = None,
    ) -> Any:
        """Put a new seed into the slot, and return its state.

        The log is asked first. A blueprint that only the slot refuses is in the
        log then, and the next call raises SlotDrift;
        ``SlotConfig(blueprints=...)`` has the log refuse it.

        Args:
            seed_id: None: ``slot-blueprint``.
            blend_tempo_epochs: ticks of the blending ramp.
            alpha_algorithm: None: ADD.
            alpha_target: alpha to blend to, above 0 and at most 1. None: 1.

        Raises:
            Refused: the slot is not empty, or an argument is not acceptable.
        """
        seed, algorithm = seed_id or f"{self._name}-{blueprint_id}", named(alpha_algorithm) or "ADD"
        self._begin().germinate(
            self._name, blueprint_id, seed=seed, blend=blend_algorithm_id, tempo=blend_tempo_epochs, algorithm=algorithm, target=alpha_target
        )
        self._epochs = 0
        blend: Dict[str, Any] = {"blend_algorithm_id": blend_algorithm_id, "blend_tempo_epochs": blend_tempo_epochs}
        if alpha_algorithm is not None:  # else the slot's own default, ADD
            blend["alpha_algorithm"] = alpha_algorithm
        state = self._slot.germinate(blueprint_id, seed, host_module, alpha_target=alpha_target, topology=topology, **blend)
        self._check()
        return state

    def advance_stage(self, target_stage: Any = None) -> Any:
        """Ask the slot's own gate, and do what rank 0's said.

        Args:
            target_stage: None: the next one, which is FOSSILIZED, for good,
                after HOLDING.

        Returns:
            Rank 0's gate result, of the class that the slot's gates return,
            with ``decision``, ``local`` (this rank's own result) and ``agreed``
            beside it. Where there was no gate to ask, the slot's own answer.
        """
        ep = self._begin()
        slot, target, stage = self._slot, target_stage, stage_of(self._slot.state)
        if target is None and stage in _NEXT:
            target = type(slot.state.stage)[_NEXT[stage]]
        if slot.state is None or target is None or stage in COOLDOWN or target.name in COOLDOWN:
            return slot.advance_stage(target)  # which changes nothing, on any rank
        decided = ep.sync_gate(self._name, slot.gates.check_gate(slot.state, target))
        result = self._enter(target, decided)
        self._check()
        return result

    def prune(self, reason: str = "", *, initiator: str = "policy") -> bool:
        """Remove the seed now; False where there is none that could be.

        It may be called on a slot that has drifted, which ends the drift: a
        governor restores a snapshot into the slots, and then prunes them.
        """
        self._begin(drifted=True)
        return self._do(
            lambda ep: ep.prune(self._name, reason, initiator=initiator),
            lambda slot: slot.prune(reason, initiator=initiator),
        )

    def schedule_prune(
        self, *, steps: int, curve: Any = None, steepness: float = 12.0, reason: str = "", initiator: str = "policy"
    ) -> bool:
        """Ramp alpha to 0 in so many epoch steps, then remove the seed; False
        where there is none that could be, or its alpha ramps already."""
        self._begin()
        ramp: Dict[str, Any] = {"steepness": steepness, "reason": reason, "initiator": initiator}
        return self._do(
            lambda ep: ep.schedule_prune(self._name, ticks=steps, curve=named(curve), **ramp),
            lambda slot: slot.schedule_prune(steps=steps, curve=curve, **ramp),
        )

    def set_alpha_target(
        self,
        *,
        alpha_target: float,
        steps: int,
        curve: Any = None,
        steepness: float = 12.0,
        alpha_algorithm: Any = None,
        initiator: str = "policy",
    ) -> bool:
        """Ramp alpha to another value in so many epoch steps; False where the
        seed is not in BLENDING or HOLDING, or its alpha ramps already.

        Args:
            alpha_target: above 0. More than 1 is 1, and so is almost 1 in HOLDING.
            initiator: the slot's; the log does not record it.

        Raises:
            Refused: alpha_target is 0 or less: schedule_prune ramps to 0.
        """
        self._begin()
        ramp: Dict[str, Any] = {"curve": named(curve), "steepness": steepness, "algorithm": named(alpha_algorithm)}
        own: Dict[str, Any] = {"curve": curve, "steepness": steepness, "alpha_algorithm": alpha_algorithm, "initiator": initiator}
        return self._do(
            lambda ep: ep.alpha_target(self._name, target=alpha_target, ticks=steps, **ramp),
            lambda slot: slot.set_alpha_target(alpha_target=self._logged().controller.target, steps=steps, **own),  # type: ignore[union-attr]
        )

    def set_alpha(self, alpha: float) -> None:
        """Do nothing, if the log has this alpha: trainers say 1 of a seed that
        was fossilized, which has it by then.

        Raises:
            Refused: the log has another one: set_alpha_target changes it.
        """
        self._begin()
        if self._slot.state is not None and not same(float(self._slot.alpha), min(1.0, max(0.0, float(alpha)))):
            raise Refused(
                f"set_alpha {self._name}: expected {self._slot.alpha:g}, as the log has it, got {alpha:g}; use set_alpha_target, which "
                "changes it on all ranks"
            )

    def step_epoch(self) -> None:
        """Do this slot's part of an epoch.

        The first slot of the group that is stepped closes the epoch for all.
        Each other one is to be stepped before any is again, and before another
        call is made on it.

        Raises:
            Refused: the slot was stepped already, and others not yet.
        """
        self._group._step(self)

    def _begin(self, drifted: bool = False) -> Client:
        group = self._group
        if self._name in group._owed:
            raise Refused(f"{self._name} was not stepped in epoch {group._epoch}, which other slots were: expected its step_epoch() first")
        if not drifted:
            self._check()
        self._observe()
        return group._ep

    def _check(self) -> None:
        self._compare(self._logged())

    def _logged(self) -> Slot:
        return self._group._ep.slots()[self._name]

    def _compare(self, log: Slot) -> None:
        differ, ep = differences(self._slot.state, log), self._group._ep
        if differ:
            raise SlotDrift(
                f"slot {self._name} of model {ep.name} is not as the log has it, on rank {ep.rank}: {'; '.join(differ)}. Expected every "
                "call that changes it on its ReplicatedSlot, and no state restored into it alone"
            )

    def _observe(self) -> None:
        """Tell the log what the slot has measured."""
        state = self._slot.state
        if state is None or state.stage.name in COOLDOWN:
            return
        readings = readings_of(state)
        if state.metrics.epochs_total != self._epochs:
            self._epochs, readings["accuracy"] = state.metrics.epochs_total, state.metrics.current_val_accuracy
        self._group._ep.observe(self._name, **readings)

    def _do(self, ask: Callable[[Client], object], act: Callable[[Any], object]) -> bool:
        """Have the slot do what the log grants, and return whether it does."""
        granted = True
        try:
            ask(self._group._ep)
        except Refused as error:
            if error.code != "illegal-transition":
                raise
            granted = False
        if granted:
            act(self._slot)
        self._check()
        return granted

    def _enter(self, target: Any, result: Any) -> Any:
        """Have the slot advance by a gate result, whatever its gates would say."""
        gates = SimpleNamespace(check_gate=lambda state, stage: result)
        with replaced(self._slot, gates=gates, _sync_gate_decision=lambda decided: decided):  # no broadcast: it is decided
            return self._slot.advance_stage(target)

    def _tick(self, before: Slot, fence: Fence) -> None:
        slot = self._slot
        if before.stage in COOLDOWN and before.metrics is not None:
            # esper-lite lets an accuracy recorded in the cooldown shorten it; the log does not.
            slot.state.metrics.epochs_in_current_stage = before.metrics.epochs_in_stage
        with replaced(slot, auto_forward_gates=frozenset()):  # rank 0's gates have decided
            slot.step_epoch()
        self._follow(fence.slots[self._name], fence.index)

    def _follow(self, log: Slot, index: int) -> None:
        """Do what the log did at a fence beyond the slot's own tick: what was
        asked for elsewhere, and what a gate passed by itself."""
        slot, here = self._slot, stage_of(self._slot.state)
        if here != log.stage == "PRUNED":
            slot.prune(f"pruned in the log, entry {index}", initiator="esperd")
        elif here in _NEXT and log.stage == _NEXT[here] != "FOSSILIZED":
            target = type(slot.state.stage)[log.stage]
            result = copy.copy(slot.gates.check_gate(slot.state, target))
            result.passed, result.checks_failed, result.message = True, [], f"passed in the log, entry {index}"
            self._enter(target, result)
        self._compare(log)
