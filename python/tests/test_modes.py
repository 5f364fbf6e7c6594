"""Modes, orderings and generations, before a door without an esperd."""

import logging
import os
import threading
import time

import esperd
from esperd import Outcome, _observed
from tests.fakedoor import DECISION, DoorTest, hang, lose, problem


class Reconnecting(DoorTest):
    def returning(self):
        return {k: v for k, v in self.door.sessions()[-1].body.items() if k in ("answered", "round", "lineage", "fence_index", "fences", "matched", "mode", "ordering")}

    def work(self, **options):
        """Make calls with the indexes 20 to 26, two of them refused, of which one
        is a fence, and lose the connection in the last one."""
        ep = self.connect(**options)
        self.door.index, self.door.counts = 20, True
        ep.advance("r0c0")
        ep.step_epoch(0)  # 21
        ep.advance("r0c0")  # 22
        self.door.index = 24
        self.door.play(problem("illegal-transition", 409, index=23))
        self.assertRaises(esperd.Refused, ep.prune, "r0c0")
        ep.advance("r0c0")  # 24
        self.door.play(lose)
        ep.advance("r0c0")  # 25
        return ep

    def test_numbers_say_where_a_keyed_and_strict_trainer_stands(self):
        self.work()
        self.assertEqual(self.returning(), {"mode": "keyed", "ordering": "strict", "answered": 5, "round": 3, "lineage": "abc"})
        self.assertEqual([(r.body["call"], r.body["fence"]) for r in self.door.called()], [(1, 0), (2, 0), (3, 1), (4, 1), (5, 1), (6, 1), (6, 1)])

    def test_entries_say_where_one_with_another_order_stands(self):
        ep = self.work(ordering="warn")
        self.assertEqual(self.returning(), {"mode": "keyed", "ordering": "warn", "answered": 5, "round": 3, "lineage": "abc", "fence_index": 21, "matched": [22, 23, 24]})
        self.door.play(problem("illegal-transition", 409, index=30))
        self.assertRaises(esperd.Refused, ep.step_epoch, 0)
        self.door.play(lose)
        self.door.fences["main", 7] = 1  # which a refused one is not
        ep.advance("r0c0")
        self.assertEqual((self.returning()["fence_index"], self.returning()["matched"]), (30, []))
        self.assertEqual([(r.body["call"], r.body["fence"]) for r in self.door.called()][-1], (8, 1))

    def test_a_fence_says_where_a_follower_stands(self):
        ep = self.connect(mode="follow")
        self.door.play(lose)
        ep.step_epoch(0)
        self.assertEqual(self.returning(), {"mode": "follow", "ordering": "strict", "answered": 0, "round": 3, "lineage": "abc", "fence_index": 9})
        self.door.index = 40
        ep.step_epoch(1)
        self.door.play(lose)
        ep.fence(1)
        self.assertEqual((self.returning()["answered"], self.returning()["fence_index"]), (2, 40))

    def test_an_observer_says_how_often_it_fenced(self):
        ep = self.connect(mode="observe", ordering="warn")
        self.door.index = 0
        ep.advance("r0c0", outcome=Outcome("TRAINING"))
        ep.step_epoch(0, outcomes={})
        self.door.play(lose)
        ep.step_epoch(1, outcomes={})
        self.assertEqual(self.returning(), {"mode": "observe", "ordering": "warn", "answered": 2, "round": 3, "lineage": "abc", "fence_index": 9, "fences": 1, "matched": []})

    def test_an_interrupted_call_is_matched_once(self):
        ep = self.connect(ordering="warn")
        self.door.index, self.door.counts = 20, True
        ep.advance("r0c0")
        ep._calls._matched.append(21)  # a signal came before the number was taken
        ep.advance("r0c0")
        self.door.play(lose)
        ep.advance("r0c0")
        self.assertEqual(self.returning()["matched"], [20, 21])


class Follow(DoorTest):
    def test_slots_move_at_fences_only(self):
        ep = self.connect(mode="follow")
        ep.germinate("r0c0", "conv")
        ep.slots()
        ep.step_epoch(0)
        ep.slots()
        self.assertEqual(len(self.door.sessions()), 1, "what is known is not asked for")
        self.door.fences["main", 3] = 1
        self.door.play(problem("illegal-transition", 409, index=8))
        self.assertRaises(esperd.Refused, ep.step_epoch, 0)
        ep.slots()
        self.assertEqual(len(self.door.sessions()), 2)

    def test_a_call_that_is_rank_0s(self):
        ep = self.connect(mode="follow")
        ep.observe("r0c0", accuracy=3)
        self.door.play(problem("not-authority", 403))
        with self.assertRaises(esperd.Refused) as caught:
            ep.advance("r0c0")
        self.assertEqual(caught.exception.code, "not-authority")
        ep.step_epoch(0)
        self.assertEqual([(r.body["call"], len(r.body["observations"])) for r in self.door.called()], [(1, 1), (1, 1)], "its number is free")

    def test_what_is_no_mode_is_not_sent(self):
        for wrong, text in (({"mode": "lead"}, "mode: expected 'keyed', 'follow' or 'observe', got 'lead'"),
                            ({"ordering": ""}, "ordering: expected 'strict' or 'warn', got ''")):
            with self.assertRaisesRegex(ValueError, text):
                esperd.connect("/nobody/serves/this", **wrong)
        self.assertRaises(TypeError, self.connect, mode=None)
        self.assertRaises(TypeError, self.connect, ordering=1)
        self.assertEqual(self.door.sessions(), [])


class Reset(DoorTest):
    def test_it_is_a_fence_and_the_generation_follows(self):
        ep = self.connect()
        self.assertEqual(ep.session.generation, 1)
        ep.reset()
        self.assertEqual((ep.session.generation, ep.session.round), (2, 3))
        self.door.play(problem("illegal-transition", 409, index=7))
        self.assertRaises(esperd.Refused, ep.reset)
        self.assertEqual(ep.session.generation, 2)
        self.door.fences["main", 2] = 1
        self.door.generation = 2
        self.door.play(lose)
        ep.reset()
        self.assertEqual(ep.session.generation, 3)
        self.assertEqual([(r.path, r.body["call"], r.body["fence"]) for r in self.door.called()],
                         [("/v1/reset", 1, 0), ("/v1/reset", 2, 1), ("/v1/reset", 3, 1), ("/v1/reset", 3, 1)])


class Observe(DoorTest):
    def setUp(self):
        super().setUp()
        logging.getLogger("esperd").setLevel(logging.WARNING)
        for name, value in (("_RETRY_MIN_S", 0.2), ("_RETRY_MAX_S", 0.2), ("_OPEN_S", 0.3), ("OBSERVED_S", 0.3)):
            self.addCleanup(setattr, _observed, name, getattr(_observed, name))
            setattr(_observed, name, value)

    def observe(self, **options):
        return self.connect(mode="observe", **options)

    def outage(self):
        return self.assertLogs("esperd", "WARNING")

    def test_calls_bring_what_the_trainer_did(self):
        ep = self.observe()
        self.door.index = 0
        ep.germinate("r0c0", "conv", outcome=Outcome("GERMINATED"))
        ep.advance("r0c0", outcome=Outcome("TRAINING", passed=True))
        ep.prune("r0c0", outcome=Outcome("PRUNED", alpha=0))
        ep.step_epoch(0, outcomes={"r0c0": Outcome("EMBARGOED"), "r0c1": Outcome("BLENDING", float("nan"))})
        ep.reset()
        told = [(r.op, r.body.get("outcomes")) for r in self.door.called()]
        self.assertEqual(told, [("germinate", [{"slot": "r0c0", "stage": "GERMINATED", "alpha": 0.0}]),
                                ("advance", [{"slot": "r0c0", "stage": "TRAINING", "alpha": 0.0, "passed": True}]),
                                ("prune", [{"slot": "r0c0", "stage": "PRUNED", "alpha": 0.0}]),
                                ("step", [{"slot": "r0c0", "stage": "EMBARGOED", "alpha": 0.0}, {"slot": "r0c1", "stage": "BLENDING", "alpha": "NaN"}]),
                                ("reset", None)])

    def echoes(self, ep):
        """Make calls and check what they return, which the door has no part in."""
        done = ep.germinate("r0c0", "conv", outcome=Outcome("GERMINATED"))
        self.assertEqual((done.slot, done.seed, done.stage, done.alpha), ("r0c0", 1, "GERMINATED", 0.0))
        d = ep.advance("r0c0", outcome=Outcome("TRAINING", passed=True))
        self.assertEqual((d.gate, d.passed, d.slot, d.seed, d.stage, d.local, d.agreed), ("G1", True, "r0c0", 1, "TRAINING", None, True))
        d = ep.verdict("r0c0", gate="G2", passed=True, score=0.5, checks_failed=["x"], message="m", outcome=Outcome("TRAINING", passed=False))
        self.assertEqual((d.gate, d.passed, d.score, d.checks_failed, d.message, d.stage), ("G2", False, 0.5, ("x",), "m", "TRAINING"))
        fence = ep.step_epoch(4, outcomes={"r0c0": Outcome("BLENDING", 0.25)})
        self.assertEqual((fence.epoch, fence.changes, fence.slots["r0c1"]), (4, (), esperd.Slot("r0c1", "DORMANT", 0.0, 0)))
        self.assertEqual(fence.slots["r0c0"], esperd.Slot("r0c0", "BLENDING", 0.25, 1, 1, "r0c0-conv", "conv"))
        self.assertEqual(ep.slots(), fence.slots)
        ep.prune("r0c0", outcome=Outcome("DORMANT"))
        self.assertEqual(ep.slots()["r0c0"], esperd.Slot("r0c0", "DORMANT", 0.0, 1))
        ep.prune("r9c9", outcome=Outcome("DORMANT"))
        self.assertEqual(ep.fence(1, outcomes={"r0c0": Outcome("TRAINING")}).slots["r0c0"].seed, 2, "it germinated before anybody looked")
        self.assertEqual(ep.reset().slots["r0c0"].germinations, 0)
        self.assertEqual(list(ep.slots()), ["r0c0", "r0c1"])
        return done, d, fence

    def test_a_call_returns_what_it_was_told(self):
        ep = self.observe()
        self.assertEqual([x.index for x in self.echoes(ep)], [10, 10, 10])
        ep.germinate("r0c1", "conv", outcome=Outcome("GERMINATED"))
        self.assertEqual(ep.model("main").slots()["r0c1"].stage, "GERMINATED")

    def test_and_nothing_else_when_esperd_is_away(self):
        ep = self.observe()
        self.door.shut()
        self.addCleanup(self.door.open)
        began = time.monotonic()
        with self.outage() as logs:
            self.assertEqual([x.index for x in self.echoes(ep)], [0, 0, 0])
            ep.observe("r0c0", accuracy=1)
            self.assertEqual((ep.request("prune", slot="r0c0"), ep.check()), (0, False))
            with ep.busy("evaluation", 60):
                pass
        self.assertLess(time.monotonic() - began, 1)
        self.assertEqual(len(logs.output), 1, logs.output)
        self.assertIn("this is only observed, and the training goes on without", logs.output[0])

    def test_one_that_is_stopped_holds_nobody_up(self):
        ep = self.observe()
        self.door.play(*[hang] * 9)
        self.door.play(*[hang] * 9, at="session")
        began = time.monotonic()
        with self.outage() as logs:
            for epoch in range(1000):
                ep.step_epoch(epoch, outcomes={})
                if time.monotonic() - began > 0.45:
                    break
        self.assertGreater(epoch, 2)
        self.assertLess(time.monotonic() - began, 1.5)
        self.assertEqual(len(logs.output), 1)

    def test_one_that_comes_back_hears_the_rest(self):
        ep = self.observe()
        ep.step_epoch(0, outcomes={})
        self.door.shut()
        with self.outage():
            for epoch in range(1, 5):
                ep.step_epoch(epoch, outcomes={})
                ep.observe("r0c0", accuracy=epoch)
        self.door.open()
        self.assertEqual(ep.step_epoch(5, outcomes={}).index, 0, "not before the pause is over")
        time.sleep(0.25)
        self.assertEqual(ep.step_epoch(6, outcomes={}).index, 10)
        calls = [(r.path, r.body["call"], r.body["fence"], len(r.body.get("observations", ()))) for r in self.door.called()]
        self.assertEqual(calls, [("/v1/epochs/0/step", 1, 0, 0), ("/v1/epochs/1/step", 2, 1, 0), ("/v1/epochs/6/step", 3, 2, 1)],
                         "the one whose answer was lost comes first, under its number")

    def test_what_esperd_refuses_fails_nothing(self):
        ep = self.observe()
        tricks = [problem("round-faulted", 409), problem("not-authority", 403), problem("diverged", 503), problem("illegal-transition", 409, index=7), problem("invalid-input", 422)]
        self.door.play(*tricks)
        with self.outage() as logs:
            for _ in tricks:
                self.assertEqual(ep.advance("r0c0", outcome=Outcome("TRAINING")).stage, "TRAINING")
                time.sleep(0.25)
            ep.observe("r9c9", accuracy=1)
            ep.advance("", outcome=Outcome("TRAINING"))
            self.door.play(problem("not-authority", 403), at="requests")
            self.assertEqual(ep.request("prune", slot="r0c0"), 0)
            ep.advance("r0c0", outcome=Outcome("TRAINING"))
        self.assertEqual(self.numbers(), [1, 1, 1, 1, 2, 2, 3], "diverged leaves it open, so it is told again; an entry takes the number")
        kinds = ("what round-faulted", "what not-authority", "what diverged", "what illegal-transition", "what invalid-input", "has no slot", "what not-authority")
        self.assertEqual([[k for k in kinds if k in line][:1] for line in logs.output], [[k] for k in kinds], "each once")

    def test_an_answer_that_nobody_understands_fails_nothing(self):
        ep = self.observe()
        self.door.play(lambda peer, _: peer.answer(b"nonsense"))
        with self.outage():
            self.assertEqual(ep.step_epoch(0, outcomes={}).index, 0)
        self.assertEqual(ep.step_epoch(1, outcomes={}).index, 10)
        self.assertEqual([r.path for r in self.door.called()], ["/v1/epochs/0/step"] * 2 + ["/v1/epochs/1/step"])

    def test_a_stale_connection_is_replaced_at_once(self):
        ep = self.observe()
        self.door.shut()
        self.door.open()
        self.assertEqual(ep.step_epoch(0, outcomes={}).index, 10)

    def test_wrong_arguments_are_still_wrong(self):
        ep = self.observe()
        self.door.shut()
        self.addCleanup(self.door.open)
        with self.outage():
            ep.step_epoch(0, outcomes={})
        for call in (lambda: ep.advance("r0c0"), lambda: ep.step_epoch(1), lambda: ep.fence(1), lambda: ep.germinate("r0c0", "conv", outcome="GERMINATED"),
                     lambda: ep.advance("r0c0", outcome=Outcome(3)), lambda: ep.advance(None, outcome=Outcome("TRAINING")), lambda: ep.step_epoch(1, outcomes=[]),
                     lambda: ep.advance("r0c0", outcome=Outcome("TRAINING", alpha="x")), lambda: ep.observe("r0c0", accuracy="1"), lambda: ep.busy(3, 4),
                     lambda: ep.request("prune", slot=3), lambda: ep.sync_gate("r0c0", esperd.Verdict("G2", True))):
            self.assertRaises(TypeError, call)
        with self.assertRaisesRegex(TypeError, r"advance: in the mode observe expected what the trainer did: outcome=esperd.Outcome\(stage, alpha, passed\)"):
            ep.advance("r0c0")
        for mode in ("keyed", "follow"):
            decides = None
            self.door.open()
            decides = self.connect(mode=mode)
            with self.assertRaisesRegex(TypeError, f"advance: expected no outcome in the mode {mode}, in which esperd decides"):
                decides.advance("r0c0", outcome=Outcome("TRAINING"))
            self.assertRaises(TypeError, decides.reset, outcomes={})
            self.door.shut()

    def test_a_broadcast_result_stays_what_it_is(self):
        ep = self.observe()
        mine = esperd.Verdict("G2", True, 0.5, ("a",), (), "mine")
        got = ep.sync_gate("r0c0", mine, outcome=Outcome("BLENDING", 0.1, True))
        self.assertEqual((got.gate, got.passed, got.score, got.checks_passed, got.message, got.agreed), ("G2", True, 0.5, ("a",), "mine", True))
        self.assertNotEqual(got.message, DECISION["message"])

    def test_a_forked_child_tells_nothing(self):
        ep = self.observe()
        held = threading.Event()
        with ep._calls._lock:  # as if another thread were in a call
            pid = os.fork()
            if pid == 0:
                logging.getLogger("esperd").setLevel(logging.CRITICAL)
                os._exit(0 if ep.advance("r0c0", outcome=Outcome("TRAINING")).stage == "TRAINING" else 1)
            self.assertEqual(os.waitpid(pid, 0)[1], 0)
        held.set()
        self.assertEqual(self.door.called(), [])

    def test_connecting_fails_as_ever(self):
        self.door.play(problem("config-mismatch", 409), at="session")
        self.assertRaises(esperd.ConfigMismatch, self.observe)

    def test_another_model_that_cannot_be_opened(self):
        ep = self.observe(slots=["r0c0", "r0c1"])
        self.door.play(hang, at="session")
        began = time.monotonic()
        with self.outage() as logs:
            other = ep.model("other")
            self.echoes(other)
        self.assertLess(time.monotonic() - began, 2)
        self.assertEqual((other.session.model, other.session.round, other.session.generation), ("other", 3, 1))
        self.assertEqual(len(logs.output), 1)
        time.sleep(0.25)
        self.assertEqual(other.step_epoch(9, outcomes={}).index, 10)
        self.assertEqual([(r.body["model"], r.body["call"]) for r in self.door.called()], [("other", 1)])
        self.assertEqual([r.body.get("answered") for r in self.door.sessions() if r.body["model"] == "other"], [None, None, 0], "it says that calls are missing")

    def told(self):
        return [(r.op, r.body.get("answered", r.body.get("call"))) for r in self.door.requests if r.kind in ("session", "call")]

    def test_esperd_hears_that_calls_are_missing(self):
        ep = self.observe()
        ep.step_epoch(0, outcomes={})
        self.door.shut()
        with self.outage():
            for epoch in (1, 2):
                ep.step_epoch(epoch, outcomes={})
        self.door.open()
        time.sleep(0.25)
        for epoch in (3, 4):
            ep.step_epoch(epoch, outcomes={})
        self.assertEqual(self.told(), [("session", None), ("step", 1), ("session", 1), ("step", 2), ("session", 2), ("step", 3), ("step", 4)],
                         "call 2 was made before the ones that are missing")
        self.assertEqual([(s.body.get("fences"), s.body.get("fence_index")) for s in self.door.sessions()], [(None, None), (1, 10), (2, 10)])

    def test_also_over_a_connection_that_is_up(self):
        ep = self.observe()
        self.door.play(hang, at="requests")
        with self.outage():
            self.assertEqual(ep.request("prune", slot="r0c0"), 0)
            self.assertEqual(ep.step_epoch(0, outcomes={}).index, 10, "what has no number keeps no call from being told")
            self.door.play(*[problem("unavailable", 503)] * 9)
            ep.step_epoch(1, outcomes={})
        ep.advance("r0c0", outcome=Outcome("TRAINING"))
        time.sleep(0.25)
        self.door.requests.clear()
        self.door._tricks["call"].clear()
        for epoch in (2, 3):
            ep.step_epoch(epoch, outcomes={})
        self.assertEqual(self.told(), [("session", 1), ("step", 2), ("session", 2), ("step", 3), ("step", 4)])
        self.door.play(problem("invalid-input", 422))
        with self.outage():
            ep.step_epoch(4, outcomes={})
        self.door.requests.clear()
        ep.step_epoch(5, outcomes={})
        self.assertEqual(self.told(), [("session", 4), ("step", 5)], "the one that was refused is missing")

    def test_a_pause_in_which_nothing_is_called_misses_nothing(self):
        ep = self.observe()
        self.door.shut()
        with self.outage():
            ep.step_epoch(0, outcomes={})
        self.door.open()
        time.sleep(0.25)
        self.door.requests.clear()
        ep.step_epoch(1, outcomes={})
        self.assertEqual(self.told(), [("session", 0), ("step", 1), ("step", 2)])

    def test_each_outage_is_a_warning(self):
        ep = self.observe()
        self.door.play(problem("not-authority", 403), at="requests")
        with self.outage() as logs:
            ep.request("prune", slot="r0c0")
            for outage in (0, 2, 4):
                self.door.shut()
                ep.step_epoch(outage, outcomes={})
                time.sleep(0.25)
                ep.step_epoch(outage, outcomes={})
                ep.request("prune", slot="r0c0")
                self.door.open()
                time.sleep(0.25)
                self.assertEqual(ep.step_epoch(outage + 1, outcomes={}).index, 10)
        self.assertEqual(["not-authority" in line for line in logs.output], [True, False, False, False])

    def test_one_that_is_stopped_is_asked_for_little(self):
        _observed._RETRY_MIN_S = 60.0
        ep = self.observe()
        busy = ep.busy("evaluation", 60)
        for kind in ("call", "session", "busy", "get", "requests"):
            self.door.play(*[hang] * 9, at=kind)
        began = time.monotonic()
        with self.outage():
            ep.step_epoch(0, outcomes={})
        ep._calls.word = memoryview(b"\1" * 8).cast("Q")
        for _ in range(20):
            self.assertTrue(ep.check())
            busy.done()
            ep.busy("evaluation", 1)
            ep.request("prune", slot="r0c0")
        self.assertLess(time.monotonic() - began, 2)
        self.assertEqual(self.door.of("get") + self.door.of("requests"), [])


if __name__ == "__main__":
    import unittest

    unittest.main()
