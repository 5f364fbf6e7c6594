"""What a call can raise, and what each error knows.

Every exception carries what esperd answered (an RFC 9457 problem document) as
attributes, and its text says what was expected, what was found and what to do
next. Scripts match on the class, or on ``code``, which is never renamed.
"""

from __future__ import annotations

from typing import Any, Dict, Mapping, Optional, Sequence, Tuple, Type, Union

from esperd._mark import OfferedMark, offered_of
from esperd.evidence import Fault, Key, LastCall

__all__ = [
    "ConfigMismatch",
    "DecisionTimeout",
    "Diverged",
    "EsperdError",
    "MarkMismatch",
    "MissingCall",
    "NoRoom",
    "OrderMismatch",
    "Refused",
    "RoundFaulted",
    "Unavailable",
]


class EsperdError(Exception):
    """The base of all errors of this package.

    Attributes:
        code: what scripts match on, such as ``"order-mismatch"``; empty for an
            answer that cannot be read.
        detail: what was expected, what was found, and what to do next.
        index: log index of the entry that says so; 0: the call is not in the
            log, and its number is free.
        fault: why the round is over, where it is.
        want, want_site: rank 0's call and where it was made, ``"train.py:80"``.
        got, got_site: the call that was compared with it, and where it was made.
        differs: the fields in which ``got`` is not ``want``.
        last: the last call of each rank, as far as it is known.
        recent: the last answered calls of this rank, the newest first.
        ranks: of MarkMismatch, the :class:`OfferedMark` that each rank brought.
    """

    code = ""

    def __init__(
        self,
        detail: str,
        *,
        code: str = "",
        index: int = 0,
        fault: Optional[Fault] = None,
        want: Optional[Key] = None,
        want_site: str = "",
        got: Optional[Key] = None,
        got_site: str = "",
        differs: Sequence[str] = (),
        last: Sequence[LastCall] = (),
        recent: Sequence[LastCall] = (),
        ranks: Optional[Mapping[int, OfferedMark]] = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code or type(self).code
        self.index = index
        self.fault = fault
        self.want, self.want_site = want, want_site
        self.got, self.got_site = got, got_site
        self.differs: Tuple[str, ...] = tuple(differs)
        self.last: Tuple[LastCall, ...] = tuple(last)
        self.recent: Tuple[LastCall, ...] = tuple(recent)
        self.ranks: Dict[int, OfferedMark] = dict(ranks or {})

    def __str__(self) -> str:
        text = f"{self.code}: {self.detail}" if self.code else self.detail
        for call in self.last:
            text += f"\n  last of rank {call.rank}: {call}"
        return text


class OrderMismatch(EsperdError):
    """This rank's call is not the one that rank 0 made under the same number.

    The round is over: every later call on every rank raises
    :class:`RoundFaulted`. Mend the trainer, then start it again on all ranks.
    """

    code = "order-mismatch"


class MissingCall(EsperdError):
    """This rank reached a fence without a call that rank 0 made before it.

    The round is over, as after :class:`OrderMismatch`.
    """

    code = "missing-call"


class RoundFaulted(EsperdError):
    """Another rank did not make rank 0's calls, or its trainer is gone; ``fault``
    says which, and where.

    No further call of this round is answered, on any rank, so that none waits
    in a collective that never completes.
    """

    code = "round-faulted"


class DecisionTimeout(EsperdError):
    """Rank 0 did not make the call in time (15 minutes, unless esperd is told
    otherwise, and however long it has said to be busy), or did not connect.
    ``esperd ranks`` shows where each rank is."""

    code = "decision-timeout"


class Refused(EsperdError):
    """The call was understood, and is not granted.

    ``code`` is ``"illegal-transition"`` (the seed's stage does not allow it),
    ``"unknown-slot"``, ``"invalid-input"``, or ``"not-authority"`` (another
    trainer of this rank has connected, this is a forked child, or a call that
    in the mode follow only rank 0 makes). With
    ``index`` above 0 the refusal is in the log, and is the same on all ranks.
    """

    code = "invalid-input"


class ConfigMismatch(EsperdError):
    """This trainer's rank, world size, run or model is not what esperd or the
    log has."""

    code = "config-mismatch"


class ArenaLost(EsperdError):
    """The contents of a seed in the arena are gone, and have to be loaded."""

    code = "arena-lost"


class NoRoom(EsperdError):
    """The seed has no memory in the arena of this rank, which has voted so: the
    next fence that finds the vote in the log prunes it on all ranks. Catch it,
    and go on without the module."""

    code = "no-room"


class MarkMismatch(EsperdError):
    """The model does not go back to a mark, and nothing was changed.

    With ``index`` 0 the ranks have not brought the same mark, or this one brought
    bytes that are none: ``ranks`` says who brought which. The call may be made
    again, on all ranks. With ``index`` above 0 all brought the same one, which is
    none of this log; the text says what to do.
    """

    code = "mark-mismatch"


class Diverged(EsperdError):
    """What this rank was told may be wrong: its replica of the log had another
    state than its history gives, or rank 0's had, or it is not known whose.

    ``fault`` says which rank, with an empty ``node`` if that is not decided, and
    ``fault.index`` at which entry it was found. Ranks whose replica is right get
    :class:`RoundFaulted` with the fault's code "diverged" instead, where it is
    known that another rank's is wrong. Keep the data directories: they are the
    evidence.
    """

    code = "diverged"


class Unavailable(EsperdError):
    """esperd is not there, gives no sign of life, or cannot answer now.

    The same call may be made again: it keeps its number until it is answered.
    """

    code = "unavailable"


_CLASSES: Dict[str, Type[EsperdError]] = {
    "order-mismatch": OrderMismatch,
    "missing-call": MissingCall,
    "round-faulted": RoundFaulted,
    "decision-timeout": DecisionTimeout,
    "not-authority": Refused,
    "illegal-transition": Refused,
    "unknown-slot": Refused,
    "invalid-input": Refused,
    "config-mismatch": ConfigMismatch,
    "mark-mismatch": MarkMismatch,
    "no-room": NoRoom,
    "diverged": Diverged,
    "unavailable": Unavailable,
}

_ADVICE = "every rank has to make the same calls in the same order: mend the trainer and connect again on all ranks"


def error_of(problem: Dict[str, Any]) -> EsperdError:
    """Return the exception for a problem document. Raises KeyError, TypeError
    or ValueError for what is none."""
    code = problem["type"].rpartition("/")[2]
    fault, want, got = (problem.get(k) for k in ("fault", "want", "got"))
    return _CLASSES.get(code, EsperdError)(
        str(problem["detail"]),
        code=code,
        index=problem.get("index", 0),
        fault=Fault.of(fault) if fault else None,
        want=Key.of(want) if want else None,
        want_site=problem.get("want_site", ""),
        got=Key.of(got) if got else None,
        got_site=problem.get("got_site", ""),
        differs=problem.get("differs") or (),
        last=[LastCall.of(c) for c in problem.get("last") or ()],
        recent=[LastCall.of(c) for c in problem.get("recent") or ()],
        ranks=offered_of(problem.get("marks") or ()),
    )


def error_of_fault(f: Fault, last: Sequence[LastCall] = (), rank: Optional[int] = None) -> Union[RoundFaulted, Diverged]:
    """Return what every later call of a faulted round raises.

    Args:
        last: the last call of each rank, as far as it is known.
        rank: who is told.
    """
    kind: Union[Type[RoundFaulted], Type[Diverged]] = RoundFaulted
    what = f"was at {f.got.at(f.got_site)}, where rank 0 made {f.want.at(f.want_site)}"
    if f.code == "config-mismatch":
        what = f"configured model {f.got.model} otherwise than rank 0 did"
    text = f"round {f.round} is over: rank {f.rank} {what} (entry {f.index}); {_ADVICE}"
    if f.code == "unavailable":
        text = (
            f"round {f.round} is over: the trainer of rank {f.rank} is gone: {f.reason}; its last call was {f.got.at(f.got_site)} "
            f"(entry {f.index}); start it again on all ranks"
        )
    if f.code == "diverged":
        if not f.node or f.rank in (0, rank):
            kind = Diverged
        text = f"round {f.round} is over: rank {f.rank}'s replica or the log differs: {f.reason} (entry {f.index}); see esperd status and esperd audit"
    return kind(
        text,
        fault=f,
        want=f.want,
        want_site=f.want_site,
        got=f.got,
        got_site=f.got_site,
        last=last,
    )
