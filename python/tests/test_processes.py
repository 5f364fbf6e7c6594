"""Forks, threads, several models, and the thread that watches for faults."""

import copy
import json
import multiprocessing
import os
import threading
import time
import unittest

import esperd
from tests.fakedoor import DoorTest, hang, lose, problem, send


class Processes(DoorTest):
    def test_a_forked_child_must_not_call(self):
        ep = self.connect()
        ep.advance("r0c0")

        def child(out):
            try:
                with ep:
                    ep.advance("r0c0")
            except esperd.Refused as e:
                out.send((e.code, str(e)))

        here, there = multiprocessing.Pipe()
        p = multiprocessing.get_context("fork").Process(target=child, args=(there,))
        p.start()
        code, said = here.recv()
        p.join()
        self.assertEqual(code, "not-authority")
        self.assertIn(f"belongs to process {os.getpid()}, and this is process {p.pid}", said)
        ep.advance("r0c0")
        self.assertEqual(self.numbers(), [1, 2])
        self.assertEqual(len(self.door.sessions()), 1, "the parent's connection was left alone")

    def test_a_client_cannot_be_copied(self):
        self.assertRaisesRegex(TypeError, "is of the process that connected", copy.deepcopy, self.connect())

    def test_a_child_forked_in_the_middle_of_a_call_does_not_hang(self):
        ep = self.connect()
        self.door.play(hang)
        waits = threading.Thread(target=ep.step_epoch, args=(0,))
        waits.start()
        while not self.door.called():
            time.sleep(0.001)
        pid = os.fork()
        if pid == 0:  # the lock is held here, for ever
            status = 1
            try:
                ep.close()
                ep.slots()
            except esperd.Refused:
                status = 0
            finally:
                os._exit(status)
        self.assertEqual(os.waitpid(pid, 0)[1], 0)
        self.door.released.set()
        waits.join(10)

    def test_calls_of_many_threads_are_made_one_after_the_other(self):
        ep = self.connect()
        other = ep.model("other")

        def work(client):
            for _ in range(20):
                client.observe("r0c0", accuracy=1)
                client.advance("r0c0")

        threads = [threading.Thread(target=work, args=(c,)) for c in (ep, other) * 4]
        for t in threads:
            t.start()
        for t in threads:
            t.join(30)
        for model in ("main", "other"):
            self.assertEqual([r.body["call"] for r in self.door.called() if r.body["model"] == model], list(range(1, 81)))

    def test_models_do_not_wait_for_each_other(self):
        ep = self.connect(slots=["r0c0"])
        other = ep.model("other")
        self.door.play(hang)
        waits = threading.Thread(target=ep.step_epoch, args=(0,))
        waits.start()
        while not self.door.called():
            time.sleep(0.001)
        other.advance("r0c0")
        third = ep.model("third")
        self.door.released.set()
        waits.join(10)
        self.assertIs(ep.model("other"), other)
        self.assertIs(third.model("main"), ep)
        self.assertEqual({r.body["incarnation"] for r in self.door.sessions()}, {self.door.sessions()[0].body["incarnation"]})
        self.assertEqual([r.body["slots"] for r in self.door.sessions()], [[{"name": "r0c0"}]] * 3)
        with self.assertRaisesRegex(esperd.Refused, "open with another configuration"):
            ep.model("other", slots=["x"])

    def test_an_open_model_is_found_by_its_name(self):
        ep = self.connect(slots=["r0c0"])
        critic = ep.model("critic", slots=["r0c1"], auto_forward=["G1"])
        self.assertIs(ep.model("critic"), critic)
        self.assertIs(critic.model("main"), ep)
        critic.model("third")
        self.assertEqual([r.body["slots"][0]["name"] for r in self.door.sessions()], ["r0c0", "r0c1", "r0c1"], "a new one is configured as who opens it")

    def test_a_model_that_did_not_open_may_be_opened_again(self):
        ep = self.connect()
        self.door.play(problem("config-mismatch", 409), at="session")
        self.assertRaises(esperd.ConfigMismatch, ep.model, "other")
        self.assertEqual(ep.model("other").advance("r0c0").message, "m")

    def test_close_ends_a_call_that_waits(self):
        ep = self.connect()
        other = ep.model("other")
        self.door.play(hang)
        raised = []

        def wait():
            try:
                other.step_epoch(0)
            except esperd.Unavailable as e:
                raised.append(e)

        waits = threading.Thread(target=wait)
        waits.start()
        while not self.door.called():
            time.sleep(0.001)
        with ep:
            pass
        waits.join(10)
        self.assertIn("this client was closed", str(raised[0]))
        ep.close()
        self.assertRaisesRegex(esperd.Unavailable, "was closed", ep.advance, "r0c0")
        self.assertRaisesRegex(esperd.Unavailable, "was closed", ep.model, "another")


class Watching(DoorTest):
    FAULT = {"round": 3, "code": "missing-call", "rank": 0, "node": "n", "index": 40, "got_site": "a.py:1", "want_site": "b.py:2",
             "got": {"op": "step_epoch", "call": 9, "epoch": 4}, "want": {"op": "advance", "slot": "r0c0", "seed": 1, "call": 9, "epoch": 3}}

    def state(self, fault=None, number=3):
        return lambda peer, _: peer.answer({"index": 30, "round": {"number": number, "fault": fault}})

    def entries(self, *events):
        def trick(peer, request):
            self.assertEqual(request.path, "/v1/events?follow=true&from=31")
            peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for event in events:
                line = json.dumps({"index": 31, "kind": "x", "events": [event]}).encode() + b"\n"
                peer.send(b"%x\r\n%b\r\n" % (len(line), line))
            peer.door.released.wait(30)
        return trick

    def told(self, *tricks):
        self.door.play(*tricks, at="get")
        told, calls = threading.Event(), []

        def on_fatal(error):
            calls.append(error)
            told.set()

        self.connect(on_fatal=on_fatal)
        self.assertTrue(told.wait(10))
        self.assertEqual(len(calls), 1)
        return calls[0]

    def test_a_fault_in_the_log(self):
        other_round = {"type": "round_faulted", **self.FAULT, "round": 2}
        error = self.told(self.state(), self.entries({"type": "observed"}, other_round, {"type": "round_faulted", **self.FAULT}))
        self.assertIsInstance(error, esperd.RoundFaulted)
        self.assertEqual(str(error), "round-faulted: round 3 is over: rank 0 was at call 9, step_epoch epoch 4 at a.py:1, where rank 0 made "
                                     "call 9, advance r0c0#1 epoch 3 at b.py:2 (entry 40); every rank has to make the same calls in the same order: "
                                     "mend the trainer and connect again on all ranks")
        self.assertEqual((error.fault.rank, error.want_site), (0, "b.py:2"))

    def test_what_each_rank_did_last(self):
        ranks = [{"rank": 0, "last": {"rank": 0, "key": {"op": "advance", "slot": "r0c0", "seed": 1, "call": 9, "epoch": 3}, "site": "b.py:2"}},
                 {"rank": 1, "unreachable": "its node does not answer"}]
        self.door.play(lambda peer, _: peer.answer({"ranks": ranks}), at="ranks")
        fault = {**self.FAULT, "got": {**self.FAULT["got"], "model": "a/b"}}
        error = self.told(self.state(fault))
        self.assertEqual(str(error).partition("\n")[2], "  last of rank 0: call 9, advance r0c0#1 epoch 3 at b.py:2")
        self.assertEqual([r.path for r in self.door.of("ranks")], ["/v1/ranks?model=a%2Fb"])

    def test_and_where_nobody_can_say_it(self):
        from esperd import _last_calls
        before, _last_calls._ANSWER_MAX_S = _last_calls._ANSWER_MAX_S, 0.05
        self.addCleanup(setattr, _last_calls, "_ANSWER_MAX_S", before)
        for trick in (lose, hang, problem("unavailable", 503), send(b"nonsense"), lambda peer, _: peer.answer({"ranks": [{"last": 1}]}), lambda peer, _: peer.answer([])):
            self.door.play(trick, at="ranks")
            self.assertEqual(self.told(self.state(self.FAULT)).last, ())

    def test_a_fault_before_the_watch_began(self):
        self.assertEqual(self.told(self.state(self.FAULT)).fault.index, 40)

    def test_an_esperd_that_goes_and_comes_back(self):
        from esperd import _faults
        before, _faults._RETRY_S = _faults._RETRY_S, 0.01
        self.addCleanup(setattr, _faults, "_RETRY_S", before)
        self.told(self.state(), lose, send(b"nonsense"), problem("unavailable", 503), self.state(), problem("unavailable", 503), self.state(self.FAULT))

    def test_nothing_is_told_of_a_round_that_ends_well_or_after_close(self):
        told = []
        for tricks in ([self.state(number=4)], [self.state(), self.entries({"type": "round_opened", "round": 4}, {"type": "round_faulted", **self.FAULT})]):
            self.door.play(*tricks, at="get")
            ep = self.connect(on_fatal=told.append)
            ep._family.watch.join(10)
            self.assertFalse(ep._family.watch.is_alive())
        self.door.play(self.state(), self.entries(), at="get")
        ep = self.connect(on_fatal=told.append)
        ep.close()
        self.assertFalse(ep._family.watch.is_alive())
        self.assertEqual(told, [])

    def test_who_ended_the_round_is_told_by_its_call(self):
        told, own = [], {**self.FAULT, "rank": 1}
        for tricks in ([self.state(own)], [self.state(), self.entries({"type": "round_faulted", **own})]):
            self.door.play(*tricks, at="get")
            ep = self.connect(on_fatal=told.append)
            ep._family.watch.join(10)
            self.assertFalse(ep._family.watch.is_alive())
        self.assertEqual(told, [])
        gone = {**own, "code": "unavailable", "reason": "process 7 ended"}
        self.assertIn("the trainer of rank 1 is gone: process 7 ended", str(self.told(self.state(gone))), "by no call of its own")

    def test_a_callback_that_fails_is_logged(self):
        self.door.play(self.state(self.FAULT), at="get")
        with self.assertLogs("esperd", "ERROR"):
            self.connect(on_fatal=lambda error: 1 / 0)._family.watch.join(10)


if __name__ == "__main__":
    unittest.main()
