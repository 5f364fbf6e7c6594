"""How a trainer ended, as the others are told."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from types import TracebackType
from typing import Callable, List, Optional, Type

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
        _uncaught.add(do)

        def take_back() -> None:
            atexit.unregister(do)
            _uncaught.remove(do)

        return take_back
    from multiprocessing import util

    finalizer = util.Finalize(None, do, exitpriority=0)  # a forked one runs nothing of atexit's

    def cancel() -> None:
        atexit.unregister(do)
        finalizer.cancel()

    return cancel


class _Uncaught:
    """Does what is to be done at exit already when an exception ends the main
    thread while other threads live: the interpreter waits for them before its
    exit begins, and one may wait in a call for what never comes."""

    def __init__(self) -> None:
        self._waiting: List[Callable[[], None]] = []
        self._before: Optional[Callable[..., object]] = None  # None: the hook is not in place

    def add(self, do: Callable[[], None]) -> None:
        self._waiting.append(do)
        if self._before is None:
            self._before, sys.excepthook = sys.excepthook, self._hook

    def remove(self, do: Callable[[], None]) -> None:
        if do in self._waiting:
            self._waiting.remove(do)
        if not self._waiting and self._before is not None and sys.excepthook == self._hook:  # else another one may call it
            sys.excepthook, self._before = self._before, None

    def _hook(self, kind: Type[BaseException], error: BaseException, trace: Optional[TracebackType]) -> None:
        before = self._before or sys.__excepthook__  # who has kept the hook may call it later
        try:
            before(kind, error, trace)
        finally:
            if _ends_main_thread(error) and _others_live():
                for do in tuple(self._waiting):
                    do()


def _ends_main_thread(error: BaseException) -> bool:
    """Tell whether the interpreter itself calls the hook, and exits after it."""
    if hasattr(sys, "ps1") or sys.flags.inspect or os.environ.get("PYTHONINSPECT"):
        return False
    return threading.current_thread() is threading.main_thread() and getattr(sys, "last_value", None) is error


def _others_live() -> bool:
    return any(not t.daemon for t in threading.enumerate() if t is not threading.main_thread())


_uncaught = _Uncaught()
