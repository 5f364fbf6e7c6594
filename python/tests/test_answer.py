"""Answers as they come, cut anywhere, and answers that are none."""

import copy
import dataclasses
import http.client
import io
import json
import pickle
import random
import socket
import threading
import unittest
from unittest import mock

import esperd
from esperd import _answer
from esperd._answer import Answer, Lost, Unreadable, plain
from esperd._http import Connection
from tests.fakedoor import DECISION, DoorTest, problem, send

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nDate: Sun, 22 Nov 2026 11:07:17 GMT\r\n"
PLAIN = {
    "usual": HEAD + b"Content-Length: 7\r\n\r\n{\"a\":1}",
    "length first": b"HTTP/1.1 200 OK\r\ncontent-LENGTH: 7\r\nX: y\r\n\r\n{\"a\":1}",
    "empty": HEAD + b"Content-Length: 0\r\n\r\n",
    "no reason": b"HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\n{}",
}
OTHERS = {
    "no space": HEAD + b"Content-Length:2\r\n\r\n{}",
    "problem": b"HTTP/1.1 409 Conflict\r\nContent-Length: 2\r\n\r\n{}",
    "closing": b"HTTP/1.1 413 Too Large\r\nConnection: keep-alive, Close\r\nContent-Length: 2\r\n\r\n{}",
    "chunked": HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA;x=\"y\"\r\n0123456789\r\n0\r\n\r\n",
    "chunked, with trailers": HEAD + b"transfer-encoding: Chunked\r\n\r\n00b\r\n\r\n0\r\n\r\n\r\n34\r\n0\r\nA: b\r\nC: d\r\n\r\n",
    "chunked, and a length": HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "to the end": HEAD + b"\r\nall that\r\n\r\ncomes",
    "old": b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}",
    "old, to the end": b"HTTP/1.0 200 OK\r\n\r\n{}",
    "on its way": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 100 Continue\r\nX: y\r\n\r\n" + HEAD + b"Content-Length: 2\r\n\r\n{}",
    "no content": b"HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\n",
}
WHOLE = {**PLAIN, **OTHERS}


class Feed:
    """Gives pieces one after the other, and counts what was taken."""

    def __init__(self, *pieces):
        self.pieces, self.taken = iter(pieces), 0

    def __call__(self):
        piece = next(self.pieces, b"")
        self.taken += len(piece)
        return piece


def read(*pieces):
    answer = Answer(pieces[0], Feed(*pieces[1:]))
    return answer.status, answer.body(), answer.last


def by_http_client(data):
    class Source:
        def makefile(self, _):
            return io.BytesIO(data)

    response = http.client.HTTPResponse(Source(), method="POST")
    response.begin()
    return response.status, response.read(), response.will_close


def cut(data, rng):
    """Cut data into random pieces."""
    places = sorted(rng.sample(range(1, len(data)), rng.randrange(min(8, len(data)))))
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)])]


class Reading(unittest.TestCase):
    def test_as_http_client_reads_it(self):
        for name, data in WHOLE.items():
            with self.subTest(name):
                self.assertEqual(read(data), by_http_client(data))

    def test_cut_at_every_byte(self):
        for name, data in WHOLE.items():
            whole = read(data)
            for i in range(len(data) + 1):
                with self.subTest(name, at=i):
                    self.assertEqual(read(data[:i], data[i:]), whole)
            self.assertEqual(read(*(data[i : i + 1] for i in range(len(data)))), whole)

    def test_cut_at_random(self):
        rng = random.Random(1)
        for _ in range(2000):
            body = rng.randbytes(rng.randrange(200)) if hasattr(rng, "randbytes") else bytes(rng.randrange(256) for _ in range(rng.randrange(200)))
            kind = rng.randrange(3)
            if kind == 0:
                data = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
            elif kind == 1:
                data = HEAD + b"\r\n" + body
            else:
                chunks = b"".join(b"%x\r\n%b\r\n" % (len(c), c) for c in (cut(body, rng) if body else ()))
                data = HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
            self.assertEqual(read(*cut(data, rng)), (200, body, kind == 1))

    def test_what_ends_too_early_is_lost(self):
        for name, data in WHOLE.items():
            if name.endswith("to the end"):
                data = data[: data.index(b"\r\n\r\n") + 4]  # behind it nobody can tell
            for i in range(len(data)):
                with self.subTest(name, at=i), self.assertRaises(Lost):
                    read(data[:i])

    def test_what_comes_behind_it_belongs_to_no_request(self):
        for name, data in WHOLE.items():
            if not read(data)[2]:
                self.assertEqual(read(data + b"H"), (*read(data)[:2], True), name)
                self.assertIsNone(plain(data + b"H"))

    def test_the_usual_answer(self):
        for name, data in PLAIN.items():
            self.assertEqual((200, plain(data), False), read(data), name)
            for i in range(len(data)):
                self.assertIsNone(plain(data[:i]))
        for name, data in OTHERS.items():
            self.assertIsNone(plain(data), name)

    def test_the_usual_answer_is_none_that_is_read_otherwise(self):
        rng, found = random.Random(2), 0
        lines = [b"Content-Length: 2", b"content-length: 2", b"Content-Length: 3", b"Content-Length: 02", b"Content-Length: +2", b"Content-Length : 2",
                 b" Content-Length: 2", b"X-Content-Length: 2", b"Transfer-Encoding: chunked", b"transfer-encoding: gzip", b"Connection: close",
                 b"CONNECTION: keep-alive", b"Date: x", b"", b"nonsense", b"Content-Length: 2\r", b"Content-Length: 2\nConnection: close"]
        for _ in range(20000):
            start = rng.choice([b"HTTP/1.1 200 OK", b"HTTP/1.1 200 OK", b"HTTP/1.1 200 OK", b"HTTP/1.0 200 OK", b"HTTP/1.1 2000 OK", b"http/1.1 200 OK"])
            data = b"\r\n".join([start, *rng.sample(lines, rng.randrange(4))]) + b"\r\n\r\n" + rng.choice([b"{}", b"{}\n", b"\r\n"])
            body = plain(data)
            if body is not None:
                found += 1
                self.assertEqual(read(data), (200, body, False), data)
        self.assertGreater(found, 100)

    def test_lines_as_they_come(self):
        text = b"one\ntwo\n\nthree"
        data = HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(b"1\r\n%c\r\n" % c for c in text) + b"0\r\n\r\n"
        rng = random.Random(3)
        for pieces in ([data], *(cut(data, rng) for _ in range(200))):
            self.assertEqual(list(Answer(pieces[0], Feed(*pieces[1:])).lines()), text.split(b"\n"))
        feed = Feed(b"4\r\none\n\r\n")
        lines = Answer(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", feed).lines()
        self.assertEqual(next(lines), b"one")
        self.assertRaises(Lost, next, lines)


class Hostile(unittest.TestCase):
    def test_what_is_no_answer(self):
        chunked = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
        for data in (b"SSH-2.0-OpenSSH_9.2\r\n", b"\r\n", b"H\n", b"HTTP/2 200\r\n\r\n", b"HTTP/1.x 200 OK\r\n\r\n", b"HTTP/1.1  200 OK\r\n\r\n", b"HTTP/1.1 20\r\n\r\n",
                     b"HTTP/1.1 -20 OK\r\n\r\n", b"HTTP/1.1 2000 OK\r\n\r\n", "HTTP/1.1 ²00 OK\r\n\r\n".encode("latin-1"), b"HTTP/1.1 000 OK\r\n\r\n" * 101,
                     *(HEAD + b"Content-Length: %b\r\n\r\n{}" % n for n in (b"", b"x", b"-1", b"+2", b"2 2", b"0x2", b"2.0", b"1_0", b"\xb2", b"999999999999", b"9" * 5000)),
                     HEAD + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}", HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n", HEAD + b"Transfer-Encoding:\r\n\r\n",
                     *(chunked + size + b"\r\nab\r\n0\r\n\r\n" for size in (b"", b"-2", b"+2", b"0x2", b"g", b"2 2", b"1_0", b" ;2", b"0" * 17, b"1", b"9" * 5000)),
                     chunked + b"2\r\nabc\r\n0\r\n\r\n"):
            with self.subTest(data=data[:60]):
                with self.assertRaises(Unreadable):
                    read(data)
                with self.assertRaises(Unreadable):
                    read(*(data[i : i + 1] for i in range(len(data))))

    def test_nothing_but_two_exceptions(self):
        rng, counts = random.Random(4), {}
        with mock.patch.object(_answer, "BODY_BYTES_MAX", 1000):
            for _ in range(30000):
                data = bytearray(rng.choice(list(WHOLE.values())))
                for _ in range(rng.randrange(1, 4)):
                    i = rng.randrange(len(data))
                    change = rng.randrange(3)
                    if change == 0:
                        data[i] = rng.randrange(256)
                    elif change == 1:
                        data[i:i] = rng.choice([b"\r\n", b"\r\n\r\n", b"0", b"f" * 20, b":", b" ", b"\x00", b"HTTP/1.1 100 \r\n\r\n"])
                    else:
                        del data[i : i + rng.randrange(1, 9)]
                    data = data or bytearray(b"H")
                try:
                    status, body, _ = read(*cut(bytes(data), rng)) if len(data) > 1 else read(bytes(data))
                    outcome = "read"
                    self.assertTrue(200 <= status <= 999 and len(body) <= 1000)
                except (Lost, Unreadable) as error:
                    outcome = type(error)
                counts[outcome] = counts.get(outcome, 0) + 1
        self.assertEqual(len(counts), 3, counts)
        self.assertGreater(min(counts.values()), 1000, counts)

    def endless(self, begun, again, at_most, body=lambda answer: answer.body()):
        feed = Feed(*[again] * (4 * at_most // len(again)))
        with self.assertRaises(Unreadable):
            body(Answer(begun, feed))
        self.assertLess(feed.taken, 2 * at_most)

    def test_what_does_not_end_is_not_read_to_the_end(self):
        chunked = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
        self.endless(b"HTTP/1.1 200 ", b"O" * 1000, 64 << 10)
        self.endless(HEAD, b"X: yyyyyyyyy\r\n", 64 << 10)
        self.endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 100 * 25)
        self.endless(chunked, b"1;" + b"x" * 100, 4 << 10)
        self.endless(chunked + b"0\r\n", b"X: y\r\n", 100 * 6)
        with mock.patch.object(_answer, "BODY_BYTES_MAX", 10000):
            self.endless(HEAD + b"\r\n", b"x" * 100, 10000)
            self.endless(chunked, b"64\r\n" + b"x" * 100 + b"\r\n", 11000)
            self.endless(chunked + b"fffffffffffffff\r\n", b"x" * 100, 10000)
            self.endless(HEAD + b"\r\n", b"x" * 100, 10000, lambda answer: list(answer.lines()))


class OverASocket(DoorTest):
    def trickle(self, *pieces):
        """Answer with pieces, each of which comes by itself."""
        def trick(peer, _):
            for p in pieces:
                peer.send(p)
                with self.read:
                    self.read.wait(0.002)
        self.read = threading.Condition()
        return trick

    def test_pieces_that_come_one_by_one(self):
        ep = self.connect()
        body = json.dumps(DECISION).encode()
        data = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        rng = random.Random(5)
        answers = [cut(data, rng) for _ in range(20)]
        self.door.play(*[self.trickle(*pieces) for pieces in answers])
        want = esperd.Decision.of(DECISION)
        for _ in answers:
            self.assertEqual(ep.advance("r0c0"), want)
        self.assertEqual(len(self.door._peers), 1, "over one connection")

    def test_another_door_may_send_chunks(self):
        ep = self.connect()
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(c), c) for c in cut(json.dumps(DECISION).encode(), random.Random(6)))
        self.door.play(lambda peer, _: peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"))
        self.assertEqual(ep.advance("r0c0"), esperd.Decision.of(DECISION))
        ep.advance("r0c0")
        self.assertEqual(len(self.door._peers), 1)

    def test_a_connection_ends_when_the_door_says_so(self):
        ep = self.connect()
        body = json.dumps(DECISION).encode()
        for headers in (b"Connection: close\r\nContent-Length: %d\r\n" % len(body), b""):
            self.door.play(send(b"HTTP/1.1 200 OK\r\n" + headers + b"\r\n" + body))
            self.assertEqual(ep.advance("r0c0"), esperd.Decision.of(DECISION))
        ep.advance("r0c0")
        self.assertEqual(self.numbers(), [1, 2, 3], "no call was repeated")
        self.assertEqual(len(self.door._peers), 3)

    def test_bytes_behind_an_answer_are_not_the_next_one(self):
        ep = self.connect()
        def twice(peer, _):
            body = json.dumps(DECISION).encode()
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body) + b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        self.door.play(twice)
        self.assertEqual(ep.advance("r0c0"), esperd.Decision.of(DECISION))
        self.assertEqual(ep.advance("r0c0"), esperd.Decision.of(DECISION))
        self.assertEqual(self.numbers(), [1, 2])

    def test_json_beyond_measure(self):
        for body in (b"[" * 200000, b"{\"a\":" * 200000, b"1" * 10000, b"\xff\xfe", b"{} {}", b"", json.dumps({**DECISION, "index": float("inf")}).encode(), json.dumps({**DECISION, "score": 10**400}).encode(),
                     json.dumps({**DECISION, "index": None}).encode(), json.dumps({**DECISION, "checks_passed": 3}).encode()):
            with self.subTest(body=body[:40]):
                ep = self.connect()
                self.door.play(lambda peer, _: peer.answer(body))
                with self.assertRaisesRegex(esperd.EsperdError, "no esperd that this client understands") as caught:
                    ep.advance("r0c0")
                self.assertEqual(type(caught.exception), esperd.EsperdError)
                ep.advance("r0c0")
                self.assertEqual(self.numbers()[-2:], [1, 1])

    def test_a_refusal_that_comes_in_pieces(self):
        ep = self.connect()
        self.door.play(problem("illegal-transition", 409, index=7, padding="x" * 300000))
        with self.assertRaises(esperd.Refused) as caught:
            ep.advance("r0c0")
        self.assertEqual(caught.exception.index, 7)

    def test_a_request_that_is_longer_than_the_sockets_buffer(self):
        ep = self.connect()
        for n in (1, 4 << 20, 2):
            ep.prune("r0c0", "x" * n)
        self.assertEqual([len(r.body["reason"]) for r in self.door.called()], [1, 4 << 20, 2])
        self.assertEqual(len(self.door._peers), 1)

    def test_a_door_that_does_not_read_a_long_request(self):
        here, there = socket.socketpair()
        self.addCleanup(there.close)
        connection = Connection("", 0.1)
        here.setblocking(False)
        connection._poll.register(here)
        connection._socket = here
        with self.assertRaisesRegex(Exception, "no answer in time") as caught:
            connection.request("POST", "/", b"x" * (8 << 20))
        self.assertEqual(type(caught.exception).__name__, "Silent")

    def test_answers_may_take_for_ever(self):
        ep = self.connect(answer_timeout=float("inf"))
        body = json.dumps(DECISION).encode()
        self.door.play(self.trickle(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body), body))
        self.assertEqual(ep.advance("r0c0"), esperd.Decision.of(DECISION))


SLOT = {"name": "r0c0", "stage": "BLENDING", "alpha": 0.25, "germinations": 1, "seed": 1, "seed_id": "s", "blueprint": "conv", "algorithm": "ADD",
        "controller": {"alpha": 0.25, "start": 0, "target": 1, "mode": "UP", "curve": "LINEAR", "steepness": 12, "total": 4, "done": 1},
        "metrics": {"epochs": 2, "epochs_in_stage": 1, "accuracy": 50, "accuracy_best": "Infinity", "accuracy_first": 50, "accuracy_stage": 50,
                    "gradient_ratio": None, "gradient_norm": 1, "gradient_health": None, "has_exploding": None, "has_vanishing": False,
                    "contribution": "-Infinity", "unhealthy": False}}
EMPTY = {"name": "r0c1", "stage": "DORMANT", "alpha": 0, "germinations": 0}
CHANGE = {"slot": "r0c0", "seed": 1, "from": "TRAINING", "to": "BLENDING", "alpha_from": 0, "alpha": 0.25, "frozen": False}
FENCE = {"epoch": 3, "index": 9, "changes": [CHANGE], "slots": [SLOT, EMPTY]}


class Values(DoorTest):
    def fence(self):
        return esperd.Fence.of(json.loads(json.dumps(FENCE)))

    def by_hand(self):
        controller = esperd.Controller(0.25, 0.0, 1.0, "UP", "LINEAR", 12.0, 4, 1)
        metrics = esperd.Metrics(2, 1, 50.0, float("inf"), 50.0, 50.0, None, 1.0, None, None, False, float("-inf"), True)
        return esperd.Fence(3, 9, (esperd.Change("r0c0", 1, "TRAINING", "BLENDING", 0.0, 0.25, False),), {
            "r0c0": esperd.Slot("r0c0", "BLENDING", 0.25, 1, 1, "s", "conv", False, "ADD", controller, metrics), "r0c1": esperd.Slot("r0c1", "DORMANT", 0.0, 0)})

    def test_read_values_are_as_made_ones(self):
        verdict = esperd.Verdict("G2", True, 1.0, (), (), "")
        decision = esperd.Decision("G2", False, 0.25, ("a",), ("b", "c"), "m", "r0c0", 1, "TRAINING", 10, verdict, False)
        done = {"slot": "r0c0", "seed": 1, "stage": "GERMINATED", "alpha": 0, "index": 4}
        pairs = [(esperd.Decision.of(DECISION), decision), (esperd.Done.of(done), esperd.Done("r0c0", 1, "GERMINATED", 0.0, 4)), (self.fence(), self.by_hand())]
        pairs += zip(self.fence().slots.values(), self.by_hand().slots.values())
        for one, other in pairs:
            self.assertEqual((one, repr(one), dataclasses.asdict(one)), (other, repr(other), dataclasses.asdict(other)))
            self.assertEqual(list(vars(one)), list(vars(other))) if not isinstance(one, esperd.Fence) else None
            self.assertEqual(pickle.loads(pickle.dumps(one)), other)
            self.assertEqual(copy.deepcopy(one), other)
            for f in dataclasses.fields(one):
                with self.assertRaises(dataclasses.FrozenInstanceError):
                    setattr(one, f.name, None)

    def test_the_slots_of_a_fence_are_read_when_they_are_looked_at(self):
        with mock.patch.object(esperd.Slot, "of", side_effect=esperd.Slot.of) as of:
            fence = self.fence()
            self.assertEqual((fence.epoch, fence.changes[0].alpha, repr(fence)), (3, 0.25, repr(self.by_hand())))
            again = pickle.loads(pickle.dumps(fence))
            of.assert_not_called()
            self.assertEqual(list(fence.slots), ["r0c0", "r0c1"])
            self.assertIs(fence.slots, fence.slots)
            self.assertEqual(of.call_count, 2)
        self.assertEqual(type(fence.slots), dict)
        self.assertEqual((again, dataclasses.replace(again, epoch=4).slots), (fence, fence.slots))
        self.assertNotEqual(fence, dataclasses.replace(fence, slots={}))
        with self.assertRaisesRegex(AttributeError, "'Fence' object has no attribute 'slotz'"):
            fence.slotz
        self.assertRaises(AttributeError, getattr, esperd.Fence.__new__(esperd.Fence), "slots")

    def test_the_last_fences_slots(self):
        ep = self.connect(mode="follow")
        self.door.play(lambda peer, _: peer.answer(FENCE))
        fence = ep.step_epoch(3)
        self.assertEqual(ep.slots(), self.by_hand().slots)
        ep.slots().clear()
        self.assertEqual(ep.slots(), fence.slots)
        self.assertEqual(len(self.door.sessions()), 1)

    def test_slots_that_have_not_changed_are_kept(self):
        other = {**SLOT, "stage": "HOLDING"}
        ep = self.connect(mode="follow")
        for epoch, (answer, since) in enumerate([
            ({"index": 9, "slots": [SLOT, EMPTY]}, None),
            ({"index": 11, "slots": [other], "since": 9}, 9),
            ({"index": 12, "slots": [], "since": 11}, 11),
            ({"index": 14, "slots": [SLOT, EMPTY]}, 12),  # all, though some would do
        ]):
            self.door.play(lambda peer, _, a=answer: peer.answer({**FENCE, **a}))
            fence = ep.step_epoch(epoch)
            self.assertEqual(self.door.of("call")[-1].body.get("since"), since)
            with mock.patch.object(esperd.Slot, "of", side_effect=esperd.Slot.of) as of:
                got = {name: s.stage for name, s in fence.slots.items()}
            self.assertEqual(of.call_count, len(answer["slots"]), "the others were read before")
            self.assertEqual(got, {"r0c0": "HOLDING" if epoch in (1, 2) else "BLENDING", "r0c1": "DORMANT"})
            self.assertEqual(ep.slots(), fence.slots)
            fence.slots.clear()  # it is the caller's

    def test_changes_since_another_fence(self):
        ep = self.connect()
        for first, bad in ((FENCE, {"since": 8}), (FENCE, {"since": 9, "slots": [{**SLOT, "name": "r9"}]}), ({**FENCE, "slots": 3}, {"since": 9})):
            with self.subTest(bad=bad):
                for epoch, answer in enumerate((first, {**FENCE, "index": 11, "slots": [SLOT], **bad}, {**FENCE, "index": 13})):
                    self.door.play(lambda peer, _, a=answer: peer.answer(a))
                    fence = ep.step_epoch(epoch)
                    if epoch == 1:
                        with self.assertRaisesRegex(esperd.EsperdError, "entry 11 came with slots .*expected every slot, or those that changed since entry"):
                            fence.slots
                self.assertNotIn("since", self.door.of("call")[-1].body, "it has none, and asks for all")
                self.assertEqual(fence.slots, self.by_hand().slots)

    def test_slots_that_nobody_understands(self):
        for slots in (3, [3], [{}], [{**SLOT, "alpha": "x"}], [{**SLOT, "controller": 3}], [{**SLOT, "alpha": 10**400}], [{**SLOT, "name": []}]):
            with self.subTest(slots=slots):
                ep = self.connect()
                self.door.play(lambda peer, _: peer.answer({**FENCE, "slots": slots}))
                fence = ep.step_epoch(3)
                for look in (lambda: fence.slots, ep.slots):
                    with self.assertRaisesRegex(esperd.EsperdError, "entry 9 came with slots that this client does not understand"):
                        look()


if __name__ == "__main__":
    unittest.main()
