"""The mode observe: calls tell what the trainer did by itself.

Nothing may hold up or fail a training that esperd only looks at. So a call
returns what it was told, and one that cannot be delivered is let go.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from typing import Any, Callable, Dict, Optional, Set, Tuple, Type, TypeVar

from esperd._arguments import slot_path
from esperd._calls import RESET, Calls, Pending, outcome_known
from esperd._mark import Mark
from esperd._trainer import Trainer
from esperd._unnumbered import OBSERVED_S
from esperd.errors import EsperdError, Unavailable
from esperd.values import Decision, Done, Fence, Session, Slot

_RETRY_MIN_S = 10.0
_RETRY_MAX_S = 60.0  # a stopped esperd costs OBSERVED_S each time
_OPEN_S = 10.0  # for rank 0's configuration of another model

_GATE_INTO = {"GERMINATED": "G0", "TRAINING": "G1", "BLENDING": "G2", "HOLDING": "G3", "FOSSILIZED": "G5"}

_AWAY = ("", Unavailable.code)

_log = logging.getLogger("esperd")

_T = TypeVar("_T")
_Json = Dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Told:
    """All that is read of an answer."""

    index: int

    @classmethod
    def of(cls, d: _Json) -> "Told":
        return cls(int(d["index"]))


class _Pause:
    """The time in which esperd, which was away, is not tried, longer each time."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._until = 0.0  # on the monotonic clock

    def on(self) -> bool:
        return time.monotonic() < self._until

    def begin(self) -> None:
        self._seconds = min(2 * self._seconds, _RETRY_MAX_S) or _RETRY_MIN_S
        self._until = time.monotonic() + self._seconds

    def end(self) -> None:
        self._seconds = 0.0


class Observed(Calls):
    """The calls of one model in the mode observe.

    Args:
        beside: the session of the trainer's first model; None: this is it.
    """

    def __init__(self, trainer: Trainer, model: str, configuration: _Json, beside: Optional[Session]) -> None:
        super().__init__(trainer, model, configuration)
        self._beside = beside
        self._begun = False
        self._told: Dict[str, Slot] = {}  # by the trainer's own account
        self._unsettled: Optional[Pending] = None  # a call that may or may not have been taken
        self._untold = False  # others were made since the last one that was told, or is unsettled
        self._pause = _Pause()
        self._aside = _Pause()  # of what has no number
        self._warned: Set[Tuple[str, str]] = set()  # kinds of failures
        self.unnumbered.away = lambda: self._pause.on() or self._aside.on()

    @property
    def session(self) -> Session:
        if self._session is None and self._beside is not None:
            return dataclasses.replace(self._beside, model=self._model, generation=1, epoch=-1, index=0)
        return super().session

    def connect(self) -> None:
        if self._begun:
            return
        if self._beside is None:
            super().connect()
        else:  # the training has begun
            self._door.hurry(_OPEN_S)
            try:
                super().connect()
            except EsperdError as error:
                self._pause.begin()
                self._missed(error, "call")
        self._door.hurry(OBSERVED_S)
        self.slot_names = self.slot_names or tuple(s["name"] for s in self._configuration.get("slots", ()))
        self._told = dict(self._slots or {name: Slot(name, "DORMANT", 0.0, 0) for name in self.slot_names})
        self._begun = True

    def tell(self, slot: str, operation: str, arguments: _Json, answer: "Type[_Answer]") -> "_Answer":
        """Make a call on a slot and echo it."""
        index = self._tell(lambda: self.call(slot_path(slot, operation), arguments, Told.of))
        (outcome,) = arguments["outcomes"]
        after = self._learn(slot, outcome, arguments)
        if answer is Decision:
            return _decision(after, outcome, arguments, index)  # type: ignore[return-value]  # it is one
        return Done(slot, after.seed, after.stage, after.alpha, index)  # type: ignore[return-value]  # likewise

    def tell_fence(self, path: str, arguments: _Json, epoch: int, begins: bool = False) -> Fence:
        """Make a call that closes a stretch of calls and echo it."""
        index = self._tell(lambda: self.call(path, arguments, Told.of, fences=True, begins=begins))
        if path == RESET:
            self._told = {name: Slot(name, "DORMANT", 0.0, 0) for name in self._told}
        for outcome in arguments.get("outcomes", ()):
            self._learn(outcome["slot"], outcome, {})
        return Fence(epoch, index, (), dict(self._told))

    def note(self, slot: str, readings: _Json) -> None:
        try:
            super().note(slot, readings)
        except EsperdError as error:
            self._missed(error, "observe")

    def slots(self) -> Dict[str, Slot]:
        return dict(self._told)

    def checkpoint(self) -> Mark:
        """Nothing to go back to: the log of an observed training is behind it."""
        return Mark()

    def news(self) -> bool:
        if not self._pause.on():
            try:
                super().news()
            except EsperdError as error:
                self._missed(error, "call")
        return True

    def guarded(self, action: Callable[[], _T], otherwise: _T) -> _T:
        """Do what has no number. That it fails keeps no call from being told."""
        if self.unnumbered.away():
            return otherwise
        try:
            self._trainer.check_process()
            result = action()
        except EsperdError as error:
            if isinstance(error, Unavailable):
                self._aside.begin()
            self._missed(error, "request")
            return otherwise
        self._heard(self._aside)
        return result

    def _tell(self, call: Callable[[], Told]) -> int:
        """Make a call and return its index; 0 also if it could not be told."""
        if self._pause.on():
            self._untold = True
            return 0
        try:
            index = call().index
        except EsperdError as error:
            if self._unsettled is None:
                self._untold = True
            if isinstance(error, Unavailable) or not self._open:
                self._pause.begin()
            self._missed(error, "call")
            return 0
        self._heard(self._pause)
        return index

    def _number(self, path: str, arguments: _Json, site: str, read: Callable[[_Json], _T], fences: bool, begins: bool) -> _T:
        if self._session is None:  # another model, which could not be opened then
            self._door.persist(lambda: self._open_session(site), self._lost)
            self._told = {**(self._slots or {}), **self._told}
        if self._unsettled is not None:
            try:
                self._make(self._unsettled, Told.of)
            except EsperdError as error:
                self._untold = True  # that call, or else this one
                if self._unsettled is not None:
                    raise
                self._missed(error, "call")
        if self._untold:
            # A session that is opened again says that calls may be missing: esperd
            # compares this rank's with rank 0's from the next fence on.
            self._open = self._untold = False
        return super()._number(path, arguments, site, read, fences, begins)

    def _make(self, call: Pending, read: Callable[[_Json], _T]) -> _T:
        """A trainer that goes on does not repeat a call, so that is done here,
        before its number is given to the next one."""
        self._unsettled = call
        try:
            answer = super()._make(call, read)
        except EsperdError as error:
            if error.index or outcome_known(error):
                self._unsettled = None
            raise
        self._unsettled = None
        return answer

    def _missed(self, error: EsperdError, what: str) -> None:
        """Warn, once for each outage and for each kind of refusal."""
        kind = _AWAY if isinstance(error, Unavailable) else (what, error.code)
        level = logging.DEBUG if kind in self._warned else logging.WARNING
        self._warned.add(kind)
        _log.log(level, "model %s: %s; this is only observed, and the training goes on without", self._model, error)

    def _heard(self, pause: _Pause) -> None:
        pause.end()
        self._warned.discard(_AWAY)

    def _learn(self, name: str, outcome: _Json, arguments: _Json) -> Slot:
        """Take note of an outcome and return the slot after it."""
        slot = self._told.get(name, Slot(name, "DORMANT", 0.0, 0))
        stage, alpha, blueprint = outcome["stage"], float(outcome["alpha"]), arguments.get("blueprint", "")
        if stage == "DORMANT":
            slot = Slot(name, stage, 0.0, slot.germinations)
        elif blueprint or not slot.seed:  # it germinates, or did before anybody looked
            count = slot.germinations + 1
            slot = Slot(name, stage, alpha, count, count, arguments.get("seed_id", f"{name}-{blueprint}" if blueprint else ""), blueprint)
        else:
            slot = dataclasses.replace(slot, stage=stage, alpha=alpha)
        if name in self._told:
            self._told[name] = slot
        return slot


def _decision(slot: Slot, outcome: _Json, arguments: _Json, index: int) -> Decision:
    into = str(arguments.get("target", slot.stage))
    return Decision(
        gate=str(arguments.get("gate", _GATE_INTO.get(into, ""))),
        passed=bool(outcome.get("passed", arguments.get("passed"))),
        score=float(arguments.get("score", 0.0)),
        checks_passed=tuple(arguments.get("checks_passed", ())),
        checks_failed=tuple(arguments.get("checks_failed", ())),
        message=arguments.get("message", ""),
        slot=slot.name,
        seed=slot.seed,
        stage=slot.stage,
        index=index,
        local=None,
        agreed=True,
    )


_Answer = TypeVar("_Answer", Decision, Done)
