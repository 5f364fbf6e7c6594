"""Observations on their way into the log."""

from __future__ import annotations

import threading
from typing import Any, Dict, List, Optional

_Readings = Dict[str, Any]


class Riders:
    """What was observed since the last answered call. It rides with the next
    numbered one.

    Observations wait for nobody, so they have a lock of their own, which no
    call holds while it waits. There is at most one for each slot: a later
    reading of the same field takes the earlier one's place, as it would in the
    log, so that a trainer which observes every step needs no more memory.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: Dict[str, _Readings] = {}
        self._aboard: Optional[Dict[str, _Readings]] = None  # None: no call is under way

    def add(self, slot: str, readings: _Readings) -> None:
        with self._lock:
            _merge(self._waiting.setdefault(slot, {}), readings)

    def board(self) -> List[_Readings]:
        """Return those that go with the next call: the same ones each time until
        it has landed, since a try whose outcome is unknown may have put them
        into the log."""
        with self._lock:
            if self._aboard is None:
                self._aboard, self._waiting = self._waiting, {}
            return [{"slot": slot, **readings} for slot, readings in self._aboard.items()]

    def land(self) -> None:
        """Drop those that went with the call: it is in the log."""
        with self._lock:
            self._aboard = None

    def stay(self) -> None:
        """Keep those that went with the call: it is certainly not in the log."""
        with self._lock:
            later, self._waiting = self._waiting, self._aboard or {}
            self._aboard = None
            for slot, readings in later.items():
                _merge(self._waiting.setdefault(slot, {}), readings)


def _merge(into: _Readings, readings: _Readings) -> None:
    for name, value in readings.items():
        if value is None and name == "accuracy":
            into.setdefault(name, None)  # "not measured" takes no accuracy back
        else:
            into[name] = value
