"""What an error knows: calls, who made them, and why a round is over. All of it is
immutable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict

__all__ = ["Fault", "Key", "LastCall"]

_Json = Dict[str, Any]


@dataclass(frozen=True)
class Key:
    """Which call a call is. Call k of every rank must have the same key."""

    op: str
    call: int  # k, from 0 in each round and model
    round: int = 0
    model: str = "main"
    generation: int = 0
    fence: int = 0  # fences before it
    slot: str = ""
    seed: int = 0  # germination count of the slot
    epoch: int = -1
    args: str = ""  # hash of the arguments that are equal on all ranks

    @classmethod
    def of(cls, d: _Json) -> Key:
        return cls(**{k: d[k] for k in cls.__dataclass_fields__ if k in d})

    def at(self, site: str) -> str:
        """Return the call as people read it, with the line that made it."""
        slot = f" {self.slot}#{self.seed}" if self.slot else ""
        return f"call {self.call}, {self.op}{slot} epoch {self.epoch}" + (f" at {site}" if site else "")

    def __str__(self) -> str:
        return self.at("")


@dataclass(frozen=True)
class LastCall:
    """What a rank did last."""

    rank: int
    key: Key
    site: str = ""

    @classmethod
    def of(cls, d: _Json) -> LastCall:
        return cls(d["rank"], Key.of(d["key"]), d.get("site", ""))

    def __str__(self) -> str:
        return self.key.at(self.site)


@dataclass(frozen=True)
class Fault:
    """Why a round is over: ``rank`` was at ``got`` where rank 0 made ``want``.

    With the code "unavailable" the trainer of ``rank`` is gone: ``reason`` says
    how, and ``got`` is the last call it made. With "diverged" the replica of
    ``rank`` differs, ``reason`` says what was found, and ``node`` is empty where
    it is not decided whose state is wrong.
    """

    round: int
    code: str  # "order-mismatch", "missing-call", "config-mismatch", "unavailable" or "diverged"
    rank: int
    node: str
    index: int  # of the entry that the rank's call did not fit
    got: Key
    want: Key
    got_site: str = ""
    want_site: str = ""
    reason: str = ""

    @classmethod
    def of(cls, d: _Json) -> Fault:
        return cls(
            round=d["round"],
            code=d["code"],
            rank=d["rank"],
            node=d["node"],
            index=d["index"],
            got=Key.of(d["got"]),
            want=Key.of(d["want"]),
            got_site=d.get("got_site", ""),
            want_site=d.get("want_site", ""),
            reason=d.get("reason", ""),
        )
