"""What a trainer says when it connects, and in the mode observe. All of these
values are immutable; stages and gates are named as in :mod:`esperd.values`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Tuple, Union

__all__ = ["Blueprint", "Gates", "Outcome", "SlotConfig", "Tensor"]


@dataclass(frozen=True)
class Gates:
    """Thresholds of a slot's gates. The defaults are esperd's own.

    Attributes:
        permissive: look at gradient health rather than at what was gained.
        min_training_improvement: percentage points gained in TRAINING (G2).
        min_blending_epochs: epochs with an accuracy, in TRAINING (G2) and again
            in BLENDING (G3).
        min_seed_gradient_ratio: the seed's gradient norm over the host's (G2).
        min_gradient_health_for_blending: 0 to 1 (G2, permissive).
        min_probation_stability: kept for compatibility; no gate reads it.
    """

    permissive: bool = False
    min_training_improvement: float = 0.5
    min_blending_epochs: int = 10
    min_seed_gradient_ratio: float = 0.10
    min_gradient_health_for_blending: float = 0.7
    min_probation_stability: float = 0.95


@dataclass(frozen=True)
class Tensor:
    """One parameter of a blueprint, as the arena initialises it: by equal bits on
    every rank.

    Attributes:
        dtype: ``"float32"``, ``"float16"`` or ``"bfloat16"``.
        uniform: it begins uniform between -uniform and uniform. None: see constant.
        constant: or with this value everywhere.
        master: a float32 copy is kept beside it.
    """

    name: str
    shape: Tuple[int, ...]
    dtype: str = "float32"
    uniform: Optional[float] = None
    constant: float = 0.0
    master: bool = False


@dataclass(frozen=True)
class Blueprint:
    """A blueprint whose parameters esperd lays out, in the order of the module's
    ``named_parameters()``."""

    name: str
    tensors: Tuple[Tensor, ...]


@dataclass(frozen=True)
class SlotConfig:
    """Settings of one slot that are not the model's.

    Attributes:
        gates: None: the model's.
        auto_forward: gates that an epoch step tries by itself, such as
            ``("G1", "G3")``. None: the model's.
        blueprints: names that the slot accepts, or, for those that are to lie in
            the arena, :class:`Blueprint`. Empty: any.
    """

    gates: Optional[Gates] = None
    auto_forward: Optional[Tuple[str, ...]] = None
    blueprints: Tuple[Union[str, Blueprint], ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What a trainer did to a slot by itself, for the mode "observe".

    Attributes:
        stage: the seed's after it; DORMANT: the slot is empty.
        alpha: 0 to 1.
        passed: the gate result that the trainer acted on; None: no gate was
            asked.
    """

    stage: str
    alpha: float = 0.0
    passed: Optional[bool] = None
