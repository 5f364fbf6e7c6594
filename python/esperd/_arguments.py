"""From what a trainer passes to what is sent.

Only what cannot be sent is refused here, with a TypeError. Everything else is
esperd's to judge, so that a refusal is in the log and the same on every rank.
"""

from __future__ import annotations

import math
import operator
from dataclasses import asdict
from typing import Any, Dict, Mapping, Optional, Sequence, SupportsFloat, SupportsIndex, Union
from urllib.parse import quote

from esperd._trainer import OBSERVE
from esperd.errors import Refused
from esperd.settings import Blueprint, Gates, Outcome, SlotConfig, Tensor

SlotsArgument = Union[Sequence[str], Mapping[str, Optional[SlotConfig]]]
GatesArgument = Union[Gates, Mapping[str, Any]]
OutcomesArgument = Mapping[str, Outcome]


class NotGiven:
    """A reading that is not given: what is known stays."""

    def __repr__(self) -> str:
        return "<not given>"


NOT_GIVEN = NotGiven()

Reading = Union[SupportsFloat, None, NotGiven]
Flag = Union[bool, None, NotGiven]

_Json = Dict[str, Any]


def text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected a string, got {type(value).__name__}")
    return value


def octets(name: str, value: object) -> bytes:
    if not isinstance(value, (bytes, bytearray, memoryview)):
        raise TypeError(f"{name}: expected the bytes that checkpoint() returned, got {type(value).__name__}")
    return bytes(value)


def one_of(name: str, value: object, valid: Sequence[str]) -> str:
    if text(name, value) not in valid:
        raise ValueError(f"{name}: expected {', '.join(map(repr, valid[:-1]))} or {valid[-1]!r}, got {value!r}")
    return str(value)


def name_of(what: str, value: object) -> str:
    if not text(what, value):
        raise Refused(f"{what}: expected a name, got an empty string")
    return str(value)


def whole(name: str, value: SupportsIndex) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected a whole number, got {type(value).__name__}") from None


def fraction(name: str, value: SupportsFloat) -> Union[float, str]:
    """Return a number as JSON has it: what is not finite is a string there."""
    if isinstance(value, str):
        raise TypeError(f"{name}: expected a number, got a string")
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}: {error}") from None
    except OverflowError:
        number = math.inf if value > 0 else -math.inf  # type: ignore[operator]  # an int
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def readings_of(**given: Union[Reading, Flag]) -> _Json:
    out: _Json = {}
    for name, value in given.items():
        if isinstance(value, NotGiven):
            continue
        if value is None:
            out[name] = None
        elif name in _FLAGS:
            out[name] = bool(value)
        else:
            out[name] = fraction(name, value)
    return out


_FLAGS = frozenset(("has_exploding", "has_vanishing", "healthy"))


def slot_path(slot: str, operation: str) -> str:
    return f"/v1/slots/{_segment(slot)}/{operation}"


def _segment(slot: str) -> str:
    name = name_of("slot", slot)
    if name.isalnum() and name.isascii():
        return name
    quoted = quote(name, safe="")
    return quoted if quoted.strip(".") else quoted.replace(".", "%2E")  # "..", a slot, is no way up


def outcomes_of(what: str, outcomes: Optional[OutcomesArgument], mode: str, needed: bool = True) -> _Json:
    """Return what a trainer did by itself as a call has it: something in the
    mode observe, nothing in the others."""
    if mode != OBSERVE:
        if outcomes is not None:
            raise TypeError(f'{what}: expected no outcome in the mode {mode}, in which esperd decides; connect with mode="observe" to have it recorded')
        return {}
    if outcomes is None:
        if needed:
            raise TypeError(f"{what}: in the mode observe expected what the trainer did: outcome=esperd.Outcome(stage, alpha, passed), or of a step outcomes={{slot: esperd.Outcome(...)}}; got none")
        return {}
    if not isinstance(outcomes, Mapping):
        raise TypeError(f"{what}: expected outcomes as a mapping from slots to esperd.Outcome, got {type(outcomes).__name__}")
    return {"outcomes": [_outcome(what, slot, o) for slot, o in outcomes.items()]}


def _outcome(what: str, slot: str, outcome: object) -> _Json:
    if not isinstance(outcome, Outcome):
        raise TypeError(f"{what}: expected an esperd.Outcome, got {type(outcome).__name__}")
    out: _Json = {"slot": text("slot", slot), "stage": text("stage", outcome.stage), "alpha": fraction("alpha", outcome.alpha)}
    if outcome.passed is not None:
        out["passed"] = bool(outcome.passed)
    return out


def configuration_of(slots: Optional[SlotsArgument], gates: Optional[GatesArgument], auto_forward: Sequence[str]) -> _Json:
    """Return a model's configuration as a request for a session has it."""
    out: _Json = {}
    if slots is not None:
        out["slots"] = _slots(slots)
    if gates is not None:
        out["gates"] = _gates(gates)
    if auto_forward:
        out["auto_forward"] = _names("auto_forward", auto_forward)
    return out


def _slots(slots: SlotsArgument) -> Sequence[_Json]:
    if isinstance(slots, Mapping):
        return [_slot(name, config) for name, config in slots.items()]
    return [_slot(name, None) for name in _names("slots", slots)]


def _slot(name: str, config: Optional[SlotConfig]) -> _Json:
    out: _Json = {"name": text("slots", name)}
    if config is None:
        return out
    if config.gates is not None:
        out["gates"] = _gates(config.gates)
    if config.auto_forward is not None:
        out["auto_forward"] = _names("auto_forward", config.auto_forward)
    if config.blueprints:
        if isinstance(config.blueprints, str):
            _names("blueprints", config.blueprints)
        out["blueprints"] = [_blueprint(b) for b in config.blueprints]
    return out


def _blueprint(b: Union[str, Blueprint]) -> _Json:
    if not isinstance(b, Blueprint):
        return {"name": text("blueprints", b)}
    return {"name": text("blueprint", b.name), "tensors": [_tensor(t) for t in b.tensors]}


def _tensor(t: Tensor) -> _Json:
    out: _Json = {"name": text("tensor", t.name), "dtype": text("dtype", t.dtype), "shape": [whole("shape", n) for n in t.shape]}
    if t.uniform is not None:
        out["init"] = {"rule": "uniform", "value": fraction("uniform", t.uniform)}
    elif t.constant:
        out["init"] = {"rule": "constant", "value": fraction("constant", t.constant)}
    if t.master:
        out["master"] = True
    return out


def _names(what: str, names: Sequence[str]) -> Sequence[str]:
    if isinstance(names, str):  # which is a sequence of letters
        raise TypeError(f"{what}: expected a sequence of names, got the string {names!r}; for one name write [{names!r}]")
    return [text(what, n) for n in names]


def _gates(gates: GatesArgument) -> _Json:
    if isinstance(gates, Mapping):
        gates = Gates(**gates)  # names an unknown threshold
    out = asdict(gates)
    for name, value in out.items():
        if name == "permissive":
            out[name] = bool(value)
        elif name == "min_blending_epochs":
            out[name] = whole(name, value)
        else:
            out[name] = fraction(name, value)
    return out
