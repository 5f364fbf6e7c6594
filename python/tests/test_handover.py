"""What an esperd may answer that hands an arena over, or fingerprints tensors, and
stops in between or is another one."""

import array
import gc
import importlib.util
import json
import os
import socket
import struct
import tempfile
import threading
import types
import unittest
import warnings

import esperd
from esperd import _handover


def document(value):
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return struct.pack("<I", len(text)) + text


def files(n):
    """Send n files."""

    def send(peer):
        fds = [os.memfd_create("x") for _ in range(n)]
        peer.sendmsg([b"f"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else [])
        for fd in fds:
            os.close(fd)

    return send


class Answers(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.trainer = types.SimpleNamespace(socket=os.path.join(directory.name, "s"), incarnation="i")

    def answered(self, parts, call):
        """Make a call that is answered by these, and then hung up on."""
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.trainer.socket)
            listener.listen(1)

            def serve():
                peer, _ = listener.accept()
                with peer:
                    peer.recv(1 << 16)
                    peer.sendall(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
                    for part in parts:
                        part(peer) if callable(part) else peer.sendall(part)

            server = threading.Thread(target=serve)
            server.start()
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    return call()
            finally:
                server.join()
                os.unlink(self.trainer.socket)

    def taken(self):
        with _handover.Handover(self.trainer, "main") as h:
            return [os.fstat(fd).st_ino for _, fd in zip(h.offer["chunks"], h.files())]

    def test_an_arena(self):
        two = document({"chunks": [{}, {}]})
        hung_up, other = (esperd.Unavailable, "hung up; the call may be made again"), (esperd.EsperdError, "an object with chunks, in .* another release")
        for name, parts, problem in (
            ("whole", [two, files(2)], None),
            ("one by one", [two, files(1), files(1)], None),
            ("more files", [two, files(5)], None),
            ("a file is missing", [two, files(1)], hung_up),
            ("no files", [two, files(0)], hung_up),
            ("nothing", [], hung_up),
            ("cut off", [two[:9]], hung_up),
            ("longer than it is", [struct.pack("<I", 1 << 20) + b"{"], hung_up),
            ("no JSON", [document(b"{{")], other),
            ("no text", [document(b"\xff\xfe\xff")], other),
            ("no object", [document([1])], other),
            ("no chunks", [document({"error": "x"})], other),
        ):
            with self.subTest(name):
                gc.collect()
                before = os.listdir("/proc/self/fd")
                if problem is None:
                    self.assertEqual(len(set(self.answered(parts, self.taken))), 2)
                else:
                    with self.assertRaisesRegex(*problem) as raised:
                        self.answered(parts, self.taken)
                    self.assertIsInstance(raised.exception, problem[0])
                self.assertEqual(len(os.listdir("/proc/self/fd")), len(before), "all files are closed")

    @unittest.skipUnless(importlib.util.find_spec("torch"), "there is no torch")
    def test_fingerprints(self):
        import torch

        def ask():
            return _handover.fingerprints(self.trainer, "main", [torch.ones(3), torch.zeros(2)])

        def reads(peer):
            peer.recv(1)

        self.assertEqual(self.answered([reads, document({"fingerprints": ["a", "b"]})], ask), ["a", "b"])
        for answer, kind, text in (
            ([], esperd.Unavailable, "read tensors at .* may be made again"),
            ([reads], esperd.Unavailable, "read tensors at .* may be made again"),
            ([reads, document({"error": "no memory"})], esperd.EsperdError, "attest: no memory"),
            ([reads, document({"fingerprints": ["a"]})], esperd.EsperdError, "expected 2 fingerprints"),
            ([reads, document({"fingerprints": 2})], esperd.EsperdError, "expected 2 fingerprints"),
            ([reads, document({})], esperd.EsperdError, "expected 2 fingerprints"),
            ([reads, document(b"no")], esperd.EsperdError, "another release"),
        ):
            with self.subTest(answer=answer):
                self.assertRaisesRegex(kind, text, self.answered, answer, ask)
