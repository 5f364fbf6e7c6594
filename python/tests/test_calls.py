"""Numbers, repetitions and lost connections, before a door without an esperd."""

import json
import pickle
import signal
import threading
import time
import unittest

import esperd
from tests.fakedoor import DoorTest, hang, lose, problem, send


class Numbers(DoorTest):
    def test_the_session_says_who_calls(self):
        ep = self.connect(slots={"r0c0": None, "r0c1": esperd.SlotConfig(blueprints=("conv",), auto_forward=("G1",), gates=esperd.Gates(permissive=True))},
                          gates={"min_blending_epochs": 3}, auto_forward=["G3"], fingerprint="m:1/2/0", run_id="run-1")
        body = self.door.requests[0].body
        self.assertRegex(body.pop("incarnation"), "^[0-9a-f]{32}$")
        self.assertRegex(body.pop("site"), r"^fakedoor.py:\d+$")
        defaults = {"permissive": False, "min_training_improvement": 0.5, "min_blending_epochs": 10, "min_seed_gradient_ratio": 0.1,
                    "min_gradient_health_for_blending": 0.7, "min_probation_stability": 0.95}
        self.assertEqual(body, {"protocol": 1, "rank": 1, "world_size": 2, "run_id": "run-1", "fingerprint": "m:1/2/0", "model": "main",
                                "mode": "keyed", "ordering": "strict",
                                "gates": {**defaults, "min_blending_epochs": 3}, "auto_forward": ["G3"],
                                "slots": [{"name": "r0c0"}, {"name": "r0c1", "blueprints": [{"name": "conv"}], "auto_forward": ["G1"],
                                                             "gates": {**defaults, "permissive": True}}]})
        self.assertEqual((ep.session.run_id, ep.session.round, ep.rank, ep.world_size, ep.name), ("run-1", 3, 1, 2, "main"))

    def test_calls_and_fences_are_counted(self):
        ep = self.connect()
        ep.germinate("r0c0", "conv")
        ep.step_epoch(0)
        ep.advance("r0c0")
        ep.fence(1)
        ep.prune("r0c0")
        self.assertEqual([(r.path, r.body["call"], r.body["fence"]) for r in self.door.called()], [
            ("/v1/slots/r0c0/germinate", 1, 0), ("/v1/epochs/0/step", 2, 0), ("/v1/slots/r0c0/advance", 3, 1), ("/v1/fence", 4, 1), ("/v1/slots/r0c0/prune", 5, 2)])

    def test_a_refusal_in_the_log_takes_the_number_and_another_does_not(self):
        ep = self.connect()
        self.door.play(problem("illegal-transition", 409, index=7), problem("invalid-input", 422))
        with self.assertRaises(esperd.Refused) as caught:
            ep.prune("r0c0")
        self.assertEqual((caught.exception.index, caught.exception.code), (7, "illegal-transition"))
        with self.assertRaises(esperd.Refused):
            ep.advance("r0c0")
        ep.advance("r0c0", "FOSSILIZED")
        self.assertEqual(self.numbers(), [1, 2, 2])

    def test_arguments_are_sent_as_the_door_takes_them(self):
        ep = self.connect()
        ep.germinate("a/b ü", "conv", seed="s", blend="gated", tempo=3, algorithm="GATE", target=float("nan"))
        ep.verdict("..", gate="G2", passed=1, score=2, checks_passed=("a",), message="m")
        ep.schedule_prune("r0c0", ticks=3, curve="COSINE", reason="x")
        ep.alpha_target("r0c0", target=0.5, ticks=2, algorithm="MULTIPLY")
        paths = [r.path for r in self.door.called()]
        self.assertEqual(paths[:2], ["/v1/slots/a%2Fb%20%C3%BC/germinate", "/v1/slots/%2E%2E/verdict"])
        for r in self.door.called():
            for known in ("session", "model", "call", "fence", "site"):
                del r.body[known]
        self.assertEqual([r.body for r in self.door.called()], [
            {"blueprint": "conv", "seed_id": "s", "blend": "gated", "tempo": 3, "algorithm": "GATE", "target": "NaN"},
            {"gate": "G2", "passed": True, "score": 2.0, "checks_passed": ["a"], "checks_failed": [], "message": "m"},
            {"ticks": 3, "curve": "COSINE", "steepness": 12.0, "reason": "x", "initiator": "policy"},
            {"target": 0.5, "ticks": 2, "steepness": 12.0, "algorithm": "MULTIPLY"}])

    def test_what_cannot_be_sent_is_refused_here(self):
        ep = self.connect()
        for call in (lambda: ep.germinate("r0c0", 3), lambda: ep.step_epoch(1.5), lambda: ep.observe("r0c0", accuracy="93"),
                     lambda: ep.schedule_prune("r0c0", ticks="3"), lambda: ep.advance(None), lambda: self.connect(slots="r0c0"),
                     lambda: self.connect(gates={"min_training": 1})):
            self.assertRaises(TypeError, call)
        with self.assertRaisesRegex(esperd.Refused, "expected a name, got an empty string"):
            ep.advance("")
        self.assertEqual(self.numbers(), [])

    def test_a_request_that_is_too_long_is_not_sent(self):
        ep = self.connect()
        ep.observe("r0c0", accuracy=7)
        with self.assertRaisesRegex(esperd.Refused, r"has 83\d+ bytes, expected at most 8388608"):
            ep.prune("r0c0", "x" * (8 << 20))
        ep.step_epoch(0)
        self.assertEqual([(r.body["call"], len(r.body["observations"])) for r in self.door.called()], [(1, 1)])
        self.assertRaises(esperd.Refused, self.connect, slots=["x" * (8 << 20)])

    def test_an_answer_before_the_end_of_the_request_is_no_lost_connection(self):
        ep = self.connect()
        refusal = json.dumps({"type": "https://esperd.dev/problems/invalid-input", "detail": "too long"}).encode()
        self.door.interrupt = b"HTTP/1.1 413 X\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(refusal), refusal)
        with self.assertRaisesRegex(esperd.Refused, "too long"):
            ep.prune("r0c0", "x" * (4 << 20))

    def test_the_call_site_is_the_users(self):
        ep = self.connect()
        ep.advance("r0c0")
        self.assertRegex(self.door.called()[0].body["site"], r"^test_calls.py:\d+$")

    def test_slots_are_those_of_the_last_answered_call(self):
        ep = self.connect()
        self.assertEqual(ep.slots()["r0c1"], esperd.Slot("r0c1", "DORMANT", 0.0, 0))
        ep.germinate("r0c0", "conv")
        ep.slots()
        ep.slots()
        ep.step_epoch(0)
        ep.slots()
        self.assertEqual([r.body.get("answered") for r in self.door.sessions()], [None, 1], "asked for where they are not known, and never for the head")


class Repeats(DoorTest):
    def test_an_unanswered_call_is_repeated_under_its_number(self):
        ep = self.connect()
        ep.germinate("r0c0", "conv")
        self.door.play(lose, lose, send(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"), problem("unavailable", 503))
        self.assertEqual(ep.advance("r0c0").message, "m")
        self.assertEqual(self.numbers(), [1, 2, 2, 2, 2, 2])
        bodies = [r.body for r in self.door.called()[1:]]
        self.assertEqual(bodies, bodies[:1] * 5)
        first, *others = [r.body for r in self.door.sessions()]
        self.assertNotIn("answered", first)
        self.assertEqual([(b["answered"], b["round"], b["lineage"], b["incarnation"]) for b in others], [(1, 3, "abc", first["incarnation"])] * 4)

    def test_a_call_outlives_its_esperd(self):
        ep = self.connect()
        self.door.play(hang)
        answers = []
        waits = threading.Thread(target=lambda: answers.append(ep.step_epoch(0)))
        waits.start()
        while not self.door.called():
            time.sleep(0.001)
        self.door.shut()
        time.sleep(0.05)
        self.door.open()
        waits.join(10)
        self.assertEqual(answers[0].index, 10)
        self.assertEqual(self.numbers(), [1, 1])

    def test_an_esperd_that_does_not_come_back(self):
        ep = self.connect(away_timeout=0.3)
        self.door.play(lose)
        self.door.shut()
        self.addCleanup(self.door.open)
        began = time.monotonic()
        with self.assertRaisesRegex(esperd.Unavailable, "has not answered for 0.3 s .*start it for rank 1, or point ESPERD_SOCKET") as caught:
            ep.advance("r0c0")
        self.assertLess(time.monotonic() - began, 5)
        self.assertEqual(caught.exception.index, 0)

    def test_one_that_cannot_now_is_asked_until_the_deadline(self):
        ep = self.connect(away_timeout=0.1)
        self.door.play(*[problem("unavailable", 503)] * 100)
        with self.assertRaisesRegex(esperd.Unavailable, "what unavailable says"):
            ep.advance("r0c0")
        self.door._tricks["call"].clear()
        ep.advance("r0c0")
        self.assertEqual(set(self.numbers()), {1})

    def test_a_call_waits_as_long_as_esperd_lives(self):
        ep = self.connect(answer_timeout=0.8)  # long for a busy machine to give no sign of life
        self.door.play(hang)
        threading.Timer(1.5, self.door.released.set).start()
        began = time.monotonic()
        self.assertEqual(ep.step_epoch(0).index, 10)
        self.assertGreater(time.monotonic() - began, 0.8)
        self.assertEqual(self.numbers(), [1])
        self.assertGreater(len(self.door.of("health")), 2)

    def test_no_sign_of_life(self):
        ep = self.connect(answer_timeout=0.4)
        self.door.play(hang)
        self.door.play(*[lambda peer, _: peer.door.released.wait(30)] * 100, at="health")
        began = time.monotonic()
        with self.assertRaisesRegex(esperd.Unavailable, "has given no sign of life for 0.4 s, neither the answer nor one to GET /healthz"):
            ep.advance("r0c0")
        self.assertLess(time.monotonic() - began, 5)
        ep.advance("r0c0")
        self.assertEqual(self.numbers(), [1, 1])

    def test_an_answer_that_ends_in_the_middle(self):
        ep = self.connect(answer_timeout=0.3)
        self.door.play(lambda peer, _: (peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{"), peer.door.released.wait(30)))
        with self.assertRaisesRegex(esperd.Unavailable, "no sign of life"):
            ep.advance("r0c0")

    def test_a_busy_rank_is_waited_for_also_by_who_connects(self):
        self.door.play(hang, at="session")
        threading.Timer(1.2, self.door.released.set).start()
        self.assertEqual(self.connect(answer_timeout=0.8).session.round, 3)

    def test_close_ends_a_call_whose_esperd_does_not_answer(self):
        ep = self.connect(answer_timeout=20)
        self.door.play(hang)
        self.door.play(*[lambda peer, _: peer.door.released.wait(30)] * 100, at="health")
        from esperd import _http
        before, _http._PROBE_EVERY_MAX_S = _http._PROBE_EVERY_MAX_S, 5.0
        self.addCleanup(setattr, _http, "_PROBE_EVERY_MAX_S", before)
        raised = []

        def wait():
            try:
                ep.step_epoch(0)
            except esperd.Unavailable as error:
                raised.append(error)

        waits = threading.Thread(target=wait)
        waits.start()
        while not self.door.called():
            time.sleep(0.001)
        began = time.monotonic()
        ep.close()
        waits.join(10)
        self.assertIn("this client was closed", str(raised[0]))
        self.assertLess(time.monotonic() - began, 3)

    def test_nobody_there_at_first(self):
        self.door.shut()
        back = threading.Timer(0.1, self.door.open)
        back.start()
        self.addCleanup(back.join)
        self.assertEqual(self.connect().session.round, 3)

    def test_an_interrupted_call_leaves_no_answer_behind(self):
        ep = self.connect()
        self.door.play(hang)

        class Stop(Exception):
            pass

        def stop(*_):
            raise Stop

        old = signal.signal(signal.SIGALRM, stop)
        self.addCleanup(signal.signal, signal.SIGALRM, old)
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with self.assertRaises(Stop):
            ep.step_epoch(0)
        self.door.released.set()
        self.assertEqual(ep.step_epoch(0).index, 10)
        self.assertEqual(self.numbers(), [1, 1])

    def test_a_long_absence_is_logged(self):
        ep = self.connect(away_timeout=0.2)
        self.door.shut()
        self.addCleanup(self.door.open)
        from esperd import _door
        before, _door._WARN_AFTER_S = _door._WARN_AFTER_S, 0.0
        self.addCleanup(setattr, _door, "_WARN_AFTER_S", before)
        with self.assertLogs("esperd", "WARNING") as logs, self.assertRaises(esperd.Unavailable):
            ep.advance("r0c0")
        self.assertEqual(len(logs.output), 1)
        self.assertIn("does not answer", logs.output[0])


class Garbage(DoorTest):
    def test_answers_that_nobody_understands(self):
        for raw in (b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
                    b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n{\"passed\": 1}", b"HTTP/1.1 502 Bad\r\nContent-Length: 5\r\n\r\nproxy",
                    b"HTTP/1.1 409 Bad\r\nContent-Length: 2\r\n\r\n{}", b"HTTP/1.1 301 Moved\r\nContent-Length: 2\r\n\r\n{}",
                    b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\n{}",
                    b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000 + b"\r\n"):
            with self.subTest(raw=raw[:60]):
                ep = self.connect()
                self.door.play(send(raw))
                with self.assertRaisesRegex(esperd.EsperdError, "no esperd that this client understands.*use the same version of both") as caught:
                    ep.advance("r0c0")
                self.assertEqual(type(caught.exception), esperd.EsperdError)
                ep.advance("r0c0")
                self.assertEqual(self.numbers()[-2:], [1, 1], "its outcome is unknown: the same number again")

    def test_garbage_instead_of_a_session(self):
        self.door.play(lambda peer, _: peer.answer({"next_call": 1}), at="session")
        with self.assertRaisesRegex(esperd.EsperdError, "KeyError"):
            self.connect()

    def test_an_esperd_that_has_lost_count(self):
        ep = self.connect()
        ep.advance("r0c0")
        self.door.play(lose)
        self.door.play(lambda peer, _: peer.answer(self.door.session("main", 6)), at="session")
        with self.assertRaisesRegex(esperd.EsperdError, "expects call 7 after 0 fences, and this client's next is 2 after 0"):
            ep.advance("r0c0")


class Observations(DoorTest):
    def rides(self):
        return [r.body.get("observations") for r in self.door.called()]

    def test_absent_null_values_and_what_is_not_finite(self):
        ep = self.connect()
        ep.observe("r0c0", accuracy=93, gradient_ratio=float("-inf"), contribution=None, has_exploding=False, healthy=None)
        ep.observe("r0c1", accuracy=float("nan"), gradient_health=10**400)
        ep.step_epoch(0)
        self.assertEqual(self.rides(), [[{"slot": "r0c0", "accuracy": 93.0, "gradient_ratio": "-Infinity", "contribution": None, "has_exploding": False, "healthy": None},
                                         {"slot": "r0c1", "accuracy": "NaN", "gradient_health": "Infinity"}]])

    def test_later_readings_take_the_place_of_earlier_ones(self):
        ep = self.connect()
        for step in range(1000):
            ep.observe("r0c0", accuracy=step, gradient_ratio=0.5)
        ep.observe("r0c0", accuracy=None, gradient_ratio=None)
        ep.step_epoch(0)
        ep.step_epoch(1)
        self.assertEqual(self.rides(), [[{"slot": "r0c0", "accuracy": 999.0, "gradient_ratio": None}], None])

    def test_they_are_sent_until_the_call_is_answered(self):
        ep = self.connect(away_timeout=0)
        ep.observe("r0c0", accuracy=1)
        self.door.play(lose)
        with self.assertRaises(esperd.Unavailable):
            ep.step_epoch(0)
        ep.observe("r0c0", accuracy=2)  # of the time after the call that is still open
        ep.step_epoch(0)
        ep.step_epoch(1)
        one, two = [{"slot": "r0c0", "accuracy": 1.0}], [{"slot": "r0c0", "accuracy": 2.0}]
        self.assertEqual(self.rides(), [one, one, two])

    def test_they_stay_with_a_call_that_was_not_made(self):
        ep = self.connect()
        ep.observe("r0c0", accuracy=1, gradient_norm=3)
        self.door.play(problem("invalid-input", 422), problem("illegal-transition", 409, index=8))
        self.assertRaises(esperd.Refused, ep.advance, "r0c0")
        ep.observe("r0c0", accuracy=2)
        self.assertRaises(esperd.Refused, ep.advance, "r0c0")
        ep.advance("r0c0")
        self.assertEqual(self.rides(), [[{"slot": "r0c0", "accuracy": 1.0, "gradient_norm": 3.0}], [{"slot": "r0c0", "accuracy": 2.0, "gradient_norm": 3.0}], None])

    def test_a_slot_that_is_not_there(self):
        with self.assertRaisesRegex(esperd.Refused, "has no slot 'r9c9', expected one of r0c0, r0c1") as caught:
            self.connect().observe("r9c9", accuracy=1)
        self.assertEqual(caught.exception.code, "unknown-slot")

    def test_they_wait_for_no_call(self):
        ep = self.connect()
        self.door.play(hang)
        waits = threading.Thread(target=ep.step_epoch, args=(0,))
        waits.start()
        while not self.door.called():
            time.sleep(0.001)
        ep.observe("r0c0", accuracy=1)
        self.door.released.set()
        waits.join(10)
        ep.step_epoch(1)
        self.assertEqual(self.rides(), [None, [{"slot": "r0c0", "accuracy": 1.0}]])


class Errors(DoorTest):
    def test_every_code_has_its_class(self):
        ep = self.connect(away_timeout=0)
        for code, kind in {"order-mismatch": esperd.OrderMismatch, "missing-call": esperd.MissingCall, "round-faulted": esperd.RoundFaulted,
                           "decision-timeout": esperd.DecisionTimeout, "not-authority": esperd.Refused, "illegal-transition": esperd.Refused,
                           "unknown-slot": esperd.Refused, "config-mismatch": esperd.ConfigMismatch, "invalid-input": esperd.Refused,
                           "diverged": esperd.Diverged, "unavailable": esperd.Unavailable, "of-the-future": esperd.EsperdError}.items():
            self.door.play(problem(code, 409))
            with self.assertRaises(kind) as caught:
                ep.advance("r0c0")
            self.assertEqual((type(caught.exception), caught.exception.code), (kind, code))
            self.assertEqual(str(caught.exception), f"{code}: what {code} says")

    def test_an_error_brings_its_evidence(self):
        got = {"op": "advance", "slot": "r0c1", "seed": 1, "epoch": 4, "call": 9, "fence": 2, "round": 3, "model": "main", "generation": 1, "of_the_future": 1}
        want = {**got, "slot": "r0c0"}
        fault = {"round": 3, "code": "order-mismatch", "rank": 1, "node": "n", "index": 40, "got": got, "got_site": "a.py:1", "want": want}
        self.door.play(problem("order-mismatch", 409, got=got, got_site="a.py:1", want=want, want_site="b.py:2", differs=["slot"], fault=fault,
                               last=[{"rank": 0, "key": want, "site": "b.py:2"}, {"rank": 1, "key": got}], recent=[{"rank": 1, "key": got}]))
        with self.assertRaises(esperd.OrderMismatch) as caught:
            self.connect().advance("r0c1")
        e = pickle.loads(pickle.dumps(caught.exception))
        self.assertEqual((type(e), e.args, e.__dict__), (esperd.OrderMismatch, caught.exception.args, caught.exception.__dict__))
        self.assertEqual((e.got.slot, e.want.slot, e.got_site, e.want_site, e.differs), ("r0c1", "r0c0", "a.py:1", "b.py:2", ("slot",)))
        self.assertEqual((e.fault.rank, e.fault.want_site, e.last[1].site, e.recent[0].key.call), (1, "", "", 9))
        self.assertEqual(str(e), "order-mismatch: what order-mismatch says\n  last of rank 0: call 9, advance r0c0#1 epoch 4 at b.py:2\n"
                                 "  last of rank 1: call 9, advance r0c1#1 epoch 4")

    def test_a_decision_that_failed_is_false(self):
        d = self.connect().advance("r0c0")
        self.assertFalse(d)
        self.assertEqual((d.checks_failed, d.local.passed, d.agreed), (("b", "c"), True, False))


if __name__ == "__main__":
    unittest.main()
