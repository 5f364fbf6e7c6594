"""Where the trainer called from."""

from __future__ import annotations

import os
import sys

_SITE_CHARS_MAX = 200  # the door takes 256


def call_site() -> str:
    """Name the first line outside this package, as ``train.py:88``."""
    frame = sys._getframe(1)
    while frame.f_code.co_filename.startswith(_HERE):
        if frame.f_back is None:
            return ""
        frame = frame.f_back
    file = frame.f_code.co_filename.rpartition(os.sep)[2][-_SITE_CHARS_MAX:]
    return f"{file}:{frame.f_lineno}"


_HERE = os.path.join(os.path.dirname(call_site.__code__.co_filename), "")
