"""Telling the trainer at once that its round is over.

A rank that waits in a collective makes no call that could tell it. A thread
follows the log instead, over a connection of its own.
"""

from __future__ import annotations

import json
import logging
import threading
from typing import Any, Callable, Dict, Optional, Union

from esperd._http import Absent, Connection, Lost, Silent, Unreadable
from esperd._last_calls import last_calls
from esperd._trainer import Trainer
from esperd.errors import Diverged, RoundFaulted, error_of_fault
from esperd.evidence import Fault

_RETRY_S = 0.5
_JOIN_MAX_S = 1.0
_FAULT_MARK = b'"round_faulted"'
_ROUND_MARK = b'"round_opened"'

# esperd goes, comes back, or answers what this client does not know.
_PASSING = (Absent, Lost, Silent, Unreadable, OSError, AttributeError, KeyError, TypeError, ValueError)

_log = logging.getLogger("esperd")

OnFatal = Callable[[Union[RoundFaulted, Diverged]], object]


class FaultWatch(threading.Thread):
    """Calls on_fatal, once, as soon as a round is faulted; not where this rank's
    own call did that, which raises what says more."""

    def __init__(self, trainer: Trainer, round_number: int, on_fatal: OnFatal) -> None:
        super().__init__(name="esperd-on-fatal", daemon=True)
        self._connection = Connection(trainer.socket, None)
        self._socket, self._rank, self._round = trainer.socket, trainer.rank, round_number
        self._on_fatal = on_fatal
        self._closed = threading.Event()

    def run(self) -> None:
        done = False
        while not done and not self._closed.is_set():
            try:
                done = self._watch()
            except _PASSING as error:
                _log.debug("watching for faults: %s; trying again", error)
            finally:
                self._connection.close()
            if not done:
                self._closed.wait(_RETRY_S)

    def stop(self) -> None:
        self._closed.set()
        self._connection.abort()
        if threading.current_thread() is not self:
            self.join(_JOIN_MAX_S)

    def _watch(self) -> bool:
        """Look at the state, then follow the log from there on; True: there is
        nothing more to wait for. No fault can come between the two."""
        status, answer = self._connection.request("GET", "/v1/state")
        state = json.loads(answer)
        if status != 200 or self._settled(state.get("round") or {}):
            return status == 200
        events = self._connection.begin("GET", f"/v1/events?follow=true&from={state['index'] + 1}")
        if events.status != 200 or self._closed.is_set():
            return False
        for line in events.lines():
            if (_FAULT_MARK in line or _ROUND_MARK in line) and self._entry(json.loads(line)):
                return True
        return False  # esperd ends

    def _settled(self, now: Dict[str, Any]) -> bool:
        if now.get("number") != self._round:
            return bool(now.get("number", 0) > self._round)  # it is over without a fault
        fault = now.get("fault")
        if fault:
            self._tell(Fault.of(fault))
        return bool(fault)

    def _entry(self, entry: Dict[str, Any]) -> bool:
        if entry.get("refused"):
            return False
        for event in entry["events"]:
            if event["type"] == "round_opened" and event["round"] > self._round:
                return True
            if event["type"] == "round_faulted" and event["round"] == self._round:
                self._tell(Fault.of(event))
                return True
        return False

    def _tell(self, fault: Fault) -> None:
        if fault.rank == self._rank and fault.code not in ("unavailable", "diverged"):
            return
        error = error_of_fault(fault, last_calls(self._socket, fault.got.model), self._rank)
        if self._closed.is_set():
            return
        try:
            self._on_fatal(error)
        except Exception:
            _log.exception("on_fatal failed")


def watch(trainer: Trainer, round_number: int, on_fatal: Optional[OnFatal]) -> Optional[FaultWatch]:
    """Start watching, if there is somebody to tell."""
    if on_fatal is None:
        return None
    thread = FaultWatch(trainer, round_number, on_fatal)
    thread.start()
    return thread
