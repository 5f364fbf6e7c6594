"""Requests, busy ranks, and how a trainer ends, before a door without an esperd."""

import os
import signal
import subprocess
import sys
import threading
import time
import unittest

import esperd
from esperd._ending import failure_of
from tests.fakedoor import DoorTest, hang, lose, problem

PYTHON_DIR = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class Requests(DoorTest):
    def bodies(self, kind="requests"):
        return [{k: v for k, v in r.body.items() if k != "session"} for r in self.door.of(kind)]

    def test_what_is_sent(self):
        ep = self.connect()
        self.assertEqual(ep.request("prune", slot="r0c0", reason="NaN"), 77)
        ep.model("other").request("prune", slot="r0c1", seed=3)
        self.assertEqual(self.bodies(), [{"model": "main", "action": "prune", "slot": "r0c0", "reason": "NaN"},
                                         {"model": "other", "action": "prune", "slot": "r0c1", "reason": "", "seed": 3}])
        self.assertEqual(self.door.of("requests")[0].body["session"], self.door.sessions()[0].body["incarnation"])
        self.assertEqual(self.numbers(), [])

    def test_it_waits_for_no_call(self):
        ep = self.connect()
        self.door.play(hang)
        waits = threading.Thread(target=ep.step_epoch, args=(0,))
        waits.start()
        while not self.door.called():
            time.sleep(0.001)
        self.assertEqual(ep.request("prune", slot="r0c0"), 77)
        ep.busy("evaluation", 1)
        self.door.play(problem("unavailable", 503), lose, at="requests")
        self.assertEqual(ep.request("prune", slot="r0c0"), 77)
        self.assertTrue(waits.is_alive())
        self.door.released.set()
        waits.join(10)

    def test_it_is_repeated_until_it_is_answered(self):
        ep = self.connect()
        self.door.play(lose, lose, problem("unavailable", 503), at="requests")
        self.assertEqual(ep.request("prune", slot="r0c0"), 77)
        self.assertEqual(len(self.bodies()), 4)
        self.assertEqual(self.door.sessions()[-1].body["answered"], 0, "an esperd that was started anew is told who asks")
        ep.step_epoch(0)
        self.assertEqual(self.numbers(), [1])

    def test_a_refusal_and_a_fork(self):
        ep = self.connect()
        self.door.play(problem("illegal-transition", 409), at="requests")
        self.assertRaises(esperd.Refused, ep.request, "prune", slot="r0c0")
        for wrong in (lambda: ep.request(3, slot="r0c0"), lambda: ep.request("prune", slot=None), lambda: ep.request("prune", slot="r0c0", seed="1"), lambda: ep.busy("x", "1")):
            self.assertRaises(TypeError, wrong)
        pid = os.fork()
        if pid == 0:
            status = 0
            for call in (lambda: ep.request("prune", slot="r0c0"), lambda: ep.busy("x", 1)):
                try:
                    call()
                    status = 1
                except esperd.Refused as error:
                    status = status or error.code != "not-authority"
            os._exit(status)
        self.assertEqual(os.waitpid(pid, 0)[1], 0)

    def test_an_esperd_that_is_away(self):
        ep = self.connect(away_timeout=0.2)
        self.door.shut()
        self.addCleanup(self.door.open)
        with self.assertRaisesRegex(esperd.Unavailable, "has not answered for 0.2 s"):
            ep.request("prune", slot="r0c0")

    def test_close_ends_one_that_waits(self):
        ep = self.connect()
        self.door.play(*[hang] * 3, at="requests")
        raised = []

        def wait():
            try:
                ep.request("prune", slot="r0c0")
            except esperd.Unavailable as error:
                raised.append(str(error))

        waits = threading.Thread(target=wait)
        waits.start()
        while not self.door.of("requests"):
            time.sleep(0.001)
        ep.close()
        waits.join(10)
        self.assertIn("this client was closed", raised[0])
        self.assertRaisesRegex(esperd.Unavailable, "was closed", ep.request, "prune", slot="r0c0")

    def test_votes_on_the_room_for_a_seed(self):
        ep = self.connect(residency=True)
        self.assertIs(self.door.of("session")[-1].body["residency"], True)
        ep.ready("r0c0")
        ep.ready("a/b", seed=3)
        ep.failed("r0c0", "x" * 1023 + "\u00e9", seed=2)
        self.assertEqual(self.bodies("ready"), [{"model": "main"}, {"model": "main", "seed": 3}])
        self.assertEqual([r.path for r in self.door.of("ready")], ["/v1/slots/r0c0/ready", "/v1/slots/a%2Fb/ready"])
        self.assertEqual(self.bodies("failed"), [{"model": "main", "reason": "x" * 1023, "seed": 2}])
        for wrong in (lambda: ep.ready(3), lambda: ep.failed("r0c0", 3), lambda: ep.ready("r0c0", seed="x")):
            self.assertRaises(TypeError, wrong)
        self.door.play(problem("illegal-transition", 409), at="ready")
        self.assertRaises(esperd.Refused, ep.ready, "r0c0")
        self.assertEqual(len(ep.slots()), 2, "no numbered call was made")

    def test_busy(self):
        ep = self.connect()
        ep.busy("checkpoint", 30)
        with ep.busy("evaluation", 600) as busy:
            self.assertIsInstance(busy, esperd.Busy)
            self.assertEqual(len(self.bodies("busy")), 2)
        with self.assertRaises(ZeroDivisionError), ep.busy("test", 1.5):
            1 / 0
        self.assertEqual(self.bodies("busy"), [{"reason": "checkpoint", "seconds": 30.0}, {"reason": "evaluation", "seconds": 600.0}, {"reason": "evaluation", "seconds": 0.0},
                                               {"reason": "test", "seconds": 1.5}, {"reason": "test", "seconds": 0.0}])
        with ep.busy("evaluation", 600):
            self.door.shut()
            self.addCleanup(self.door.open)

    def test_busy_is_refused_and_repeated_as_a_request_is(self):
        ep = self.connect()
        self.door.play(problem("unavailable", 503), problem("invalid-input", 422), at="busy")
        self.assertRaises(esperd.Refused, ep.busy, "x", -1)
        self.assertEqual(len(self.bodies("busy")), 2)


class Ending(DoorTest):
    def closes(self):
        return [r.body.get("failed") for r in self.door.of("close")]

    def test_close_says_so_once_for_all_models(self):
        ep = self.connect()
        ep.model("other").close()
        self.assertEqual(self.closes(), [])
        ep.close()
        ep.close()
        self.assertEqual(self.closes(), [None])
        self.assertEqual(self.door.of("close")[0].body, {"session": self.door.sessions()[0].body["incarnation"]})

    def leave_by(self, error):
        with self.connect():
            raise error

    def test_a_with_block_says_what_it_was_left_by(self):
        with self.connect() as ep:
            with ep.model("other"):
                pass
        over = esperd.ConfigMismatch("x", fault=esperd.Fault(1, "config-mismatch", 1, "n", 2, esperd.Key("configure", 0), esperd.Key("configure", 0)))
        said = []
        for error, want in ((ValueError("bad: ü"), "ValueError: bad: ü"), (KeyboardInterrupt(), "KeyboardInterrupt"), (SystemExit(), None), (SystemExit(0), None),
                            (SystemExit(3), "SystemExit: 3"), (esperd.RoundFaulted("x"), None), (esperd.OrderMismatch("x"), None), (esperd.MissingCall("x"), None),
                            (over, None), (esperd.Diverged("x"), "Diverged: diverged: x"), (RuntimeError("ä" * 2000), "RuntimeError: " + "ä" * 493)):
            self.assertRaises(type(error), self.leave_by, error)
            said.append(want)
        self.assertEqual(self.closes(), [None, *said])

    def test_texts_that_cannot_be_had(self):
        class Odd(Exception):
            def __str__(self):
                raise ValueError

        self.assertEqual(failure_of(Odd()), "Odd: no text")
        self.assertEqual(failure_of(ValueError("\ud800")), "ValueError: ?")
        self.assertEqual(failure_of(SystemExit("disk full")), "SystemExit: disk full")

    def test_it_never_raises_and_never_waits_for_long(self):
        for trick in (lose, hang, problem("unavailable", 503), lambda peer, _: peer.answer(b"what?"), lambda peer, _: peer.answer(b"404 page not found", 404)):
            self.door.play(trick, at="close")
            ep = self.connect()
            began = time.monotonic()
            ep.close()
            self.assertLess(time.monotonic() - began, 4)
        ep = self.connect()
        self.door.shut()
        self.addCleanup(self.door.open)
        ep.close()

    def test_a_forked_child_closes_nothing(self):
        ep = self.connect()
        pid = os.fork()
        if pid == 0:
            with ep:
                pass
            ep._family._at_exit()
            os._exit(0)
        os.waitpid(pid, 0)
        self.assertEqual(self.closes(), [])


class Exit(DoorTest):
    """What esperd hears of an interpreter that ends, however it does."""

    def run_script(self, *lines, how="script", python=sys.executable, status=None):
        script = "\n".join(["import esperd, os, sys", "ep = esperd.connect(%r, rank=1, world_size=2)" % self.door.path, *lines])
        file = os.path.join(os.path.dirname(self.door.path), "train.py")
        with open(file, "w") as f:
            f.write(script)
        command = {"script": [file], "module": ["-m", "train"], "command": ["-c", script], "prompt": ["-i", file]}[how]
        done = subprocess.run([python, *command], cwd=os.path.dirname(file), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60,
                              env={**os.environ, "PYTHONPATH": PYTHON_DIR})
        if status is not None:
            self.assertEqual(done.returncode, status, done.stderr)
        said = [r.body.get("failed", "") for r in self.door.of("close")]
        self.door.requests.clear()
        return said

    def test_an_end_in_order(self):
        for lines in (["ep.step_epoch(0)"], ["with ep: pass"], ["try: 1 / 0", "except ZeroDivisionError: sys.exit(0)"]):
            with self.subTest(lines=lines):
                self.assertEqual(self.run_script(*lines, status=0), [""])

    def test_an_exception_that_nobody_catches(self):
        for how in ("script", "module"):
            self.assertEqual(self.run_script("{}['loss']", how=how, status=1), ["KeyError: 'loss'"])
        self.assertEqual(self.run_script("raise KeyboardInterrupt", how="command"), ["KeyboardInterrupt"])
        self.assertEqual(self.run_script("with ep: raise ValueError('first')", status=1), ["ValueError: first"])
        self.assertEqual(self.run_script("raise esperd.RoundFaulted('x')", status=1), [""], "the round is over as it is")

    def test_an_exception_while_another_thread_waits_in_a_call(self):
        starts = ("import threading; threading.Thread(target=train).start()", "from concurrent.futures import ThreadPoolExecutor; pool = ThreadPoolExecutor(); pool.submit(train)")
        for start in starts:
            with self.subTest(start=start):
                self.door.play(hang)
                began = time.monotonic()
                said = self.run_script("import time", "def train(): ep.model('other').step_epoch(0)", start, "time.sleep(0.3)", "raise ValueError('loss')", status=1)
                self.assertEqual(said, ["ValueError: loss"])
                self.assertLess(time.monotonic() - began, 10)

    def test_one_that_does_not_end_the_interpreter(self):
        waits = ["import threading, time", "done = threading.Event()", "threading.Thread(target=done.wait, args=(1,)).start()"]
        logged = ["try: 1 / 0", "except ZeroDivisionError: sys.excepthook(*sys.exc_info())", "ep.step_epoch(0)", "done.set()"]
        self.assertEqual(self.run_script(*waits, *logged, status=0), [""])
        self.assertEqual(self.run_script(*waits, "1 / 0", how="prompt", status=0), [""])

    def test_other_hooks_stay(self):
        other = ["ep.close()", "def other(*a): print('other', file=sys.stderr)", "sys.excepthook = other", f"own = esperd.connect({self.door.path!r}, rank=1, world_size=2)"]
        self.assertEqual(self.run_script(*other, "own.close()", "assert sys.excepthook is other", status=0), ["", ""])
        around = ["inner = sys.excepthook", "sys.excepthook = lambda *a: inner(*a)", "own.close()", f"again = esperd.connect({self.door.path!r}, rank=1, world_size=2)"]
        self.assertEqual(self.run_script(*other, *around, "raise ValueError('x')", status=1), ["", "", "ValueError: x"])
        self.assertEqual(self.run_script(*other, "inner = sys.excepthook", "own.close()", "sys.excepthook = inner", "raise ValueError('x')", status=1), ["", ""])

    def test_a_forked_worker_says_nothing(self):
        lines = ["pid = os.fork()", "if pid == 0: sys.exit(3)", "os.waitpid(pid, 0)"]
        self.assertEqual(self.run_script(*lines, status=0), [""])

    def test_a_process_that_dies_says_nothing(self):
        self.assertEqual(self.run_script("os._exit(0)", status=0), [])
        self.assertEqual(self.run_script("os.kill(os.getpid(), 9)", status=-signal.SIGKILL), [])

    def test_a_trainer_that_multiprocessing_started(self):
        # Since 3.13 nothing tells at its end whether such a process has failed.
        untold = "ValueError: loss" if sys.version_info < (3, 13) else ""
        lines = ["import multiprocessing as mp", "ep.close()", "def train(body):", f"    own = esperd.connect({self.door.path!r}, rank=1, world_size=2)", "    exec(body)",
                 "if __name__ == '__main__':", "    for method in 'fork', 'spawn':",
                 "        for body in 'pass', 'raise ValueError(\"loss\")', 'with own: raise ValueError(\"loss\")':",
                 "            p = mp.get_context(method).Process(target=train, args=(body,)); p.start(); p.join()"]
        forked = ["", untold, "ValueError: loss"]
        spawned = ["", "", "", untold, "", "ValueError: loss"]  # each makes the script's own client first
        self.assertEqual(self.run_script(*lines, status=0), ["", *forked, *spawned])

    def test_other_interpreters(self):
        for python in os.environ.get("ESPERD_PYTHONS", sys.executable).split(":"):
            with self.subTest(python=python):
                self.assertEqual(self.run_script("raise ValueError('x')", python=python, status=1), ["ValueError: x"])
                self.assertEqual(self.run_script("try: 1 / 0", "except ZeroDivisionError: sys.exit(0)", python=python, status=0), [""])
                self.assertEqual(self.run_script(python=python, status=0), [""])


if __name__ == "__main__":
    unittest.main()
