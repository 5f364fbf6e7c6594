"""A number in memory that tells whether the log has something new.

esperd keeps, in a file that trainers map, the log index of the newest entry
that concerns a model. Looking there is a read of memory. It is a hint: it may
be late, and it may be of an esperd that is gone.
"""

from __future__ import annotations

import logging
import mmap
import os
from typing import Any, NamedTuple, Optional

_WORD_BYTES = 8

_log = logging.getLogger("esperd")

NOTHING = memoryview(bytes(_WORD_BYTES)).cast("Q")  # never above what was seen
FORKED = memoryview(b"\xff" * _WORD_BYTES).cast("Q")  # always above: the call finds out that it is not allowed


class Source(NamedTuple):
    """Which memory a word is in: the file, even if its name was given anew."""

    path: str
    offset: int
    device: int
    inode: int


class Word(NamedTuple):
    source: Optional[Source]
    value: memoryview  # [0] is the word


NO_WORD = Word(None, NOTHING)


def remapped(before: Word, document: Any) -> Word:
    """Map the word that a session's answer names, unless it is the one from
    before. Where it cannot be, the word says nothing."""
    if not document:
        return NO_WORD
    try:
        path, offset = document["path"], document["offset"]
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            info = os.fstat(fd)
            source = Source(path, offset, info.st_dev, info.st_ino)
            if source == before.source:
                return before
            end = offset + _WORD_BYTES
            # Reading what lies behind the end of the file would be a signal.
            if not 0 <= offset <= info.st_size - _WORD_BYTES:
                raise ValueError(f"{path} has {info.st_size} bytes, expected {end}")
            return Word(source, memoryview(mmap.mmap(fd, end, access=mmap.ACCESS_READ))[offset:end].cast("Q"))
        finally:
            os.close(fd)
    except (OSError, OverflowError, KeyError, TypeError, ValueError) as error:
        _log.debug("check() will say nothing: %s: %s", type(error).__name__, error)
        return NO_WORD
