"""The values that calls return. All of them are immutable.

Stages, gates, curves and algorithms are their names, as strings:

* stage: DORMANT (an empty slot), GERMINATED, TRAINING, BLENDING, HOLDING,
  FOSSILIZED, PRUNED, EMBARGOED, RESETTING
* gate: G0 (to GERMINATED), G1 (TRAINING), G2 (BLENDING), G3 (HOLDING),
  G5 (FOSSILIZED)
* curve: LINEAR, COSINE, SIGMOID
* algorithm: ADD, MULTIPLY, GATE

Accuracies are in percent, contributions and improvements in percentage points,
alphas from 0 to 1, ramps in ticks (one each epoch step).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Dict, Mapping, Optional, Tuple, Type, TypeVar, Union

__all__ = [
    "Change",
    "Command",
    "Controller",
    "Decision",
    "Difference",
    "Done",
    "Fence",
    "Metrics",
    "Session",
    "Slot",
    "Verdict",
]

_Json = Dict[str, Any]
_T = TypeVar("_T")

_LIVING = ("GERMINATED", "TRAINING", "BLENDING", "HOLDING", "FOSSILIZED")  # as a seed goes through them


def _made(cls: Type[_T], **fields: Any) -> _T:
    """Return cls(**fields), which are all that it has: for each of a frozen
    dataclass's its own __init__ makes a call."""
    new = object.__new__(cls)
    new.__dict__.update(fields)
    return new


def _number(v: Any) -> float:
    """Read a number of JSON, or one of "NaN", "Infinity" and "-Infinity"."""
    return float(v)


def _measured(v: Any) -> Optional[float]:
    return None if v is None else float(v)


@dataclass(frozen=True)
class Verdict:
    """One gate result."""

    gate: str
    passed: bool
    score: float = 0.0
    checks_passed: Tuple[str, ...] = ()
    checks_failed: Tuple[str, ...] = ()
    message: str = ""

    @classmethod
    def of(cls, d: _Json) -> Verdict:
        return _made(
            cls,
            gate=d["gate"],
            passed=d["passed"],
            score=_number(d["score"]),
            checks_passed=tuple(d["checks_passed"]),
            checks_failed=tuple(d["checks_failed"]),
            message=d["message"],
        )


@dataclass(frozen=True)
class Decision:
    """Rank 0's gate result, the same on every rank. It is true if it passed.

    Attributes:
        stage: the seed's, after the decision.
        index: of the log entry; 0 in the mode observe, where it has none yet.
        local: this rank's own verdict on its own metrics; None where it cannot
            be known (of a seed from before this trainer or its esperd was
            started).
        agreed: own and decided verdict both passed, or both failed; True where
            there is no own one.
    """

    gate: str
    passed: bool
    score: float
    checks_passed: Tuple[str, ...]
    checks_failed: Tuple[str, ...]
    message: str
    slot: str
    seed: int
    stage: str
    index: int
    local: Optional[Verdict]
    agreed: bool

    def __bool__(self) -> bool:
        return self.passed

    @classmethod
    def of(cls, d: _Json) -> Decision:
        local = d.get("local")
        return _made(
            cls,
            gate=d["gate"],
            passed=d["passed"],
            score=_number(d["score"]),
            checks_passed=tuple(d["checks_passed"]),
            checks_failed=tuple(d["checks_failed"]),
            message=d["message"],
            slot=d["slot"],
            seed=d["seed"],
            stage=d["stage"],
            index=d["index"],
            local=Verdict.of(local) if local else None,
            agreed=d["agreed"],
        )


@dataclass(frozen=True)
class Done:
    """The answer to a call on a slot that no gate decides."""

    slot: str
    seed: int
    stage: str
    alpha: float
    index: int

    @classmethod
    def of(cls, d: _Json) -> Done:
        return cls(d["slot"], d["seed"], d["stage"], _number(d["alpha"]), d["index"])


@dataclass(frozen=True)
class Change:
    """What became of a slot between two fences, whoever asked for it.

    Stages may have been skipped. So remove a module where ``ends``, then make
    one where ``begins``, then set the alpha of the one that is there, if any.

    Attributes:
        seed: germination count of the slot; 0 after a reset.
        blueprint: of the seed in the slot, else of the one that is gone.
        frozen: the seed's parameters are not to be trained: its alpha ramps
            down.
        replaced: of two living seeds, one then and one now, they are not the
            same one.
    """

    slot: str
    seed: int
    stage_from: str
    stage: str
    alpha_from: float
    alpha: float
    frozen: bool
    blueprint: str = ""
    replaced: bool = False

    @property
    def begins(self) -> bool:
        """The slot holds a living seed (GERMINATED to FOSSILIZED), and held none,
        or another one, at the last fence: its module is to be made."""
        return self.stage in _LIVING and (self.stage_from not in _LIVING or self.replaced)

    @property
    def ends(self) -> bool:
        """The slot held a living seed at the last fence, and that one is gone:
        pruned, reset, left behind by a resume, or replaced. Its module is to be removed."""
        return self.stage_from in _LIVING and (self.stage not in _LIVING or self.replaced)

    @classmethod
    def of(cls, d: _Json) -> Change:
        return _made(
            cls,
            slot=d["slot"],
            seed=d["seed"],
            stage_from=d["from"],
            stage=d["to"],
            alpha_from=_number(d["alpha_from"]),
            alpha=_number(d["alpha"]),
            frozen=d["frozen"],
            blueprint=d.get("blueprint", ""),
            replaced=d.get("replaced", False),
        )


@dataclass(frozen=True)
class Controller:
    """An alpha ramp: ``done`` of ``total`` ticks from ``start`` to ``target``."""

    alpha: float
    start: float
    target: float
    mode: str  # HOLD, UP or DOWN
    curve: str
    steepness: float  # of SIGMOID
    total: int
    done: int

    @classmethod
    def of(cls, d: _Json) -> Controller:
        return _made(
            cls,
            alpha=_number(d["alpha"]),
            start=_number(d["start"]),
            target=_number(d["target"]),
            mode=d["mode"],
            curve=d["curve"],
            steepness=_number(d["steepness"]),
            total=d["total"],
            done=d["done"],
        )


@dataclass(frozen=True)
class Metrics:
    """What rank 0 observed of a seed. None is "not measured"."""

    epochs: int  # with an accuracy
    epochs_in_stage: int
    accuracy: float
    accuracy_best: float
    accuracy_first: float
    accuracy_stage: float  # when the stage began
    gradient_ratio: Optional[float]
    gradient_norm: Optional[float]
    gradient_health: Optional[float]
    has_exploding: Optional[bool]
    has_vanishing: Optional[bool]
    contribution: Optional[float]
    healthy: bool

    @classmethod
    def of(cls, d: _Json) -> Metrics:
        return _made(
            cls,
            epochs=d["epochs"],
            epochs_in_stage=d["epochs_in_stage"],
            accuracy=_number(d["accuracy"]),
            accuracy_best=_number(d["accuracy_best"]),
            accuracy_first=_number(d["accuracy_first"]),
            accuracy_stage=_number(d["accuracy_stage"]),
            gradient_ratio=_measured(d["gradient_ratio"]),
            gradient_norm=_measured(d["gradient_norm"]),
            gradient_health=_measured(d["gradient_health"]),
            has_exploding=d["has_exploding"],
            has_vanishing=d["has_vanishing"],
            contribution=_measured(d["contribution"]),
            healthy=not d["unhealthy"],
        )


@dataclass(frozen=True)
class Slot:
    """A slot and the seed in it, at the caller's last answered call.

    An empty slot is DORMANT; ``seed`` is 0 then, and what follows it in the
    list of attributes has no value.

    Attributes:
        germinations: how many seeds the slot has had.
        seed: the germination count of the seed that is in it.
        frozen: the seed's parameters are not to be trained: its alpha ramps
            down.
    """

    name: str
    stage: str
    alpha: float
    germinations: int
    seed: int = 0
    seed_id: str = ""
    blueprint: str = ""
    frozen: bool = False
    algorithm: str = ""
    controller: Optional[Controller] = None
    metrics: Optional[Metrics] = None

    @property
    def living(self) -> bool:
        """It holds a seed that is GERMINATED to FOSSILIZED: a module is there."""
        return self.stage in _LIVING

    @classmethod
    def of(cls, d: _Json) -> Slot:
        controller, metrics = d.get("controller"), d.get("metrics")
        return _made(
            cls,
            name=d["name"],
            stage=d["stage"],
            alpha=_number(d["alpha"]),
            germinations=d["germinations"],
            seed=d.get("seed", 0),
            seed_id=d.get("seed_id", ""),
            blueprint=d.get("blueprint", ""),
            frozen=d.get("frozen", False),
            algorithm=d.get("algorithm", ""),
            controller=Controller.of(controller) if controller else None,
            metrics=Metrics.of(metrics) if metrics else None,
        )


@dataclass(frozen=True)
class Command:
    """What a fence asks of a seed's memory.

    Attributes:
        op: reserve, initialise, activate, set_alpha, thaw, freeze, deactivate,
            zero or release.
        alpha: of set_alpha.
    """

    op: str
    slot: str
    seed: int
    blueprint: str
    alpha: float = 0.0

    @classmethod
    def of(cls, d: _Json) -> Command:
        return cls(d["op"], d["slot"], d["seed"], d["blueprint"], d.get("alpha", 0.0))


@dataclass(frozen=True)
class Difference:
    """What some ranks' devices hold that is not what most do.

    Attributes:
        index: of the fence at which, or from which on, they held it.
        what: ``"tensors"``, as attested, or ``"active"``: the active set, which
            is compared at every fence.
        tensors: those that differ, in the arena as slot/tensor. Of the active
            set: the slots of which the device's table said something else than
            the log, which it does no longer.
    """

    index: int
    what: str
    ranks: Tuple[int, ...]
    tensors: Tuple[str, ...] = ()
    shard: str = ""

    @classmethod
    def of(cls, d: _Json) -> Difference:
        return cls(d["index"], d["what"], tuple(d["ranks"]), tuple(d.get("tensors", ())), d.get("shard", ""))


@dataclass(frozen=True)
class Fence:
    """The answer to an epoch step, a fence, a reset or a resume, the same on
    every rank.

    In the mode observe it has no changes, and the slots as the trainer told
    them.

    Attributes:
        epoch: the last stepped one, -1: none.
        index: of the log entry.
        changes: slots whose seed, stage, alpha or frozen flag is another one
            than at the last fence, in slot order. To be applied now, between
            two optimizer steps.
        slots: every slot at this fence, by name, in slot order.
        plan: what the changes mean for the seeds' memory, in the order in which
            to do it.
        active_set: digest of what is active, 64 hexadecimal digits.
        differs: what was found since the last fence of the ranks' devices, by
            :meth:`Client.attest` and without.
        lost: on this rank, slots whose contents in the arena have to be loaded.
        moved: on this rank, esperd was started anew, and what is bound lies in
            its new arena: CUDA graphs over it have to be captured again.
    """

    epoch: int
    index: int
    changes: Tuple[Change, ...]
    slots: Mapping[str, Slot] = field(repr=False)
    plan: Tuple[Command, ...] = field(default=(), compare=False)
    active_set: str = field(default="", repr=False)
    differs: Tuple[Difference, ...] = ()
    lost: Tuple[str, ...] = ()
    moved: bool = False
    arena: Optional[_Json] = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, d: _Json, last: Optional[Fence] = None) -> Fence:
        """Read an answer, of which slots may be left out that are what they were at
        the last one."""
        # A Slot for each of hundreds takes longer than the fence, and few trainers look at them.
        changes, unread = tuple([Change.of(c) for c in d["changes"]]), _unread(d, last)
        f = _made(cls, epoch=d["epoch"], index=d["index"], changes=changes, active_set=d.get("active_set", ""), arena=d.get("arena"), _unread=unread)
        for name, kind in _FENCE_LISTS:
            if name in d:  # seldom
                f.__dict__[name] = tuple(kind.of(x) for x in d[name])
        return f

    if not TYPE_CHECKING:  # else every name would pass

        def __getattr__(self, name):
            """Read the slots when they are looked at."""
            unread = self.__dict__.get("_unread")
            if name != "slots" or unread is None:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            try:
                if isinstance(unread, Exception):
                    raise unread
                slots = {n: s if isinstance(s, Slot) else Slot.of(s) for n, s in unread.items()}
            except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
                from esperd.errors import EsperdError  # which needs this module

                raise EsperdError(f"entry {self.index} came with slots that this client does not understand: {type(error).__name__}: {error}") from error
            self.__dict__["_unread"] = slots  # the next fence's need not be read again
            own = self.__dict__["slots"] = dict(slots)
            return own


def kept_at(fence: Optional[Fence]) -> int:
    """Return the index of a fence whose slots need not be sent again; 0: none."""
    return fence.index if fence is not None and isinstance(fence.__dict__.get("_unread"), dict) else 0


def _unread(d: _Json, last: Optional[Fence]) -> Union[_Json, Exception]:
    """Return every slot of a fence's answer by name, as it came or as it was read
    before; an error to be raised when somebody looks at them, since the fence
    itself holds."""
    try:
        slots: _Json = {s["name"]: s for s in d["slots"]}
        since = d.get("since", 0)
        if since and (last is None or since != kept_at(last) or not slots.keys() <= last.__dict__["_unread"].keys()):
            raise ValueError(f"expected every slot, or those that changed since entry {kept_at(last)}, got some since {since}")
        return {**last.__dict__["_unread"], **slots} if since and last is not None else slots
    except (KeyError, TypeError, ValueError) as error:
        return error


_FENCE_LISTS: Tuple[Tuple[str, Any], ...] = (("plan", Command), ("differs", Difference))


@dataclass(frozen=True)
class Session:
    """Which log and round a client belongs to, as esperd said when it was
    connected last; the generation is the one now, and a reset or resume since then
    has set the epoch and the index."""

    run_id: str
    lineage: str
    node: str
    round: int
    model: str
    generation: int
    epoch: int  # the last stepped one then, -1: none
    index: int  # of the log entry of the last answered call then

    @classmethod
    def of(cls, d: _Json) -> Session:
        return cls(**{k: d[k] for k in cls.__dataclass_fields__})


def slots_of(d: _Json) -> Dict[str, Slot]:
    return {s["name"]: Slot.of(s) for s in d["slots"]}
