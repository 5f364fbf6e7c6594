"""Reading answers of HTTP/1.1.

Where a trainer makes a call, nothing of what runs here is in the processor's
caches, so that every line costs. http.client took longer for the head of an
answer than everything else in the client together.
"""

from __future__ import annotations

from typing import Callable, Iterator, Optional

BODY_BYTES_MAX = 256 << 20
HEAD_BYTES_MAX = 64 << 10

_LINE_BYTES_MAX = 4 << 10  # of those around chunks
_REPEATS_MAX = 100  # of what may be repeated
_BEGINNING = b"HTTP/1."
_HEX = b"0123456789abcdefABCDEF"


class Lost(Exception):
    """The connection broke before there was a whole answer."""


class Unreadable(Exception):
    """What answered does not speak HTTP, or beyond measure."""


def plain(begun: bytes) -> Optional[bytes]:
    """Return the body of the usual answer: it is there as a whole, its status is
    200, and another one may follow. Of any other return None: Answer reads it."""
    head, end, body = begun.partition(b"\r\n\r\n")
    lower = head.lower() + b"\r\n"
    if (
        end
        and head.startswith(b"HTTP/1.1 200 ")
        and b"\r\ncontent-length: %d\r\n" % len(body) in lower
        and lower.count(b"\r\ncontent-length:") == 1
        and b"\r\ntransfer-encoding:" not in lower
        and b"\r\nconnection:" not in lower
    ):
        return body
    return None


class Answer:
    """One answer, of which at first the head is read.

    Args:
        begun: what has come of it.
        more: waits for more and returns it; nothing at the end.

    Attributes:
        last: the connection ends with it.
    """

    status: int
    last: bool

    def __init__(self, begun: bytes, more: Callable[[], bytes]) -> None:
        self._unread = begun
        self._more = more
        self._length: Optional[int] = None  # of the body
        self._chunked = False
        for _ in range(_REPEATS_MAX):
            self._read_head()
            if self.status >= 200:
                return
        raise Unreadable("more and more answers before the answer")

    def body(self) -> bytes:
        """Read the body. What comes behind it belongs to no request, so the
        connection ends with it."""
        body = bytearray()
        for piece in self.pieces():
            body += piece
            if len(body) > BODY_BYTES_MAX:
                raise Unreadable(f"an answer of more than {BODY_BYTES_MAX} bytes")
        self.last = self.last or bool(self._unread)
        return bytes(body)

    def lines(self) -> Iterator[bytes]:
        """Return the lines of the body as they come."""
        begun = bytearray()
        for piece in self.pieces():
            *ends, rest = piece.split(b"\n")
            for end in ends:
                yield bytes(begun + end)
                begun.clear()
            begun += rest
            if len(begun) > BODY_BYTES_MAX:
                raise Unreadable(f"a line of more than {BODY_BYTES_MAX} bytes")
        if begun:
            yield bytes(begun)

    def pieces(self) -> Iterator[bytes]:
        """Return the body as it comes."""
        if self._length is not None:
            yield from self._next(self._length)
        elif self._chunked:
            yield from self._chunks()
        else:
            while self._unread or self._fill():
                piece, self._unread = self._unread, b""
                yield piece

    def _read_head(self) -> None:
        while len(self._unread) < len(_BEGINNING) and _BEGINNING.startswith(self._unread):
            self._need()
        if not self._unread.startswith(_BEGINNING):
            raise Unreadable(f"an answer that begins with {self._unread[:40]!r}")
        line, *headers = self._until(b"\r\n\r\n", HEAD_BYTES_MAX).split(b"\r\n")
        version, space, status, end = line[7:8], line[8:9], line[9:12], line[12:13]
        if not (version.isdigit() and space == b" " and len(status) == 3 and status.isdigit() and end in (b" ", b"")):
            raise Unreadable(f"an answer that begins with {line[:40]!r}")
        self.status = int(status)
        length: Optional[int] = None
        chunked, closes = False, version == b"0"
        for header in headers:
            name, _, value = header.partition(b":")
            name = name.lower()
            if name == b"content-length":
                if length is not None:
                    raise Unreadable("an answer with two lengths")
                length = _length(value.strip())
            elif name == b"transfer-encoding":
                if value.strip().lower() != b"chunked":
                    raise Unreadable(f"an answer in the encoding {value[:40]!r}")
                chunked = True
            elif name == b"connection":
                closes = closes or b"close" in value.lower()
        if self.status < 200 or self.status in (204, 304):
            length, chunked = 0, False
        self._length, self._chunked = None if chunked else length, chunked
        self.last = closes or (length is None and not chunked)

    def _chunks(self) -> Iterator[bytes]:
        while True:
            size = self._until(b"\r\n", _LINE_BYTES_MAX).partition(b";")[0].strip()
            if not 0 < len(size) <= 16 or size.strip(_HEX):
                raise Unreadable(f"a chunk of {size[:40]!r} bytes")
            length = int(size, 16)
            if not length:
                break
            yield from self._next(length)
            if self._until(b"\r\n", _LINE_BYTES_MAX):
                raise Unreadable(f"a chunk of more than its {length} bytes")
        for _ in range(_REPEATS_MAX):
            if not self._until(b"\r\n", _LINE_BYTES_MAX):
                return
        raise Unreadable("more and more lines after the last chunk")

    def _next(self, n: int) -> Iterator[bytes]:
        """Return so many bytes as they come."""
        while n:
            if not self._unread:
                self._need()
            piece, self._unread = self._unread[:n], self._unread[n:]
            n -= len(piece)
            yield piece

    def _until(self, mark: bytes, limit: int) -> bytes:
        """Read up to a mark, and over it."""
        while True:
            found, ended, rest = self._unread.partition(mark)
            if ended:
                self._unread = rest
                return found
            if len(found) > limit:
                raise Unreadable(f"more than {limit} bytes without an end")
            self._need()

    def _need(self) -> None:
        if not self._fill():
            raise Lost("the connection was closed before the whole answer was there")

    def _fill(self) -> bool:
        more = self._more()
        self._unread += more
        return bool(more)


def _length(value: bytes) -> int:
    if not value.isdigit():
        raise Unreadable(f"an answer of {value[:40]!r} bytes")
    if len(value) > 18 or int(value) > BODY_BYTES_MAX:
        raise Unreadable(f"an answer of {value[:40].decode('ascii')} bytes, expected at most {BODY_BYTES_MAX}")
    return int(value)
