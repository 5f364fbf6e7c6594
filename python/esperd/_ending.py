"""How a trainer ended, as the others are told."""

from __future__ import annotations

import atexit
import sys
from typing import Callable, Optional

from esperd.errors import EsperdError, MissingCall, OrderMismatch, RoundFaulted

_BYTES_MAX = 1000  # and as many characters; the door takes 1,024


def failure_of(error: Optional[BaseException]) -> str:
    """Return what ended the trainer: empty if it ended in order, or because of
    a round that is over, which everybody knows."""
    if error is None or isinstance(error, GeneratorExit):
        return ""
    if isinstance(error, SystemExit) and (error.code is None or isinstance(error.code, int) and error.code == 0):
        return ""
    if isinstance(error, (OrderMismatch, MissingCall, RoundFaulted)) or isinstance(error, EsperdError) and error.fault is not None:
        return ""
    try:
        said = str(error)
    except Exception:
        said = "no text"
    text = f"{type(error).__name__}: {said}" if said else type(error).__name__
    return text.encode("utf-8", "replace")[:_BYTES_MAX].decode("utf-8", "ignore")


def failure_of_interpreter() -> str:
    """Return what ended this interpreter, which is about to exit."""
    error = sys.exc_info()[1]  # a process of multiprocessing ends while it is handled
    if error is None and not hasattr(sys, "ps1"):  # else it is an earlier one, of an interactive session
        error = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
    return failure_of(error)


def at_exit(do: Callable[[], None]) -> Callable[[], None]:
    """Have something done when this process ends, unless by a signal or
    os._exit. Return what takes it back."""
    atexit.register(do)
    multiprocessing = sys.modules.get("multiprocessing")
    if multiprocessing is None or multiprocessing.parent_process() is None:
        return lambda: atexit.unregister(do)
    from multiprocessing import util

    finalizer = util.Finalize(None, do, exitpriority=0)  # a forked one runs nothing of atexit's

    def take_back() -> None:
        atexit.unregister(do)
        finalizer.cancel()

    return take_back
