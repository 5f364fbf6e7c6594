"""Calls without a number: they may be made at any time, in any thread, and
repeated. Each has a connection of its own, so that none waits for the numbered
call that is under way.
"""

from __future__ import annotations

import logging
import os
import time
from typing import Any, Callable, Dict, List, Optional, Set, Tuple, TypeVar, Union

from esperd._door import Door, encoded
from esperd._http import Absent, Lost, Silent, Unreadable
from esperd._last_calls import last_calls
from esperd._trainer import Trainer
from esperd.errors import Diverged, EsperdError, RoundFaulted, Unavailable, error_of_fault
from esperd.evidence import Fault, LastCall

__all__ = ["Busy", "Unnumbered"]

QUICK_S = 2.0  # for what must not hold anybody up
OBSERVED_S = 0.5  # likewise, where nothing is decided

_LOOK_AGAIN_S = 1.0  # after a look that failed
_LOOK_REST = 5  # and so many times what it took

# esperd is away, or answers what this client does not know.
_NO_ANSWER = (Absent, Lost, Silent, Unreadable, EsperdError, AttributeError, KeyError, TypeError, ValueError)

_log = logging.getLogger("esperd")

_T = TypeVar("_T")
_Json = Dict[str, Any]


class Busy:
    """What :meth:`Client.busy` returns: it ends with a ``with`` block, by
    :meth:`done`, or by itself when the seconds are over."""

    def __init__(self, end: Callable[[], None]) -> None:
        """Not for users: see :meth:`Client.busy`."""
        self._end = end

    def done(self) -> None:
        """Say that this rank is not busy any more. It never raises."""
        self._end()

    def __enter__(self) -> "Busy":
        return self

    def __exit__(self, *_: object) -> None:
        self.done()


class Unnumbered:
    """The calls of one model that have no number."""

    def __init__(self, trainer: Trainer, model: str, reopen: Callable[[], None]) -> None:
        self._trainer = trainer
        self._model = model
        self._reopen = reopen
        self._doors: Set[Door] = set()  # of the calls that are under way
        self._closed = False
        self.away: Callable[[], bool] = lambda: False  # esperd is known to be, so that telling it something is no use
        self._quick_s = OBSERVED_S if trainer.observes else QUICK_S
        self._looked: Tuple[int, _Json, List[LastCall]] = (0, {}, [])  # the word when the round was asked for, the round, and what the ranks did last
        self._look_at = 0.0  # on the monotonic clock: when a look that failed is repeated

    def request(self, arguments: _Json) -> int:
        """Put a request into the log and return its index."""
        body = {"session": self._trainer.incarnation, "model": self._model, **arguments}
        return self._ask("/v1/requests", body, lambda d: int(d["index"]))

    def vote(self, path: str, arguments: _Json) -> None:
        """Say whether there is room for a seed."""
        if not self._trainer.observes:  # where nobody waits for it
            self._ask(path, {"session": self._trainer.incarnation, "model": self._model, **arguments}, lambda d: None)

    def ask(self, path: str, arguments: _Json) -> _Json:
        """Make a call of the arena's."""
        return self._ask(path, {"session": self._trainer.incarnation, "model": self._model, **arguments}, lambda d: d)

    def busy(self, reason: str, seconds: Union[float, str]) -> None:
        self._ask("/v1/busy", self._busy(reason, seconds), lambda d: None)

    def busy_no_more(self, reason: str) -> None:
        if os.getpid() == self._trainer.pid and not self.away():  # a forked child leaves the block, too
            self._try_to_tell("/v1/busy", self._busy(reason, 0.0), self._quick_s)

    def goodbye(self, failed: str) -> None:
        """Tell that the trainer ends."""
        body = {"session": self._trainer.incarnation}
        if failed:
            body["failed"] = failed
        self._try_to_tell("/v1/close", body, QUICK_S)

    def round_over(self, number: int, word: int) -> Optional[Union[RoundFaulted, Diverged]]:
        """Return why a round is over, None if it is not or if nobody knows. It
        asks once for each value of the word, and again, but not at once, if that
        has failed: the entry that ends a round is the last one there is."""
        if self._looked[0] != word and time.monotonic() >= self._look_at:
            began = time.monotonic()
            try:
                self._looked = (word, *self._look(number, word))
            except _NO_ANSWER as error:
                now = time.monotonic()
                self._look_at = now + max(_LOOK_AGAIN_S, _LOOK_REST * (now - began))
                _log.debug("whether round %d is over cannot be told: %s", number, error)
        return _over(self._looked[1], number, self._looked[2], self._trainer.rank)

    def close(self) -> None:
        """End what is under way in other threads."""
        self._closed = True
        for door in tuple(self._doors):
            door.close()

    def _busy(self, reason: str, seconds: Union[float, str]) -> _Json:
        return {"session": self._trainer.incarnation, "reason": reason, "seconds": seconds}

    def _ask(self, path: str, body: _Json, read: Callable[[_Json], _T]) -> _T:
        door, request = Door(self._trainer, self._quick_s if self._trainer.observes else None), encoded(body)

        def attempt() -> _Json:
            try:
                return door.ask(path, request)
            except Unavailable as error:
                if error.index or self._trainer.observes:
                    raise
                self._reopen()  # esperd may have been started anew, and not know the session
                return door.ask(path, request)

        self._doors.add(door)
        try:
            if self._closed:
                door.close()
            return door.read(read, door.persist(attempt))
        finally:
            self._doors.discard(door)
            door.release()

    def _look(self, number: int, word: int) -> Tuple[_Json, List[LastCall]]:
        """Return the round that is open, as esperd knows it, and if it is faulted
        what the ranks did last."""
        door = Door(self._trainer, self._quick_s)
        try:
            document = door.look("/v1/state")
        finally:
            door.release()
        now = dict(document["round"] or {})
        over = _over(now, number, [])
        if over is None and document["index"] < word:
            raise Unavailable(f"esperd, which was started a moment ago, is at entry {document['index']}, and the word at {word}")
        return now, last_calls(self._trainer.socket, self._model) if over is not None and over.fault else []

    def _try_to_tell(self, path: str, body: _Json, quick_s: float) -> None:
        door = Door(self._trainer, quick_s)
        try:
            door.ask(path, encoded(body))
        except Exception as error:  # also at the interpreter's end, where much is gone
            _log.debug("%s: %s", path, error)
        finally:
            door.release()


def _over(now: _Json, number: int, last: List[LastCall], rank: Optional[int] = None) -> Optional[Union[RoundFaulted, Diverged]]:
    """Return why a round is over, by the one that is open."""
    if now and now["number"] > number:
        return RoundFaulted(f"round {number} is over: the trainers connected again, and round {now['number']} is open; end this process")
    fault = now.get("fault")
    return error_of_fault(Fault.of(fault), last, rank) if fault else None
