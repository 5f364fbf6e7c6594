"""The clients of one trainer, one for each model."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any, Callable, Dict, Optional

from esperd._calls import Calls
from esperd._ending import at_exit, failure_of_interpreter
from esperd._faults import FaultWatch
from esperd._observed import Observed
from esperd._trainer import Trainer
from esperd.errors import Refused, Unavailable

if TYPE_CHECKING:
    from esperd.client import Client

__all__ = ["MAIN", "Family"]

MAIN = "main"


class Family:
    """What the clients of one trainer share: its end, above all."""

    def __init__(self, trainer: Trainer, make: "Callable[[Family, str, Calls], Client]") -> None:
        self.trainer = trainer
        self.watch: Optional[FaultWatch] = None
        self._make = make
        self._lock = threading.Lock()
        self._clients: "Dict[str, Client]" = {}
        self._configurations: Dict[str, Dict[str, Any]] = {}
        self._closed = False
        self._stay: Callable[[], None] = lambda: None  # takes back what is to be done at exit

    def open(self, name: str, configuration: Dict[str, Any], preset: Optional[Dict[str, Any]] = None, mark: bytes = b"") -> "Client":
        """Return the client of a model, which is configured by preset if it is
        new and configuration says nothing, or by the mark that it comes with."""
        with self._lock:
            if self._closed:
                raise Unavailable("this client was closed: expected an open one; esperd.connect() gives another")
            client = self._clients.get(name)
            if client is None:
                configuration = configuration or preset or {}
                client = self._clients[name] = self._make(self, name, self._calls(name, configuration))
                self._configurations[name] = configuration
        if configuration and self._configurations[name] != configuration:
            raise Refused(f"model {name} is open with another configuration: expected the same one, or none, to get the client that it has")
        client._calls.comes_with(mark)
        try:
            client._calls.connect()
        except BaseException:
            client._calls.close()
            with self._lock:
                self._clients.pop(name, None)
            raise
        return client

    def configuration(self, name: str) -> Dict[str, Any]:
        return self._configurations[name]

    def opened(self) -> None:
        """The first model is open: from now on esperd wants to know how the
        trainer ends."""
        self._stay = at_exit(self._at_exit)

    def close(self, failed: str = "") -> None:
        """Close all clients, and tell esperd why. It never raises, and a forked
        child closes nothing."""
        if os.getpid() != self.trainer.pid:
            return
        with self._lock:
            again, self._closed = self._closed, True
            clients = list(self._clients.values())
        if again:
            return
        if self.watch is not None:
            self.watch.stop()
        for client in clients:
            client._calls.close()
            client._memory_ends()
        self._clients[MAIN]._calls.unnumbered.goodbye(failed)
        self._stay()

    def _at_exit(self) -> None:
        self.close(failure_of_interpreter())

    def _calls(self, name: str, configuration: Dict[str, Any]) -> Calls:
        if not self.trainer.observes:
            return Calls(self.trainer, name, configuration)
        main = self._clients.get(MAIN)
        return Observed(self.trainer, name, configuration, main.session if main else None)
