"""What is read of a slot object with esper-lite's fields, and done to it."""

from __future__ import annotations

import contextlib
import math
from dataclasses import asdict, fields
from typing import Any, Dict, Iterator, List, Optional

from esperd.errors import EsperdError
from esperd.settings import Gates, SlotConfig
from esperd.values import Controller, Slot

COOLDOWN = ("PRUNED", "EMBARGOED", "RESETTING")

# Two libraries' exp() and cos() differ by less, two ticks of a ramp by more.
_TOLERANCE = 1e-9


class SlotDrift(EsperdError):
    """A slot object is not as the log has it; the text says in what.

    Somebody changed it past the log: restored a snapshot into it, called the
    model's own slot, set its alpha, or is still forcing it. Or a call was made
    on the client alone, of which the slot object knows nothing.
    """

    __module__ = "esperd.slots"  # from where it is taken

    code = "slot-drift"


def config_of(slot: Any) -> SlotConfig:
    """Return a slot object's settings, for ``connect(slots=...)``.

    ``advance_stage`` asks the slot's own gates. What an epoch step advances by
    itself is decided by the gates and the ``auto_forward`` of the log, which
    are the same with these settings; the slot's own are not asked there.
    """
    gates = Gates(**{f.name: getattr(slot.gates, f.name) for f in fields(Gates)})
    return SlotConfig(gates=gates, auto_forward=tuple(sorted(gate.name for gate in slot.auto_forward_gates)))


def named(member: Any) -> Optional[str]:
    """Return an enumeration's member as the log has it."""
    return None if member is None else str(member.name)


def stage_of(state: Any) -> str:
    return "DORMANT" if state is None else str(state.stage.name)


def readings_of(state: Any) -> Dict[str, Any]:
    """Return what a seed's state has measured, but for the accuracy."""
    out = {
        "gradient_ratio": state.metrics.seed_gradient_norm_ratio,
        "contribution": state.metrics.counterfactual_contribution,
        "healthy": state.is_healthy,
    }
    if state.telemetry is not None:
        for name in ("gradient_norm", "gradient_health", "has_exploding", "has_vanishing"):
            out[name] = getattr(state.telemetry, name)
    return out


def differences(state: Any, log: Slot) -> List[str]:
    """Say in what a slot object's state is not as the log has it."""
    here, there = _condition(_as_in_log(state)), _condition(log)
    names = [n for n in {**here, **there} if not same(here.get(n), there.get(n))]
    return [f"{n} is {here.get(n, 'none')} here and {there.get(n, 'none')} in the log" for n in names]


def same(here: Any, there: Any) -> bool:
    if isinstance(here, float) and isinstance(there, float):
        return math.isclose(here, there, rel_tol=0, abs_tol=_TOLERANCE)
    return bool(here == there)


def _condition(slot: Slot) -> Dict[str, Any]:
    """Return what has to be equal: what the forward pass depends on now, and
    after every further tick."""
    out: Dict[str, Any] = {"stage": slot.stage, "alpha": slot.alpha, "seed": slot.seed_id}
    if slot.controller is None or slot.stage in COOLDOWN:  # where the alpha stays 0
        return out
    ramp = asdict(slot.controller)
    if slot.controller.mode == "HOLD":  # the next ramp may bring its own
        del ramp["curve"], ramp["steepness"]
    return {**out, "algorithm": slot.algorithm, **{f"ramp's {name}": value for name, value in ramp.items()}}


def _as_in_log(state: Any) -> Slot:
    if state is None:
        return Slot("", "DORMANT", 0.0, 0)
    c = state.alpha_controller
    ramp = Controller(
        alpha=float(c.alpha),
        start=float(c.alpha_start),
        target=float(c.alpha_target),
        mode=c.alpha_mode.name,
        curve=c.alpha_curve.name,
        steepness=float(c.alpha_steepness),
        total=c.alpha_steps_total,
        done=c.alpha_steps_done,
    )
    algorithm = state.alpha_algorithm.name
    return Slot("", state.stage.name, float(state.alpha), 0, seed_id=state.seed_id, algorithm=algorithm, controller=ramp)


@contextlib.contextmanager
def replaced(slot: Any, **attributes: Any) -> Iterator[None]:
    """Give a slot other attributes for a while."""
    own = {name: vars(slot)[name] for name in attributes if name in vars(slot)}
    try:
        for name, value in attributes.items():
            setattr(slot, name, value)
        yield
    finally:
        for name in attributes:
            if name in own:
                setattr(slot, name, own[name])
            else:
                delattr(slot, name)
