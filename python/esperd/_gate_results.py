"""Gate results of the trainer's own classes, as esper-lite has them."""

from __future__ import annotations

import copy
import dataclasses
import enum
from typing import Any, Dict, TypeVar

from esperd._arguments import fraction, text
from esperd.values import Decision

_Result = TypeVar("_Result")


def arguments_of(result: Any) -> Dict[str, Any]:
    """Return a gate result as the arguments of a verdict."""
    return {
        "gate": _gate_name(result.gate),
        "passed": bool(result.passed),
        "score": fraction("score", result.score),
        "checks_passed": [text("checks_passed", c) for c in result.checks_passed],
        "checks_failed": [text("checks_failed", c) for c in result.checks_failed],
        "message": text("message", result.message),
    }


def decided_as(result: _Result, decision: Decision) -> _Result:
    """Return a copy of result that says what was decided."""
    local: Any = result
    fields = {
        "gate": _gate_like(decision.gate, local.gate),
        "passed": decision.passed,
        "score": decision.score,
        "checks_passed": _like(decision.checks_passed, local.checks_passed),
        "checks_failed": _like(decision.checks_failed, local.checks_failed),
        "message": decision.message,
    }
    beside = {"decision": decision, "local": result, "agreed": decision.agreed}
    if not dataclasses.is_dataclass(result):
        decided = copy.copy(local)
        for name, value in {**fields, **beside}.items():
            setattr(decided, name, value)
        return decided  # type: ignore[no-any-return]
    decided = dataclasses.replace(local, **fields)
    if hasattr(decided, "__dict__"):
        decided.__dict__.update(beside)  # a frozen dataclass, too
    return decided  # type: ignore[no-any-return]


def _gate_name(gate: Any) -> str:
    """Name the gate: "G2", 2 and GateLevel.G2 are the same one."""
    if isinstance(gate, enum.Enum):
        return gate.name
    return f"G{gate}" if isinstance(gate, int) else text("gate", gate)


def _gate_like(name: str, gate: Any) -> Any:
    if isinstance(gate, enum.Enum):
        return type(gate)[name]
    return int(name[1:]) if isinstance(gate, int) else name


def _like(checks: Any, local: Any) -> Any:
    return checks if isinstance(local, tuple) else list(checks)
