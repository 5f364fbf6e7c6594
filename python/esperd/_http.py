"""HTTP/1.1 over one unix socket, for one request at a time.

A request is written with one system call, and where its answer comes as a whole
two others wait for it and read it.
"""

from __future__ import annotations

import select
import socket
import time
from typing import Optional, Tuple

from esperd._answer import Answer, Lost, Unreadable, plain

__all__ = ["Absent", "Connection", "Lost", "Silent", "Unreadable"]

_CONNECT_MAX_S = 5.0  # a door whose backlog is full
_ANSWER_MAX_S = 1e6  # what a poll takes
_PIECE_BYTES = 64 << 10
_PROBE_EVERY_MAX_S = 60.0
_PROBES = 4  # in the time after which a silent esperd is given up


class Absent(Exception):
    """Nobody takes the connection."""


class Silent(Exception):
    """There was no answer in time."""


class Connection:
    """A keep-alive connection that is opened when it is needed. Only ``abort``
    may be called while another thread is in a request.

    Args:
        answer_timeout_s: how long an answer may take; None: for ever.
        probed: an answer may take longer, as long as whoever is to give it
            answers GET /healthz on another connection.
    """

    def __init__(self, path: str, answer_timeout_s: Optional[float], probed: bool = False) -> None:
        self.path = path
        self._answer_timeout_s = None if answer_timeout_s is None else min(answer_timeout_s, _ANSWER_MAX_S)
        self._probed = probed
        self._socket: Optional[socket.socket] = None  # it never blocks: waiting is the poll's
        self._poll = select.poll()  # of the socket
        self._probe: Optional[Connection] = None  # while it is under way

    def hurry(self, answer_timeout_s: float) -> None:
        """From now on wait only so long for an answer, whoever lives."""
        self._answer_timeout_s, self._probed = answer_timeout_s, False

    def request(self, method: str, target: str, body: bytes = b"") -> Tuple[int, bytes]:
        """Return status and body of the answer.

        After any exception the connection is closed, so that a late answer is
        not taken for the next one's.
        """
        try:
            begun = self._ask(method, target, body)
            content = plain(begun)
            if content is not None:
                return 200, content
            answer = Answer(begun, self._more)
            content = answer.body()
        except BaseException as error:
            self.close()
            if isinstance(error, socket.timeout):
                raise Silent("no answer in time") from error
            if isinstance(error, OSError):
                raise Lost(error.strerror or str(error)) from error
            raise
        if answer.last:
            self.close()
        return answer.status, content

    def begin(self, method: str, target: str) -> Answer:
        """Send a request and return its answer, of which only the head is read.
        Errors are this module's, and those of the socket."""
        return Answer(self._ask(method, target, b""), self._more)

    def _ask(self, method: str, target: str, body: bytes) -> bytes:
        """Send a request and return what comes first of its answer."""
        if self._socket is None:
            self._socket = self._dial()
        head = f"{method} {target} HTTP/1.1\r\nHost: esperd\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self._send(head.encode("ascii") + body)
        self._wait()
        return self._read()

    def _send(self, request: bytes) -> None:
        assert self._socket is not None
        try:
            sent = self._socket.send(request)
            if sent < len(request):  # it is longer than the socket's buffer
                self._socket.settimeout(self._answer_timeout_s)
                self._socket.sendall(memoryview(request)[sent:])
                self._socket.setblocking(False)
        except (BrokenPipeError, ConnectionResetError):
            pass  # who refuses a request may do so without reading all of it: see whether there is an answer

    def _wait(self) -> None:
        """Wait until an answer begins, as long as there are signs of life."""
        limit_s = self._answer_timeout_s
        if limit_s is None or not self._probed:
            self._wait_for_more()
            return
        every_s = min(limit_s / _PROBES, _PROBE_EVERY_MAX_S)
        alive_at = time.monotonic()
        while not self._poll.poll(1000 * every_s):
            if self._alive(every_s):
                alive_at = time.monotonic()
            elif time.monotonic() - alive_at >= limit_s:
                raise Silent("neither an answer nor a sign of life")

    def _wait_for_more(self) -> None:
        limit_s = self._answer_timeout_s
        if not self._poll.poll(None if limit_s is None else 1000 * limit_s):
            raise Silent("no answer in time")

    def _more(self) -> bytes:
        self._wait_for_more()
        return self._read()

    def _read(self) -> bytes:
        assert self._socket is not None
        return self._socket.recv(_PIECE_BYTES)

    def _alive(self, timeout_s: float) -> bool:
        self._probe = probe = Connection(self.path, timeout_s)
        try:
            probe.request("GET", "/healthz")
        except (Absent, Lost, Silent, Unreadable):
            return False
        finally:
            self._probe = None
            probe.close()
        return True

    def _dial(self) -> socket.socket:
        s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            s.settimeout(min(_CONNECT_MAX_S, self._answer_timeout_s or _CONNECT_MAX_S))
            s.connect(self.path)
            s.setblocking(False)
            self._poll = select.poll()
            self._poll.register(s, select.POLLIN)
        except BaseException as error:
            s.close()
            if isinstance(error, OSError):
                raise Absent(error.strerror or str(error)) from error
            raise
        return s

    def abort(self) -> None:
        """Wake a request that is under way; it raises Lost."""
        s = self._socket
        if s is not None:
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # it was closed meanwhile
        probe = self._probe
        if probe is not None:
            probe.abort()

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        s, self._socket = self._socket, None
        if s is not None:
            s.close()
