"""The trainer's side of esperd: rank 0's decisions, the same on every rank.

See :func:`connect` for where to begin, and the README beside this package for
loops, failures and what to do about them.
"""

from esperd._launch import Launched, launch
from esperd._mark import Mark, OfferedMark
from esperd._unnumbered import Busy
from esperd.client import Client, connect
from esperd.errors import (
    ConfigMismatch,
    DecisionTimeout,
    Diverged,
    EsperdError,
    MarkMismatch,
    MissingCall,
    OrderMismatch,
    Refused,
    RoundFaulted,
    Unavailable,
)
from esperd.evidence import Fault, Key, LastCall
from esperd.values import (
    Change,
    Controller,
    Decision,
    Done,
    Fence,
    Gates,
    Metrics,
    Outcome,
    Session,
    Slot,
    SlotConfig,
    Verdict,
)

__version__ = "0.1.0"

__all__ = [
    "Busy",
    "Change",
    "Client",
    "ConfigMismatch",
    "Controller",
    "Decision",
    "DecisionTimeout",
    "Diverged",
    "Done",
    "EsperdError",
    "Fault",
    "Fence",
    "Gates",
    "Key",
    "LastCall",
    "Launched",
    "Mark",
    "MarkMismatch",
    "Metrics",
    "MissingCall",
    "OfferedMark",
    "OrderMismatch",
    "Outcome",
    "Refused",
    "RoundFaulted",
    "Session",
    "Slot",
    "SlotConfig",
    "Unavailable",
    "Verdict",
    "connect",
    "launch",
]
