"""Numbered calls: made one after the other, each until it is answered, each
once.

A call's number is taken when it is in the log: granted, or refused by an entry.
Until then the same number is tried again, also with an esperd that was started
anew, which answers from the log if the call is there already.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from dataclasses import dataclass
from typing import Any, Callable, Dict, NamedTuple, Optional, Tuple, TypeVar

from esperd._http import Absent, Connection, Lost, Silent, Unreadable
from esperd._riders import Riders
from esperd._site import call_site
from esperd.errors import DecisionTimeout, Diverged, EsperdError, Refused, Unavailable, error_of
from esperd.values import Fence, Session, Slot, slots_of

PROTOCOL_VERSION = 1  # of the trainer's door
BODY_BYTES_MAX = 8 << 20  # what the door takes

_BACKOFF_MIN_S = 0.01
_BACKOFF_MAX_S = 2.0
_WARN_AFTER_S = 5.0
_WAS_THERE_S = 1.0  # an esperd that held a request for so long was not away

# Answers after which a call may or may not be in the log.
_OUTCOME_UNKNOWN = (DecisionTimeout, Diverged, Unavailable)

_log = logging.getLogger("esperd")
_dumps = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode

_T = TypeVar("_T")
_Json = Dict[str, Any]


@dataclass(frozen=True)
class Trainer:
    """Who calls: one process, for all of its models.

    Attributes:
        incarnation: random, chosen once; kept when reconnecting.
        away_timeout_s: how long esperd may be away before a call gives up.
        answer_timeout_s: how long one request waits for its answer.
        pid: of the process that connected.
    """

    socket: str
    rank: int
    world_size: int
    run_id: str
    fingerprint: str
    incarnation: str
    away_timeout_s: float
    answer_timeout_s: float
    pid: int

    def check_process(self) -> None:
        """A forked child shares the parent's connection, and must not use it."""
        if os.getpid() != self.pid:
            raise Refused(
                f"this client belongs to process {self.pid}, and this is process {os.getpid()}, forked from it (a DataLoader "
                "worker?): make the calls in the process that connected",
                code="not-authority",
            )

    def request(self) -> _Json:
        """Return what a request for a session says about the trainer."""
        r: _Json = {"protocol": PROTOCOL_VERSION, "rank": self.rank, "world_size": self.world_size, "incarnation": self.incarnation}
        if self.run_id:
            r["run_id"] = self.run_id
        if self.fingerprint:
            r["fingerprint"] = self.fingerprint
        return r


class Place(NamedTuple):
    """Number of the next call, 0 being the configuration, and the fences before
    it. The two change in one assignment, between which no signal comes."""

    call: int
    fence: int


class Calls:
    """The numbered calls of one model."""

    def __init__(self, trainer: Trainer, model: str, configuration: _Json) -> None:
        self.riders = Riders()
        self.slot_names: Tuple[str, ...] = ()
        self._trainer = trainer
        self._model = model
        self._door = f"what serves {trainer.socket}"
        self._configuration = configuration
        self._lock = threading.Lock()  # held during a call; guards what follows
        self._connection = Connection(trainer.socket, trainer.answer_timeout_s)
        self._open = False  # the esperd behind the connection knows the session
        self._place = Place(0, 0)
        self._session: Optional[Session] = None
        self._slots: Optional[Dict[str, Slot]] = None  # at the last answered call; None: to be asked for
        self._closed = False  # set without the lock

    @property
    def session(self) -> Session:
        assert self._session is not None, "connect comes first"
        return self._session

    def connect(self) -> None:
        """Make call 0, unless it is made: open the session, configure the model."""
        site = call_site()
        with self._lock:
            if self._session is None:
                self._persist(lambda: self._open_session(site))
                self.slot_names = tuple(self._slots or ())

    def call(self, path: str, arguments: _Json, read: Callable[[_Json], _T]) -> _T:
        """Make one numbered call and return what read makes of its answer."""
        site = call_site()
        self._trainer.check_process()
        with self._lock:
            return self._number(path, arguments, site, read, fences=0)

    def fence(self, path: str, arguments: _Json) -> Fence:
        """Make a numbered call that closes a stretch of calls."""
        site = call_site()
        self._trainer.check_process()
        with self._lock:
            fence = self._number(path, arguments, site, Fence.of, fences=1)
            self._slots = dict(fence.slots)
            return fence

    def slots(self) -> Dict[str, Slot]:
        """Return every slot at the last answered call."""
        site = call_site()
        self._trainer.check_process()
        with self._lock:
            if self._slots is None:  # a session that is opened again says them
                self._persist(lambda: self._open_session(site))
            return dict(self._slots or {})

    def close(self) -> None:
        """End the connection, also under a call that waits; never wait for it."""
        if os.getpid() != self._trainer.pid:
            return  # the connection is the parent's
        self._closed = True
        self._connection.abort()
        if self._lock.acquire(blocking=False):  # else the call under way closes it
            self._connection.close()
            self._lock.release()

    def _number(self, path: str, arguments: _Json, site: str, read: Callable[[_Json], _T], fences: int) -> _T:
        body: _Json = {"session": self._trainer.incarnation, "model": self._model, **self._place._asdict(), "site": site, **arguments}
        observations = self.riders.board()
        if observations:
            body["observations"] = observations
        try:
            encoded = _encoded(body)
            answer = self._read(read, self._persist(lambda: self._try(path, site, encoded)))
        except EsperdError as error:
            if error.index:  # refused, in the log
                self._taken(0)
            elif error.code and not isinstance(error, _OUTCOME_UNKNOWN):
                self.riders.stay()
            raise
        self._taken(fences)
        return answer

    def _taken(self, fences: int) -> None:
        """Go on to the next number, as the last step: a trainer that is
        interrupted before makes the same call again, and is answered the same."""
        self.riders.land()
        self._slots = None
        self._place = Place(self._place.call + 1, self._place.fence + fences)

    def _persist(self, attempt: Callable[[], _T]) -> _T:
        """Repeat an attempt while esperd is away, or says that it cannot now."""
        pause, away_since, warned = _BACKOFF_MIN_S, None, False
        while True:
            if self._closed:
                raise Unavailable("this client was closed: expected an open one; esperd.connect() gives another")
            began = time.monotonic()
            try:
                return attempt()
            except (Absent, Lost, Unavailable) as error:
                if isinstance(error, Unavailable) and error.index:
                    raise
                failure = error
            except Silent:
                limit = self._trainer.answer_timeout_s
                raise DecisionTimeout(f"{self._door} has not answered for {limit:g} s: see esperd ranks, and its log") from None
            except Unreadable as error:
                raise self._unreadable(str(error)) from error
            self._open = False
            now = time.monotonic()
            was_there = isinstance(failure, Lost) and now - began > _WAS_THERE_S
            if away_since is None or was_there:
                pause, away_since = _BACKOFF_MIN_S, now
            if now - away_since + pause > self._trainer.away_timeout_s:
                raise self._gone(failure) from failure
            if not warned and now - away_since > _WARN_AFTER_S:
                warned = True
                _log.warning("%s does not answer (%s); trying for %g s in all", self._door, failure, self._trainer.away_timeout_s)
            time.sleep(pause)
            pause = min(2 * pause, _BACKOFF_MAX_S)

    def _gone(self, failure: Exception) -> Unavailable:
        if isinstance(failure, Unavailable):
            return failure
        return Unavailable(
            f"{self._door} has not answered for {self._trainer.away_timeout_s:g} s ({failure}): start it for rank "
            f"{self._trainer.rank}, or point ESPERD_SOCKET at its socket; the same call may then be made again"
        )

    def _try(self, path: str, site: str, body: bytes) -> _Json:
        if not self._open:
            self._open_session(site)
        return self._ask(path, body)

    def _open_session(self, site: str) -> None:
        """Open the session, or return to it with the last answered call."""
        request: _Json = {**self._trainer.request(), **self._configuration, "model": self._model, "site": site}
        if self._session is not None:
            request.update(answered=self._place.call - 1, round=self._session.round, lineage=self._session.lineage)
        document = self._ask("/v1/session", _encoded(request))
        session = self._read(Session.of, document)
        slots = self._read(slots_of, document)
        place = self._read(lambda d: Place(int(d["next_call"]), int(d["next_fence"])), document)
        if self._session is not None and place != self._place:
            raise EsperdError(
                f"{self._door} expects call {place.call} after {place.fence} fences, and this client's next is {self._place.call} "
                f"after {self._place.fence}: this is a bug"
            )
        self._session, self._slots, self._place, self._open = session, slots, place, True

    def _ask(self, path: str, body: bytes) -> _Json:
        status, answer = self._connection.request("POST", path, body)
        try:
            document = json.loads(answer)
        except ValueError:
            raise self._unreadable(f"HTTP status {status} and no JSON, but {answer[:200]!r}") from None
        if status >= 300:
            raise self._read(error_of, document)
        return document  # type: ignore[no-any-return]  # read checks it

    def _read(self, read: Callable[[_Json], _T], document: _Json) -> _T:
        try:
            return read(document)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self._unreadable(f"{type(error).__name__}: {error} in {str(document)[:200]}") from error

    def _unreadable(self, why: str) -> EsperdError:
        return EsperdError(f"{self._door} is no esperd that this client understands: {why}; use the same version of both")


def _encoded(body: _Json) -> bytes:
    """Write a request. One that esperd would not take is refused here: it would
    close the connection on a client that still writes."""
    encoded = _dumps(body).encode("ascii")
    if len(encoded) > BODY_BYTES_MAX:
        raise Refused(
            f"the request has {len(encoded)} bytes, expected at most {BODY_BYTES_MAX}: shorten its arguments; it was not sent, and "
            "its number is free"
        )
    return encoded
