"""The calls on one slot."""

from __future__ import annotations

from typing import Any, Dict, Optional, Sequence, SupportsFloat, SupportsIndex, Type, TypeVar

from esperd._arguments import NOT_GIVEN, Flag, Reading, fraction, outcomes_of, readings_of, slot_path, text, whole
from esperd._calls import Calls
from esperd._gate_results import arguments_of, decided_as
from esperd._observed import Observed
from esperd.settings import Outcome
from esperd.values import Decision, Done

__all__ = ["SlotCalls"]

_Result = TypeVar("_Result")
_Answer = TypeVar("_Answer", Decision, Done)


class SlotCalls:
    """Of a trainer's model. In the mode observe each takes ``outcome``: what the
    trainer did to the slot by itself."""

    def __init__(self, calls: Calls, mode: str) -> None:
        self._calls = calls
        self._mode = mode

    def germinate(
        self,
        slot: str,
        blueprint: str,
        *,
        seed: Optional[str] = None,
        blend: str = "sigmoid",
        tempo: SupportsIndex = 5,
        algorithm: str = "ADD",
        target: Optional[SupportsFloat] = None,
        outcome: Optional[Outcome] = None,
    ) -> Done:
        """Put a new seed into an empty slot; it is GERMINATED then.

        Args:
            blueprint: what the seed is, in the trainer's own words.
            seed: the seed's name. None: ``slot-blueprint``.
            blend: ``"linear"``, ``"sigmoid"`` or ``"gated"``.
            tempo: ticks of the blending ramp, at least 1.
            algorithm: ADD, MULTIPLY or GATE, which belongs to ``"gated"``.
            target: alpha to blend to, above 0 and at most 1. None: 1.
        """
        arguments: Dict[str, Any] = {
            "blueprint": text("blueprint", blueprint),
            "blend": text("blend", blend),
            "tempo": whole("tempo", tempo),
            "algorithm": text("algorithm", algorithm),
        }
        if seed is not None:
            arguments["seed_id"] = text("seed", seed)
        if target is not None:
            arguments["target"] = fraction("target", target)
        return self._slot(slot, "germinate", arguments, Done, outcome)

    def observe(
        self,
        slot: str,
        *,
        accuracy: Reading = NOT_GIVEN,
        gradient_ratio: Reading = NOT_GIVEN,
        gradient_norm: Reading = NOT_GIVEN,
        gradient_health: Reading = NOT_GIVEN,
        has_exploding: Flag = NOT_GIVEN,
        has_vanishing: Flag = NOT_GIVEN,
        contribution: Reading = NOT_GIVEN,
        healthy: Flag = NOT_GIVEN,
    ) -> None:
        """Record what this rank measured of the seed in a slot.

        It waits for nobody: it rides with the model's next numbered call. A
        field that is not given stays what it was, None means "not measured", and
        a value that is NaN or infinite is recorded as such and fails its gate.

        Args:
            accuracy: percent; counts an epoch of the seed. A second one before
                the next epoch step takes the first one's place.
            gradient_ratio: the seed's gradient norm over the host's.
            gradient_norm: the seed's gradient norm.
            gradient_health: 0 to 1.
            has_exploding, has_vanishing: of the seed's gradients.
            contribution: accuracy minus that with alpha 0, percentage points.
            healthy: what the fossilization gate asks for.

        Raises:
            Refused: the model has no such slot.
            TypeError: a reading is no number.
        """
        readings = readings_of(
            accuracy=accuracy,
            gradient_ratio=gradient_ratio,
            gradient_norm=gradient_norm,
            gradient_health=gradient_health,
            has_exploding=has_exploding,
            has_vanishing=has_vanishing,
            contribution=contribution,
            healthy=healthy,
        )
        self._calls.note(slot, readings)

    def advance(self, slot: str, target: Optional[str] = None, *, outcome: Optional[Outcome] = None) -> Decision:
        """Ask the gate of the next stage, and enter the stage if it passes.

        Args:
            target: the stage to enter. None: the next one; FOSSILIZED is for
                good and has to be named.

        Returns:
            Rank 0's gate result, whatever this rank's own is.
        """
        arguments = {} if target is None else {"target": text("target", target)}
        return self._slot(slot, "advance", arguments, Decision, outcome)

    def verdict(
        self,
        slot: str,
        *,
        gate: str,
        passed: bool,
        score: SupportsFloat = 0.0,
        checks_passed: Sequence[str] = (),
        checks_failed: Sequence[str] = (),
        message: str = "",
        outcome: Optional[Outcome] = None,
    ) -> Decision:
        """Bring the trainer's own gate result, where it has gates of its own.

        Rank 0's is the decision. The gate is the same on all ranks; everything
        else may differ, which ``agreed`` says.

        Args:
            gate: G0, G1, G2, G3 or G5.
            passed: what this rank's own gate said; what it then acted on is
                the outcome's.
        """
        arguments = {
            "gate": text("gate", gate),
            "passed": bool(passed),
            "score": fraction("score", score),
            "checks_passed": [text("checks_passed", c) for c in checks_passed],
            "checks_failed": [text("checks_failed", c) for c in checks_failed],
            "message": text("message", message),
        }
        return self._slot(slot, "verdict", arguments, Decision, outcome)

    def sync_gate(self, slot: str, result: _Result, *, outcome: Optional[Outcome] = None) -> _Result:
        """Turn this rank's gate result into the decided one, of the same class.

        It is :meth:`verdict` for a loop that has gate results with the fields of
        esper-lite's ``GateResult`` and broadcasts rank 0's. There, this line
        takes the place of the body of ``SeedSlot._sync_gate_decision``::

            return ep.sync_gate(self.slot_id, gate_result)

        The seed has to be in the log: :meth:`germinate` where the trainer does.

        Args:
            result: an object with ``gate`` (G2, as a string, a number or an
                enumeration's member), ``passed``, ``score``, ``checks_passed``,
                ``checks_failed`` and ``message``. It is not changed.

        Returns:
            A copy with rank 0's values in these fields, and with ``decision``
            (the whole :class:`Decision`), ``local`` (``result``) and ``agreed``
            beside them, unless its class has no room for attributes.
        """
        decision = self._slot(slot, "verdict", arguments_of(result), Decision, outcome)
        return decided_as(result, decision)

    def prune(self, slot: str, reason: str = "", *, initiator: str = "policy", outcome: Optional[Outcome] = None) -> Done:
        """Remove a seed now. The slot is empty again 7 epoch steps later."""
        arguments = {"reason": text("reason", reason), "initiator": text("initiator", initiator)}
        return self._slot(slot, "prune", arguments, Done, outcome)

    def schedule_prune(
        self,
        slot: str,
        *,
        ticks: SupportsIndex,
        curve: Optional[str] = None,
        steepness: SupportsFloat = 12.0,
        reason: str = "",
        initiator: str = "policy",
        outcome: Optional[Outcome] = None,
    ) -> Done:
        """Ramp a seed's alpha to 0, then remove it.

        Args:
            ticks: epoch steps until alpha is 0. 0 or less, or a seed that is not
                blended in yet: prune now.
            curve: LINEAR, COSINE or SIGMOID. None: as before.
            steepness: of SIGMOID.
        """
        arguments = {
            "ticks": whole("ticks", ticks),
            "steepness": fraction("steepness", steepness),
            "reason": text("reason", reason),
            "initiator": text("initiator", initiator),
        }
        if curve is not None:
            arguments["curve"] = text("curve", curve)
        return self._slot(slot, "schedule_prune", arguments, Done, outcome)

    def alpha_target(
        self,
        slot: str,
        *,
        target: SupportsFloat,
        ticks: SupportsIndex,
        curve: Optional[str] = None,
        steepness: SupportsFloat = 12.0,
        algorithm: Optional[str] = None,
        outcome: Optional[Outcome] = None,
    ) -> Done:
        """Ramp the alpha of a seed in BLENDING or HOLDING to another value.

        Args:
            target: above 0, at most 1.
            ticks: epoch steps until alpha is target.
            curve: LINEAR, COSINE or SIGMOID. None: as before.
            steepness: of SIGMOID.
            algorithm: ADD, MULTIPLY or GATE. None: as before.
        """
        arguments: Dict[str, Any] = {
            "target": fraction("target", target),
            "ticks": whole("ticks", ticks),
            "steepness": fraction("steepness", steepness),
        }
        if curve is not None:
            arguments["curve"] = text("curve", curve)
        if algorithm is not None:
            arguments["algorithm"] = text("algorithm", algorithm)
        return self._slot(slot, "alpha_target", arguments, Done, outcome)

    def _slot(self, slot: str, operation: str, arguments: Dict[str, Any], answer: Type[_Answer], outcome: Optional[Outcome]) -> _Answer:
        arguments.update(outcomes_of(operation, None if outcome is None else {slot: outcome}, self._mode))
        if isinstance(self._calls, Observed):
            return self._calls.tell(slot, operation, arguments, answer)
        return self._calls.call(slot_path(slot, operation), arguments, answer.of)
