"""Asking what serves the trainer's socket, also while it is away for a while."""

from __future__ import annotations

import json
import logging
import time
from typing import Any, Callable, Dict, Optional, TypeVar

from esperd._http import Absent, Connection, Lost, Silent, Unreadable
from esperd._trainer import Trainer
from esperd.errors import EsperdError, Refused, Unavailable, error_of

BODY_BYTES_MAX = 8 << 20  # what the door takes
MARK_BODY_BYTES_MAX = BODY_BYTES_MAX + ((24 << 20) + 2) // 3 * 4  # where a mark comes with it

_BACKOFF_MIN_S = 0.01
_BACKOFF_MAX_S = 2.0
_WARN_AFTER_S = 5.0
_WAS_THERE_S = 1.0  # an esperd that held a request for so long was not away
_HURRIED_AWAY_S = 0.05  # enough for a connection that has become stale

_log = logging.getLogger("esperd")
_dumps = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
_loads = json.JSONDecoder().raw_decode

_T = TypeVar("_T")
_Json = Dict[str, Any]


def _nothing() -> None:
    pass


class Door:
    """One connection, and the patience with it."""

    def __init__(self, trainer: Trainer, answer_timeout_s: Optional[float] = None) -> None:
        """answer_timeout_s: None: the trainer's patience; a number: be quick,
        and do not wait for an esperd that is away."""
        self._trainer = trainer
        self._name = f"what serves {trainer.socket}"
        self._answer_timeout_s = trainer.answer_timeout_s
        self._away_timeout_s = trainer.away_timeout_s
        self._connection = Connection(trainer.socket, trainer.answer_timeout_s, probed=True)
        self._closed = False
        if answer_timeout_s is not None:
            self.hurry(answer_timeout_s)

    def hurry(self, answer_timeout_s: float) -> None:
        """From now on be quick."""
        self._answer_timeout_s, self._away_timeout_s = answer_timeout_s, _HURRIED_AWAY_S
        self._connection.hurry(answer_timeout_s)

    def persist(self, attempt: Callable[[], _T], lost: Callable[[], None] = _nothing) -> _T:
        """Repeat an attempt while esperd is away, or says that it cannot now;
        lost is told of each time that it failed."""
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
                lost()
                raise self._silent() from None
            except Unreadable as error:
                raise self._unreadable(str(error)) from error
            lost()
            now = time.monotonic()
            was_there = isinstance(failure, Lost) and now - began > _WAS_THERE_S
            if away_since is None or was_there:
                pause, away_since = _BACKOFF_MIN_S, now
            if now - away_since + pause > self._away_timeout_s:
                raise self._gone(failure) from failure
            if not warned and now - away_since > _WARN_AFTER_S:
                warned = True
                _log.warning("%s does not answer (%s); trying for %g s in all", self._name, failure, self._away_timeout_s)
            time.sleep(pause)
            pause = min(2 * pause, _BACKOFF_MAX_S)

    def ask(self, path: str, body: bytes) -> _Json:
        """Make one POST, once. Raises what the answer says, and what the
        connection does."""
        return self._document(*self._connection.request("POST", path, body))

    def look(self, path: str) -> _Json:
        """Make one GET, likewise."""
        return self._document(*self._connection.request("GET", path))

    def read(self, read: Callable[[_Json], _T], document: _Json) -> _T:
        """Return what read makes of an answer."""
        try:
            return read(document)
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise self._unreadable(f"{type(error).__name__}: {error} in {str(document)[:200]}") from error

    def differs(self, why: str) -> EsperdError:
        return EsperdError(f"{self._name} {why}: this is a bug")

    def close(self) -> None:
        """End a request that waits in another thread; never wait for it."""
        self._closed = True
        self._connection.abort()

    def release(self) -> None:
        """Close the connection; nobody is in a request."""
        self._connection.close()

    def _document(self, status: int, answer: bytes) -> _Json:
        try:
            text = answer.decode().strip()
            document, end = _loads(text)
            if end < len(text):
                raise ValueError("more than one value")
        except (RecursionError, ValueError):
            raise self._unreadable(f"HTTP status {status} and no JSON, but {answer[:200]!r}") from None
        if status >= 300:
            raise self.read(error_of, document)
        return document  # type: ignore[no-any-return]  # read checks it

    def _silent(self) -> Unavailable:
        return Unavailable(
            f"{self._name} has given no sign of life for {self._answer_timeout_s:g} s, neither the answer nor one to GET /healthz: "
            "see whether it is stopped, and its log; the same call may then be made again"
        )

    def _gone(self, failure: Exception) -> Unavailable:
        if isinstance(failure, Unavailable):
            return failure
        return Unavailable(
            f"{self._name} has not answered for {self._away_timeout_s:g} s ({failure}): start it for rank "
            f"{self._trainer.rank}, or point ESPERD_SOCKET at its socket; the same call may then be made again"
        )

    def _unreadable(self, why: str) -> EsperdError:
        return EsperdError(f"{self._name} is no esperd that this client understands: {why}; use the same version of both")


def encoded(body: _Json, limit: int = BODY_BYTES_MAX) -> bytes:
    """Write a request. One that esperd would not take is refused here: it would
    close the connection on a client that still writes."""
    b = _dumps(body).encode("ascii")
    if len(b) > limit:
        raise Refused(
            f"the request has {len(b)} bytes, expected at most {limit}: shorten its arguments; it was not sent, and "
            "its number is free"
        )
    return b
