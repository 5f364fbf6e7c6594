"""What a checkpoint keeps of the lifecycle.

A mark is esperd's to read; here only what people want to know of it is.
"""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from typing import Any, Dict, Iterable, Tuple, Union

__all__ = ["Mark", "OfferedMark", "offered_of"]

_MAGIC = b"esperd mark 1\n"
_HEAD = len(_MAGIC) + 32  # and a checksum, which esperd checks
_NESTED_MAX = 16

_RUN, _LINEAGE, _MODEL, _INDEX, _LIFECYCLE, _RECORD = 1, 2, 3, 4, 6, 8
_GENERATION, _EPOCH = 1, 2


class Mark(bytes):
    """One model's lifecycle at one place in the log, to be stored beside the
    weights; :meth:`Client.checkpoint` returns it.

    It is bytes, and is stored as such: what torch.load, pickle and the like
    return are plain bytes, which :meth:`Client.resume` takes as well, and of
    which ``esperd.Mark(data)`` says again what they are. JSON takes
    ``mark.hex()``. It is empty where there is nothing to go back to, in the mode
    observe.

    Attributes:
        epoch: the last one that was stepped, -1: none.
        index: of the log's entry at which it was taken.
        run, lineage: the log.
        model, generation: what it is of.
        digest: of the lifecycle there, in hexadecimal; equal to that of another
            run whose decisions were the same.

    They raise ValueError for bytes that are no mark.
    """

    @property
    def epoch(self) -> int:
        return int(self._fields()[_RECORD].get(_EPOCH, 0))

    @property
    def generation(self) -> int:
        return int(self._fields()[_RECORD].get(_GENERATION, 0))

    @property
    def index(self) -> int:
        return int(self._fields()[_INDEX])

    @property
    def run(self) -> str:
        return str(self._fields()[_RUN])

    @property
    def lineage(self) -> str:
        return str(self._fields()[_LINEAGE])

    @property
    def model(self) -> str:
        return str(self._fields()[_MODEL])

    @property
    def digest(self) -> str:
        return bytes(self._fields()[_LIFECYCLE]).hex()

    def _fields(self) -> Dict[Any, Any]:
        if not self.startswith(_MAGIC):
            raise ValueError(f"no mark that this client knows: expected it to begin with {_MAGIC!r}, got {bytes(self[:20])!r}")
        try:
            fields, _ = _item(self, _HEAD, _NESTED_MAX)
            fields[_RECORD].get, fields[_INDEX], fields[_RUN], fields[_LINEAGE], fields[_MODEL], fields[_LIFECYCLE]
        except (AttributeError, IndexError, KeyError, TypeError, UnicodeDecodeError) as error:
            raise ValueError(f"a mark that is damaged: {type(error).__name__}: {error}") from None
        return fields  # type: ignore[no-any-return]  # it was looked at

    def __repr__(self) -> str:
        try:
            return f"<esperd.Mark of {self.model!r}, epoch {self.epoch}, entry {self.index} of run {self.run}, {len(self)} bytes>"
        except ValueError:
            return f"<esperd.Mark that is none, {len(self)} bytes>"

    def __reduce_ex__(self, protocol: Any) -> Tuple[Any, ...]:
        # As bytes, in the way in which every unpickler takes them, also torch's with weights_only.
        return codecs.encode, (self.decode("latin1"), "latin1")


@dataclass(frozen=True)
class OfferedMark:
    """The mark that a rank brought to a resume.

    Attributes:
        sum: SHA-256 of its bytes, in hexadecimal: what ranks are compared by.
        reason: what is wrong with it; with one, nothing else is known.
    """

    epoch: int  # -1: none
    index: int  # of the log's entry at which it was taken
    lineage: str  # of the log
    sum: str
    reason: str = ""


def offered_of(groups: Iterable[Dict[str, Any]]) -> Dict[int, OfferedMark]:
    """Return who brought which mark."""
    out: Dict[int, OfferedMark] = {}
    for g in groups:
        mark = OfferedMark(g["epoch"], g.get("index", 0), g.get("lineage", ""), g.get("sum", ""), g.get("reason", ""))
        out.update((int(rank), mark) for rank in g["ranks"])
    return out


def _item(b: bytes, at: int, nested: int) -> Tuple[Any, int]:
    """Read one item of what a mark is made of, a part of CBOR (RFC 8949)."""
    if not nested:
        raise IndexError("too deep")
    kind, n = b[at] >> 5, b[at] & 31
    at += 1
    if 24 <= n <= 27:
        width = 1 << (n - 24)
        if at + width > len(b):
            raise IndexError("it ends too early")
        n, at = int.from_bytes(b[at : at + width], "big"), at + width
    if kind == 0:
        return n, at
    if kind == 1:
        return -1 - n, at
    if kind in (2, 3):
        if at + n > len(b):
            raise IndexError("it ends too early")
        text: Union[bytes, str] = b[at : at + n] if kind == 2 else b[at : at + n].decode()
        return text, at + n
    if kind == 4:
        items = []
        for _ in range(n):
            item, at = _item(b, at, nested - 1)
            items.append(item)
        return items, at
    if kind == 5:
        fields = {}
        for _ in range(n):
            key, at = _item(b, at, nested - 1)
            fields[key], at = _item(b, at, nested - 1)
        return fields, at
    if kind == 7:  # a number with a fraction, or a word: nobody asks for them here
        return None, at
    raise KeyError(f"kind {kind}")
