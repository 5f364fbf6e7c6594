"""Checkpoints, and going back to them."""

import base64
import io
import json
import pickle
import unittest

import esperd
from tests.fakedoor import DoorTest, lose
from tests.world import World, needs_esperd


def say(document, status=200):
    return lambda peer, _: peer.answer(document, status)


class Marks(DoorTest):
    def test_a_checkpoint_has_no_number(self):
        ep = self.connect()
        ep.step_epoch(0)
        self.assertEqual(ep.checkpoint(), b"no mark")
        ep.step_epoch(1)
        self.assertEqual(self.numbers(), [1, 2])
        (asked,) = [r for r in self.door.requests if r.kind == "checkpoint"]
        self.assertEqual(asked.body["call"], 2, "the place that it is of")

    def test_a_checkpoint_outlives_a_lost_connection(self):
        ep = self.connect()
        self.door.play(lose, at="checkpoint")
        self.assertEqual(ep.checkpoint(), b"no mark")

    def test_resume_is_a_fence(self):
        ep = self.connect()
        self.door.generation = 9  # of what was left
        self.door.play(say({"epoch": 40, "generation": 3, "index": 12, "changes": [], "slots": self.door.slots()}))
        fence = ep.resume(b"mark")
        self.assertEqual((fence.epoch, ep.session.epoch, ep.session.generation, ep.session.index), (40, 40, 3, 12))
        ep.step_epoch(41)
        first, second = self.door.called()
        self.assertEqual((first.path, base64.b64decode(first.body["mark"]), second.body["fence"]), ("/v1/resume", b"mark", 1))
        with self.assertRaises(TypeError):
            ep.resume("mark")

    def test_what_the_ranks_brought(self):
        ep = self.connect()
        marks = [{"ranks": [0, 2], "index": 8, "epoch": 40, "lineage": "a", "sum": "ff"}, {"ranks": [1], "epoch": -1, "sum": "ee", "reason": "truncated"}]
        problem = {"type": "https://esperd.dev/problems/mark-mismatch", "title": "x", "status": 409, "detail": "they differ", "marks": marks}
        self.door.play(say(problem, 409))
        with self.assertRaises(esperd.MarkMismatch) as caught:
            ep.resume(b"mark")
        self.assertEqual({rank: (m.epoch, m.reason) for rank, m in caught.exception.ranks.items()}, {0: (40, ""), 2: (40, ""), 1: (-1, "truncated")})
        ep.resume(b"mark")
        self.assertEqual(self.numbers(), [1, 1], "the number was free")

    def test_connect_with_a_mark_that_is_refused(self):
        self.door.play(say({"type": "x/mark-mismatch", "detail": "no", "status": 409}, 409))
        with self.assertRaises(esperd.MarkMismatch):
            self.connect(resume=b"mark")
        (session,) = [r for r in self.door.requests if r.kind == "session"]
        self.assertEqual(base64.b64decode(session.body["resume"]), b"mark")
        (closed,) = [r for r in self.door.requests if r.kind == "close"]
        self.assertIn("MarkMismatch", closed.body["failed"])

    def test_in_the_mode_observe(self):
        ep = self.connect(mode="observe")
        mark = ep.checkpoint()
        self.assertEqual((mark, ep.resume(mark).index, self.door.called()), (b"", 0, []))
        self.door.play(say({"type": "x/mark-mismatch", "detail": "no", "status": 409}, 409))
        ep.resume(b"another")  # does not raise
        self.assertEqual([r.path for r in self.door.called()], ["/v1/resume"])

    def test_bytes_that_are_no_mark(self):
        for data in (b"", b"no mark", b"esperd mark 1\n", b"esperd mark 1\n" + bytes(40), b"esperd mark 1\n" + bytes(32) + b"\x9b" + b"\xff" * 8, b"esperd mark 1\n" + bytes(32) + b"\x81" * 99):
            mark = esperd.Mark(data)
            with self.assertRaises(ValueError, msg=data):
                mark.epoch
            self.assertIn("that is none", repr(mark))


@needs_esperd
class ARealLog(unittest.TestCase):
    def test_a_governor_and_a_job_that_starts_again(self):
        world = World(self, 2)
        eps = world.connect(self)
        for epoch in (0, 40):
            world.on_all(lambda rank: eps[rank].step_epoch(epoch))
        marks = [ep.checkpoint() for ep in eps]
        self.assertEqual(marks[0], marks[1])
        mark = marks[0]
        self.assertEqual((mark.epoch, mark.generation, mark.model, mark.run), (40, 1, "main", "test"))
        self.assertEqual((mark.index, mark.lineage), (eps[0].step_epoch(57).index - 1, eps[0].session.lineage))
        eps[1].step_epoch(57)
        for stored in (pickle.loads(pickle.dumps(mark, 2)), pickle.loads(pickle.dumps(mark)), bytes.fromhex(json.loads(json.dumps(mark.hex())))):
            self.assertEqual((type(stored), stored), (bytes, mark))
        fences = world.on_all(lambda rank: eps[rank].resume(mark))
        self.assertEqual(fences[0], fences[1])
        self.assertEqual([ep.session.epoch for ep in eps], [40, 40])
        world.on_all(lambda rank: eps[rank].step_epoch(41))
        differing = world.on_all(lambda rank: eps[rank].resume(mark if rank else eps[0].checkpoint()))
        self.assertEqual([sorted(e.ranks) for e in differing], [[0, 1], [0, 1]], differing)
        for ep in eps:
            ep.close()

        resumed = world.connect(self, resume=bytes(mark), slots=None)
        self.assertEqual([ep.session.epoch for ep in resumed], [40, 40])
        self.assertTrue(all(not isinstance(f, Exception) for f in world.on_all(lambda rank: resumed[rank].step_epoch(41))))


class Torch(unittest.TestCase):
    def test_a_mark_in_a_checkpoint(self):
        try:
            import torch
        except ImportError:
            self.skipTest("there is no torch")
        file = io.BytesIO()
        torch.save({"esperd": esperd.Mark(b"\x00\xffmark")}, file)
        file.seek(0)
        self.assertEqual(torch.load(file)["esperd"], b"\x00\xffmark")
