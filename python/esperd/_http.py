"""HTTP/1.1 over one unix socket, for one request at a time.

A request is written with one system call and its answer is parsed by
http.client, so that a call costs little more than the answer takes to come.
"""

from __future__ import annotations

import http.client
import select
import socket
import time
from typing import Optional, Tuple

_CONNECT_MAX_S = 5.0  # a door whose backlog is full
_ANSWER_BYTES_MAX = 256 << 20
_PROBE_EVERY_MAX_S = 60.0
_PROBES = 4  # in the time after which a silent esperd is given up


class Absent(Exception):
    """Nobody takes the connection."""


class Lost(Exception):
    """The connection broke before there was a whole answer."""


class Silent(Exception):
    """There was no answer in time."""


class Unreadable(Exception):
    """What answered does not speak HTTP."""


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
        self._answer_timeout_s = answer_timeout_s
        self._probed = probed
        self._socket: Optional[socket.socket] = None
        self._poll: Optional[select.poll] = None
        self._probe: Optional[Connection] = None  # while it is under way
        self._response: Optional[http.client.HTTPResponse] = None  # which keeps the socket open, too

    def hurry(self, answer_timeout_s: float) -> None:
        """From now on wait only so long for an answer, whoever lives."""
        self._answer_timeout_s, self._probed = answer_timeout_s, False
        if self._socket is not None:
            self._socket.settimeout(answer_timeout_s)

    def request(self, method: str, target: str, body: bytes = b"") -> Tuple[int, bytes]:
        """Return status and body of the answer.

        After any exception the connection is closed, so that a late answer is
        not taken for the next one's.
        """
        try:
            response = self.begin(method, target, body)
            answer = response.read()
        except BaseException as error:
            self.close()
            translated = _translated(error)
            if translated is None:
                raise
            raise translated from error
        if response.will_close:
            self.close()
        return response.status, answer

    def begin(self, method: str, target: str, body: bytes = b"") -> http.client.HTTPResponse:
        """Send a request and return its answer, of which only the head is read.
        Errors are Absent, those of the socket and those of http.client."""
        if self._socket is None:
            self._socket = self._dial()
        head = f"{method} {target} HTTP/1.1\r\nHost: esperd\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self._response = response = http.client.HTTPResponse(self._socket, method=method)
        try:
            self._socket.sendall(head.encode("ascii") + body)
        except (BrokenPipeError, ConnectionResetError):
            pass  # who refuses a request may do so without reading all of it: see whether there is an answer
        if self._probed and self._answer_timeout_s is not None:
            self._wait(self._answer_timeout_s)
        response.begin()
        if response.length is not None and response.length > _ANSWER_BYTES_MAX:
            raise http.client.HTTPException(f"an answer of {response.length} bytes, expected at most {_ANSWER_BYTES_MAX}")
        return response

    def _wait(self, limit_s: float) -> None:
        """Wait until an answer begins, as long as there are signs of life. It is
        done before http.client reads, which cannot go on after a timeout."""
        assert self._poll is not None
        every_s = min(limit_s / _PROBES, _PROBE_EVERY_MAX_S)
        alive_at = time.monotonic()
        while not self._poll.poll(1000 * every_s):
            if self._alive(every_s):
                alive_at = time.monotonic()
            elif time.monotonic() - alive_at >= limit_s:
                raise socket.timeout("neither an answer nor a sign of life")

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
            s.settimeout(self._answer_timeout_s)
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
        if self._response is not None:
            self._response.close()
            self._response = None
        s, self._socket = self._socket, None
        if s is not None:
            s.close()


def _translated(error: BaseException) -> Optional[Exception]:
    if isinstance(error, socket.timeout):
        return Silent("no answer in time")
    if isinstance(error, (http.client.IncompleteRead, http.client.RemoteDisconnected)):
        return Lost("the connection was closed before the whole answer was there")
    if isinstance(error, OSError):
        return Lost(error.strerror or str(error))
    if isinstance(error, (http.client.HTTPException, ValueError)):  # ValueError: the length of a chunk
        return Unreadable(f"{type(error).__name__}: {str(error).strip()}")
    return None
