"""Who calls."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Dict

from esperd.errors import Refused

PROTOCOL_VERSION = 1  # of the trainer's door

KEYED, FOLLOW, OBSERVE = "keyed", "follow", "observe"
STRICT, WARN = "strict", "warn"
MODES, ORDERINGS = (KEYED, FOLLOW, OBSERVE), (STRICT, WARN)


@dataclass(frozen=True)
class Trainer:
    """One process, for all of its models.

    Attributes:
        incarnation: random, chosen once; kept when reconnecting.
        away_timeout_s: how long esperd may be away before a call gives up.
        answer_timeout_s: how long a call waits without a sign of life.
        pid: of the process that connected.
        arena: the seeds' memory is esperd's.
        gpu: UUID of the GPU that torch uses, for the arena; empty: none.
        residency: seeds wait for the votes of all ranks.
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
    mode: str = KEYED
    ordering: str = STRICT
    residency: bool = False
    arena: bool = False
    gpu: str = ""

    @property
    def observes(self) -> bool:
        """Nothing is decided: calls only tell what the trainer did."""
        return self.mode == OBSERVE

    def check_process(self) -> None:
        """A forked child shares the parent's connection, and must not use it."""
        if os.getpid() != self.pid:
            raise Refused(
                f"this client belongs to process {self.pid}, and this is process {os.getpid()}, forked from it (a DataLoader "
                "worker?): make the calls in the process that connected",
                code="not-authority",
            )

    def request(self) -> Dict[str, Any]:
        """Return what a request for a session says about the trainer."""
        r: Dict[str, Any] = {
            "protocol": PROTOCOL_VERSION,
            "rank": self.rank,
            "world_size": self.world_size,
            "incarnation": self.incarnation,
            "mode": self.mode,
            "ordering": self.ordering,
        }
        if self.residency:
            r["residency"] = True
        if self.arena:
            r["arena"] = True
        if self.gpu:
            r["gpu"] = self.gpu
        if self.run_id:
            r["run_id"] = self.run_id
        if self.fingerprint:
            r["fingerprint"] = self.fingerprint
        return r
