"""check(), before a door without an esperd."""

import logging
import mmap
import os
import threading
import time

import esperd
from esperd import _unnumbered
from tests.fakedoor import DoorTest, hang, lose, problem


class Check(DoorTest):
    def setUp(self):
        super().setUp()
        self.file = os.path.join(os.path.dirname(self.door.path), "words")
        self.make(4096)
        self.door.word = {"path": self.file, "offset": 16}
        self.set(9)

    def make(self, size):
        with open(self.file, "wb") as f:
            f.truncate(size)

    def set(self, value, offset=16):
        with open(self.file, "r+b") as f, mmap.mmap(f.fileno(), 0) as m:
            memoryview(m)[offset : offset + 8].cast("Q")[0] = value

    def states(self):
        return [r.path for r in self.door.of("get")]

    def test_news_are_newer_than_the_last_fence(self):
        ep = self.connect()
        self.assertFalse(ep.check())
        self.set(10, offset=8)
        self.set(10, offset=24)
        self.assertFalse(ep.check(), "other models'")
        self.set(10)
        self.assertTrue(ep.check())
        self.assertTrue(ep.check())
        self.assertEqual(self.states(), ["/v1/state"], "asked once for each value")
        self.set(11)
        self.assertTrue(ep.check())
        self.assertEqual(len(self.states()), 2)
        ep.advance("r0c0")
        self.assertTrue(ep.check(), "no fence")
        self.door.index = 12
        ep.step_epoch(0)
        self.assertFalse(ep.check(), "its own entry is no news, and the word may be late")
        self.set(12)
        self.assertFalse(ep.check())
        self.set(13)
        self.assertTrue(ep.check())

    def test_a_round_that_is_over(self):
        key = {"op": "advance", "call": 9, "epoch": 3}
        fault = {"round": 3, "code": "unavailable", "rank": 2, "node": "n", "index": 40, "got": key, "got_site": "t.py:1", "want": key, "reason": "process 7 ended"}
        ep = self.connect()
        self.set(40)
        self.door.play(lambda peer, _: peer.answer({"round": {"number": 3, "fault": fault}}), at="get")
        self.door.play(lambda peer, _: peer.answer({"ranks": [{"rank": 0}, {"rank": 2, "last": {"rank": 2, "key": key, "site": "t.py:1"}}]}), at="ranks")
        for _ in range(3):
            with self.assertRaises(esperd.RoundFaulted) as caught:
                ep.check()
        self.assertEqual(str(caught.exception), "round-faulted: round 3 is over: the trainer of rank 2 is gone: process 7 ended; its last call was call 9, advance "
                                                "epoch 3 at t.py:1 (entry 40); start it again on all ranks\n  last of rank 2: call 9, advance epoch 3 at t.py:1")
        self.assertEqual((caught.exception.fault.reason, len(self.states()), len(self.door.of("ranks"))), ("process 7 ended", 1, 1))
        self.set(41)
        self.door.play(lambda peer, _: peer.answer({"round": {"number": 4}}), at="get")
        with self.assertRaisesRegex(esperd.RoundFaulted, "round 3 is over: .* round 4 is open"):
            ep.check()

    def test_an_observer_is_told_and_goes_on(self):
        ep = self.connect(mode="observe")
        self.set(41)
        self.door.play(lambda peer, _: peer.answer({"round": {"number": 4}}), at="get")
        logging.getLogger("esperd").setLevel(logging.WARNING)
        with self.assertLogs("esperd", "WARNING"):
            self.assertTrue(ep.check())
        self.door.index = 0
        ep.step_epoch(0, outcomes={})
        self.assertFalse(ep.check(), "its entry is not there yet: what the word is now counts")

    OVER = staticmethod(lambda peer, _: peer.answer({"round": {"number": 4}}))
    NOBODY_KNOWS = (lose, problem("unavailable", 503), lambda peer, _: peer.answer([]), lambda peer, _: peer.answer({"index": 99, "round": {"number": 3, "fault": 1}}),
                    lambda peer, _: peer.answer({}, 404), lambda peer, _: peer.answer({"index": 49, "round": {"number": 3}}), lambda peer, _: peer.answer({"index": "x", "round": None}))

    def look_again_after(self, seconds, rest=0):
        for name, value in (("_LOOK_AGAIN_S", seconds), ("_LOOK_REST", rest)):
            self.addCleanup(setattr, _unnumbered, name, getattr(_unnumbered, name))
            setattr(_unnumbered, name, value)

    def test_a_look_that_failed_is_repeated(self):
        self.look_again_after(0)
        ep = self.connect()
        self.set(50)  # by the last entry there is
        self.door.play(*self.NOBODY_KNOWS, at="get")
        for looks in range(len(self.NOBODY_KNOWS)):
            self.assertTrue(ep.check())
            self.assertEqual(len(self.states()), looks + 1)
        self.door.play(self.OVER, at="get")
        for _ in range(2):
            self.assertRaises(esperd.RoundFaulted, ep.check)
        self.assertEqual(len(self.states()), len(self.NOBODY_KNOWS) + 1)

    def test_but_not_at_once(self):
        self.look_again_after(60)
        ep = self.connect()
        self.set(50)
        self.door.play(lose, self.OVER, at="get")
        for _ in range(10):
            self.assertTrue(ep.check())
            self.set(51)
        self.assertEqual(len(self.states()), 1)
        ep._calls.unnumbered._look_at -= 61
        self.assertRaises(esperd.RoundFaulted, ep.check)

    def test_one_that_waited_rests_for_longer(self):
        self.look_again_after(0, rest=1000)
        self.addCleanup(setattr, _unnumbered, "QUICK_S", _unnumbered.QUICK_S)
        _unnumbered.QUICK_S = 0.1
        ep = self.connect()
        self.set(50)
        self.door.play(hang, self.OVER, at="get")
        began = time.monotonic()
        for _ in range(100):
            self.assertTrue(ep.check())
        self.assertLess(time.monotonic() - began, 1)
        self.assertEqual(len(self.states()), 1)

    def test_a_round_that_is_over_stays_so(self):
        ep = self.connect()
        self.set(50)
        self.door.play(self.OVER, lose, at="get")
        self.assertRaises(esperd.RoundFaulted, ep.check)
        self.set(51)
        self.assertRaises(esperd.RoundFaulted, ep.check)
        self.assertEqual(len(self.states()), 2)

    def test_it_waits_for_no_call(self):
        ep = self.connect()
        self.door.play(hang)
        waits = threading.Thread(target=ep.step_epoch, args=(0,))
        waits.start()
        while not self.door.called():
            time.sleep(0.001)
        self.set(60)
        self.assertTrue(ep.check())
        self.door.released.set()
        waits.join(10)

    def test_words_that_cannot_be_mapped(self):
        self.make(23)
        nothing = []
        for word in (None, {"path": self.file, "offset": 16}, {"path": self.file + "x", "offset": 0}, {"path": self.file, "offset": -8}, {"path": self.file, "offset": 1 << 80},
                     {"path": self.file, "offset": "0"}, {"path": None, "offset": 0}, {"offset": 0}, [], "word", {"path": os.path.dirname(self.file), "offset": 0}):
            self.door.word = word
            ep = self.connect()
            nothing.append(ep.check())
            ep.step_epoch(0)
            nothing.append(ep.check())
        self.assertEqual(set(nothing), {False})
        self.assertEqual(self.states(), [])

    def test_a_file_that_shrank_or_vanished_or_is_another_one(self):
        ep = self.connect()
        os.unlink(self.file)  # an esperd on its way out, or a cleaner: the mapping stays
        self.assertFalse(ep.check())
        self.door.play(lose)
        ep.step_epoch(0)
        self.assertFalse(ep.check())
        self.make(4096)
        self.set(99)
        self.assertFalse(ep.check(), "it is not mapped yet")
        self.door.play(lose)
        ep.advance("r0c0")
        self.assertTrue(ep.check())
        os.unlink(self.file)
        self.make(8)
        self.door.play(lose)
        ep.step_epoch(1)
        self.assertFalse(ep.check())

    def test_the_same_file_is_not_mapped_anew(self):
        ep = self.connect()
        before = ep._calls.word
        ep.advance("r0c0")
        ep.slots()
        self.assertEqual(len(self.door.sessions()), 2)
        self.assertIs(ep._calls.word, before)
        self.door.word = {"path": self.file, "offset": 24}
        ep.advance("r0c0")
        ep.slots()
        self.set(77, offset=24)
        self.assertTrue(ep.check())

    def test_a_forked_child_must_not(self):
        ep = self.connect()
        pid = os.fork()
        if pid == 0:
            try:
                ep.check()
                os._exit(1)
            except esperd.Refused as error:
                os._exit(error.code != "not-authority")
        self.assertEqual(os.waitpid(pid, 0)[1], 0)
        self.assertFalse(ep.check())
        pid = os.fork()
        if pid == 0:  # one that connects by itself may
            own = esperd.connect(self.door.path, rank=1, world_size=2)
            os._exit(own.check())
        self.assertEqual(os.waitpid(pid, 0)[1], 0)


if __name__ == "__main__":
    import unittest

    unittest.main()
