"""Numbered calls: made one after the other, each until it is answered, each
once.

A call's number is taken when it is in the log: granted, or refused by an entry.
Until then the same number is tried again, also with an esperd that was started
anew, which answers from the log if the call is there already.
"""

from __future__ import annotations

import base64
import dataclasses
import os
import threading
import weakref
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple, TypeVar

from esperd import _word
from esperd._door import BODY_BYTES_MAX, MARK_BODY_BYTES_MAX, Door, encoded
from esperd._mark import Mark
from esperd._riders import Riders
from esperd._site import call_site
from esperd._trainer import FOLLOW, KEYED, STRICT, WARN, Trainer
from esperd._unnumbered import Unnumbered
from esperd.errors import DecisionTimeout, Diverged, EsperdError, Refused, Unavailable
from esperd.values import Fence, Session, Slot, kept_at, slots_of

# Answers after which a call may or may not be in the log.
_OUTCOME_UNKNOWN = (DecisionTimeout, Diverged, Unavailable)

RESET, RESUME = "/v1/reset", "/v1/resume"

_T = TypeVar("_T")
_Json = Dict[str, Any]


class Place(NamedTuple):
    """Where a model stands. It changes in one assignment, between whose parts no
    signal comes."""

    call: int  # number of the next one, 0 being the configuration
    fence: int  # granted ones before it
    generation: int = 0
    fence_index: int = 0  # of the entry of the last fence call, granted or not; before it, of the session
    matched: int = 0  # how many calls since then were answered by an entry


class Pending(NamedTuple):
    """A call with a number, as often as it is tried."""

    path: str
    site: str
    body: bytes
    fences: bool
    begins: bool  # it sets generation and epoch: a reset, or a resume


class Calls:
    """The numbered calls of one model."""

    def __init__(self, trainer: Trainer, model: str, configuration: _Json) -> None:
        self.riders = Riders()
        self.slot_names: Tuple[str, ...] = ()
        self.word = _word.NOTHING
        self.seen = 0  # what the word was at the last fence
        self.unnumbered = Unnumbered(trainer, model, self._reopen)
        self._trainer = trainer
        self._model = model
        self._configuration = configuration
        self._lock = threading.Lock()  # held during a call; guards what follows
        self._door = Door(trainer)
        self._open = False  # the esperd behind the connection knows the session
        self._place = Place(0, 0)
        self._matched: List[int] = []  # indexes; what is behind place.matched is void
        self._session: Optional[Session] = None
        self._slots: Optional[Dict[str, Slot]] = None  # at the last answered call; None: those of the fence, or to be asked for
        self._fence: Optional[Fence] = None  # the answer of the last call, if that was one
        self._table: Optional[Fence] = None  # the last fence's, whose slots are not sent again
        self._word = _word.NO_WORD
        self._mark = b""
        _living.add(self)

    @property
    def session(self) -> Session:
        assert self._session is not None, "connect comes first"
        if self._session.generation == self._place.generation:
            return self._session
        return dataclasses.replace(self._session, generation=self._place.generation)

    def connect(self) -> None:
        """Make call 0, unless it is made: open the session, configure the model."""
        site = call_site()
        with self._lock:
            if self._session is None:
                self._door.persist(lambda: self._open_session(site), self._lost)

    def call(self, path: str, arguments: _Json, read: Callable[[_Json], _T], fences: bool = False, begins: bool = False) -> _T:
        """Make one numbered call and return what read makes of its answer.

        Args:
            fences: it closes a stretch of calls.
            begins: and sets the generation and the epoch.
        """
        site = call_site()
        self._trainer.check_process()
        with self._lock:
            answer = self._number(path, arguments, site, read, fences, begins)
            if isinstance(answer, Fence):
                self._fence = self._table = answer
                if begins:
                    self._session = dataclasses.replace(self.session, epoch=answer.epoch, index=answer.index)
            return answer

    def read_fence(self, d: _Json) -> Fence:
        """Read the answer to a fence."""
        return Fence.of(d, self._table)

    def checkpoint(self) -> Mark:
        """Take a mark of where the model stands."""
        site = call_site()
        self._trainer.check_process()
        with self._lock:
            place: _Json = {"session": self._trainer.incarnation, "model": self._model, "call": self._place.call}
            call = Pending("/v1/checkpoint", site, encoded(place), False, False)
            return self._door.read(lambda d: Mark(base64.b64decode(d["mark"], validate=True)), self._door.persist(lambda: self._try(call), self._lost))

    def comes_with(self, mark: bytes) -> None:
        """Have the session say which mark the model is to go back to, for a log
        that knows nothing of it."""
        self._mark = mark

    def note(self, slot: str, readings: _Json) -> None:
        """Have what was observed ride with the next numbered call."""
        self._trainer.check_process()
        if slot not in self.slot_names:
            some = ", ".join(self.slot_names[:16])
            raise Refused(f"observe: model {self._model} has no slot {slot!r}, expected one of {some}", code="unknown-slot")
        self.riders.add(slot, readings)

    def slots(self) -> Dict[str, Slot]:
        """Return every slot at the last answered call; in the mode follow, at the
        last fence."""
        site = call_site()
        self._trainer.check_process()
        with self._lock:
            if self._slots is None and self._fence is not None:
                self._slots = dict(self._fence.slots)
            if self._slots is None:  # a session that is opened again says them
                self._door.persist(lambda: self._open_session(site), self._lost)
            return dict(self._slots or {})

    def news(self) -> bool:
        """Look closer, since the word is not what it was at the last fence. It
        waits for no numbered call."""
        self._trainer.check_process()
        error = self.unnumbered.round_over(self.session.round, self.word[0])
        if error is not None:
            raise error
        return True

    def guarded(self, action: Callable[[], _T], otherwise: _T) -> _T:
        """Do something that may fail; in the mode observe it does not."""
        self._trainer.check_process()
        return action()

    def close(self) -> None:
        """End the connection, also under a call that waits; never wait for it."""
        if os.getpid() != self._trainer.pid:
            return  # the connection is the parent's
        self.unnumbered.close()
        self._door.close()
        if self._lock.acquire(blocking=False):  # else the call under way closes it
            self._door.release()
            self._lock.release()

    def forked(self) -> None:
        """Have check() look closer, in a child, whose process it is not."""
        self.word = _word.FORKED

    def _number(self, path: str, arguments: _Json, site: str, read: Callable[[_Json], _T], fences: bool, begins: bool) -> _T:
        place = self._place
        body: _Json = {"session": self._trainer.incarnation, "model": self._model, "call": place.call, "fence": place.fence, "site": site, **arguments}
        if fences and kept_at(self._table):
            body["since"] = kept_at(self._table)
        observations = self.riders.board()
        if observations:
            body["observations"] = observations
        try:
            pending = Pending(path, site, encoded(body, MARK_BODY_BYTES_MAX if path == RESUME else BODY_BYTES_MAX), fences, begins)
        except Refused:
            self.riders.stay()
            raise
        return self._make(pending, read)

    def _make(self, call: Pending, read: Callable[[_Json], _T]) -> _T:
        """Make a call until it is known what became of it."""
        try:
            document = self._door.persist(lambda: self._try(call), self._lost)
            answer, index = self._door.read(lambda d: (read(d), int(d["index"])), document)
        except EsperdError as error:
            if error.index:  # refused, in the log
                self._taken(call, error.index, granted=False)
            elif outcome_known(error):
                self.riders.stay()
            raise
        self._taken(call, index, granted=True, generation=document.get("generation", 0))
        return answer

    def _taken(self, call: Pending, index: int, granted: bool, generation: int = 0) -> None:
        """Go on to the next number, as the last step: a trainer that is
        interrupted before makes the same call again, and is answered the same."""
        self.riders.land()
        number, fence, before, fence_index, matched = self._place
        if call.fences:
            self.seen = index or self.word[0]
            fence, fence_index, matched = fence + granted, index or fence_index, 0
        elif index and self._trainer.ordering == WARN:
            self._matched[matched:] = [index]
            matched += 1
        if call.fences or self._trainer.mode != FOLLOW:
            self._slots = self._fence = None
        self._place = Place(number + 1, fence, generation or before + (granted and call.path == RESET), fence_index, matched)

    def _lost(self) -> None:
        self._open = False

    def _reopen(self) -> None:
        """Open the session anew for a call without a number, unless a call with
        one is under way, which does it by itself."""
        site = call_site()
        if self._lock.acquire(blocking=False):
            try:
                self._open_session(site)
            finally:
                self._lock.release()

    def _try(self, call: Pending) -> _Json:
        if not self._open:
            self._open_session(call.site)
        return self._door.ask(call.path, call.body)

    def _open_session(self, site: str) -> None:
        """Open the session, or return to it with the last answered call."""
        request: _Json = {**self._trainer.request(), **self._configuration, "model": self._model, "site": site, **self._returning()}
        limit = BODY_BYTES_MAX
        if self._mark and self._session is None:
            request["resume"], limit = base64.b64encode(self._mark).decode(), MARK_BODY_BYTES_MAX
        document = self._door.ask("/v1/session", encoded(request, limit))
        session = self._door.read(Session.of, document)
        slots = self._door.read(slots_of, document)
        call, fence = self._door.read(lambda d: (int(d["next_call"]), int(d["next_fence"])), document)
        place = self._place
        if self._session is None:
            place = Place(call, fence, session.generation, session.index)
            self.slot_names = tuple(slots)
            self.seen = session.index
        elif (call, fence) != (place.call, place.fence):
            raise self._door.differs(
                f"expects call {call} after {fence} fences, and this client's next is {place.call} after {place.fence}"
            )
        self._word = _word.remapped(self._word, document.get("word"))
        self.word = self._word.value
        self._slots, self._place = slots, place._replace(generation=session.generation)
        self._session, self._open = session, True

    def _returning(self) -> _Json:
        """Return what a client that was connected before says of itself."""
        if self._session is None:
            return {}
        place, mode, ordering = self._place, self._trainer.mode, self._trainer.ordering
        out: _Json = {"answered": place.call - 1, "round": self._session.round, "lineage": self._session.lineage}
        if (mode, ordering) != (KEYED, STRICT):  # numbers alone do not say where it stands
            out["fence_index"] = place.fence_index
        if ordering == WARN:
            out["matched"] = self._matched[: place.matched]
        if self._trainer.observes:  # nor do entries
            out["fences"] = place.fence
        return out


def outcome_known(error: EsperdError) -> bool:
    """Tell whether a call that raised without an index is certainly not in the
    log."""
    return bool(error.code) and not isinstance(error, _OUTCOME_UNKNOWN)


_living: "weakref.WeakSet[Calls]" = weakref.WeakSet()


def _forked() -> None:
    for calls in _living:
        calls.forked()


os.register_at_fork(after_in_child=_forked)
