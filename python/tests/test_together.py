"""Modes, requests and ends of trainers, with real esperds."""

import json
import logging
import os
import subprocess
import sys
import threading
import time
import unittest

import esperd
from esperd import Outcome, _observed
from esperd._http import Connection
from tests.world import World, needs_esperd

PYTHON_DIR = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def ask(world, rank, path):
    connection = Connection(world.socket(rank), 10)
    try:
        return json.loads(connection.request("GET", path)[1])
    finally:
        connection.close()


class Together(unittest.TestCase):
    def setUp(self):
        logging.getLogger("esperd").setLevel(logging.CRITICAL)

    def soon(self, what, message=""):
        deadline = time.monotonic() + 60
        while not what():
            self.assertLess(time.monotonic(), deadline, message)
            time.sleep(0.02)

    def patiently(self, do):
        """Do something again where esperd does not wait for as long as it takes
        on a machine that has much to do."""
        for _ in range(20):
            try:
                return do()
            except esperd.DecisionTimeout:
                pass
        return do()

    def tally(self, world, rank=1):
        r = ask(world, 0, "/v1/ranks")["ranks"][rank]
        return r["misplaced"], r["missing_calls"], r["differing"]


@needs_esperd
class Follow(Together):
    def test_rank_0_calls_and_all_apply_the_changes(self):
        world = World(self, 2)
        clients = world.connect(self, mode="follow", gates={"min_blending_epochs": 1})

        def train(rank):
            ep, seen = clients[rank], []
            for epoch in range(6):
                ep.observe("r0c0", accuracy=50 + 10 * epoch * (1 - rank), gradient_ratio=0.5)
                if rank == 0:
                    before = ep.slots()
                    if epoch == 0:
                        ep.germinate("r0c0", "conv", tempo=2)
                    elif before["r0c0"].stage != "HOLDING":
                        ep.advance("r0c0")
                    self.assertEqual(ep.slots(), before, "what was decided is seen at the fence")
                elif epoch == 3:
                    self.soon(lambda: ask(world, 0, "/v1/ranks")["ranks"][1]["disagreements"], "rank 1 learnt nothing, and would have said no")
                    world.kill(1)
                    world.start(1)
                fence = ep.step_epoch(epoch)
                self.assertEqual(fence.slots, ep.slots())
                self.assertFalse(rank == 0 and ep.check())
                seen.append(fence)
            return seen

        one, other = world.on_all(train)
        self.assertEqual(one, other)
        stages = [c.stage for f in one for c in f.changes]
        self.assertEqual(stages[:3], ["GERMINATED", "TRAINING", "BLENDING"])
        with self.assertRaisesRegex(esperd.Refused, "in the mode follow rank 0 alone makes this call, and this is rank 1") as caught:
            clients[1].advance("r0c0")
        self.assertEqual(caught.exception.code, "not-authority")
        one, other = world.on_all(lambda r: clients[r].fence(1))
        self.assertEqual(one, other, "its number was free")

    def test_modes_do_not_mix(self):
        world = World(self, 2)
        got = world.on_all(lambda r: esperd.connect(world.socket(r), rank=r, world_size=2, slots=["r0c0"], mode=("follow", "keyed")[r]))
        for error in got:
            self.assertIsInstance(error, esperd.ConfigMismatch)
            self.assertIn("expected one mode on all ranks", str(error))


@needs_esperd
class Warn(Together):
    def test_calls_in_another_order_get_their_own_answers(self):
        world = World(self, 2)
        clients = world.connect(self, ordering="warn")
        world.on_all(lambda r: [clients[r].germinate(s, "conv") for s in ("r0c0", "r0c1")] and clients[r].step_epoch(0))

        def stretch(rank, epoch):
            ep, answers = clients[rank], {}
            for slot in ("r0c0", "r0c1") if rank == 0 else ("r0c1", "r0c0"):
                if rank == 1 and slot == "r0c0":
                    self.soon(lambda: self.tally(world)[0], "a call in another place is recorded")
                    world.kill(1)
                    world.start(1)
                answers[slot] = ep.advance(slot)
            return answers, ep.step_epoch(epoch)

        one, other = world.on_all(lambda r: stretch(r, 1))
        self.assertEqual(one[1], other[1])
        for slot in ("r0c0", "r0c1"):
            self.assertEqual((one[0][slot].slot, one[0][slot].index), (slot, other[0][slot].index))

        def without(rank):
            if rank == 0:
                clients[0].prune("r0c1")
            return clients[rank].step_epoch(2)

        one, other = world.on_all(without)
        self.assertEqual(one, other)
        self.assertEqual([(c.slot, c.stage) for c in other.changes], [("r0c1", "EMBARGOED")])
        self.soon(lambda: self.tally(world)[1], "a missing call is recorded")


@needs_esperd
class Reset(Together):
    def test_the_next_generation(self):
        world = World(self, 2)
        clients = world.connect(self)

        def train(rank):
            ep = clients[rank]
            ep.germinate("r0c0", "conv")
            ep.step_epoch(7)
            if rank == 1:
                world.kill(1)
                world.start(1)
            gone = ep.reset()
            ep.germinate("r0c0", "conv")
            return gone, ep.session.generation, ep.step_epoch(0)

        one, other = world.on_all(train)
        self.assertEqual(one, other)
        gone, generation, fence = one
        self.assertEqual([(c.slot, c.stage_from, c.stage) for c in gone.changes], [("r0c0", "GERMINATED", "DORMANT")])
        self.assertEqual((generation, fence.slots["r0c0"].germinations, fence.epoch), (2, 1, 0))


@needs_esperd
class Requests(Together):
    def test_the_next_fence_does_it_on_all_ranks(self):
        world = World(self, 2)
        clients = world.connect(self)
        world.on_all(lambda r: (clients[r].germinate("r0c0", "conv"), clients[r].step_epoch(0)))
        self.assertEqual([c.check() for c in clients], [False, False])
        fences = []
        waits = threading.Thread(target=lambda: fences.append(clients[1].step_epoch(1)))
        waits.start()
        self.soon(lambda: ask(world, 1, "/v1/arrivals")["waiting"])
        index = clients[1].request("prune", slot="r0c0", reason="NaN")
        self.assertEqual(clients[1].request("prune", slot="r0c0"), index)
        self.soon(clients[0].check)
        fences.append(clients[0].step_epoch(1))
        waits.join(10)
        self.assertEqual(fences[0], fences[1])
        self.assertEqual([(c.slot, c.stage) for c in fences[0].changes], [("r0c0", "PRUNED")])
        self.assertGreater(fences[0].index, index)
        with self.assertRaisesRegex(esperd.Refused, "was pruned already"):
            clients[0].request("prune", slot="r0c0")
        with self.assertRaisesRegex(esperd.Refused, "action"):
            clients[0].request("grow", slot="r0c0")

    def test_it_outlives_its_esperd(self):
        world = World(self, 1)
        (ep,) = world.connect(self)
        ep.germinate("r0c0", "conv")
        ep.model("b").germinate("r0c1", "conv")
        world.kill(0)
        world.start(0)
        ep.request("prune", slot="r0c0")
        ep.model("b").request("prune", slot="r0c1")
        self.assertEqual(ep.fence(1).slots["r0c0"].stage, "PRUNED")
        self.assertEqual(ep.model("b").fence(1).slots["r0c1"].stage, "PRUNED")

    def test_busy_is_visible(self):
        world = World(self, 2)
        clients = world.connect(self)
        busy = lambda: ask(world, 1, "/v1/ranks")["ranks"][0].get("busy")  # noqa: E731
        with clients[0].busy("evaluation", 600):
            self.assertEqual((busy()["reason"], round(busy()["seconds"], -1)), ("evaluation", 600))
        self.assertIsNone(busy())
        with self.assertRaises(esperd.Refused):
            clients[0].busy("evaluation", -1)

    def test_a_busy_rank_is_waited_for(self):
        world = World(self, 2, "--decision-timeout", "1s")
        clients = self.patiently(lambda: world.connect(self, answer_timeout=0.5))
        with self.assertRaises(esperd.DecisionTimeout):
            clients[1].step_epoch(0)

        def train(rank):
            if rank == 0:
                with clients[0].busy("evaluation", 600):
                    time.sleep(1.5)  # longer than the wait for a decision, and ends within another one
            return clients[rank].step_epoch(0)

        one, other = world.on_all(train)
        self.assertEqual(one, other)


@needs_esperd
class Observe(Together):
    def test_beside_a_broadcast(self):
        world = World(self, 2)
        clients = world.connect(self, mode="observe")

        def train(rank):
            ep = clients[rank]
            for slot in ("r0c0", "r0c1"):
                ep.germinate(slot, "conv", outcome=Outcome("GERMINATED"))
            slots = {s: Outcome("TRAINING") for s in ("r0c0", "r0c1")}
            for slot in ("r0c0", "r0c1")[::1 - 2 * rank]:  # rank 1 in the other order
                ep.verdict(slot, gate="G1", passed=True, outcome=Outcome("TRAINING", passed=True))
            ep.step_epoch(0, outcomes=slots)
            if rank == 0:
                ep.advance("r0c0", outcome=Outcome("BLENDING", passed=True))
            fence = ep.step_epoch(1, outcomes={**slots, "r0c0": Outcome("BLENDING", 0.1 + 0.1 * rank)})
            ep.close()
            return fence

        one, other = world.on_all(train)
        self.assertEqual((one.slots["r0c0"].alpha, other.slots["r0c0"].alpha), (0.1, 0.2))
        self.soon(lambda: all(self.tally(world)), "misplaced, missing and differing are recorded")
        models = ask(world, 1, "/v1/state")["models"]
        self.assertEqual([(s["name"], s["stage"], s["alpha"]) for s in models[0]["slots"]], [("r0c0", "BLENDING", 0.1), ("r0c1", "TRAINING", 0)])

    def test_the_training_does_not_notice_when_esperd_dies(self):
        self.addCleanup(setattr, _observed, "_RETRY_MIN_S", _observed._RETRY_MIN_S)
        _observed._RETRY_MIN_S = 0.3
        world = World(self, 1)
        (ep,) = world.connect(self, mode="observe", slots=["r0c0"])
        stages = ["GERMINATED", "TRAINING", "BLENDING"]
        ep.germinate("r0c0", "conv", outcome=Outcome("GERMINATED"))
        took = []
        for epoch in range(2000):
            if epoch == 10:
                world.kill(0)
            if epoch == 20:
                world.start(0)
            began = time.monotonic()
            fence = ep.step_epoch(epoch, outcomes={"r0c0": Outcome(stages[min(epoch // 20, 2)])})
            took.append(time.monotonic() - began)
            if epoch >= 59 and fence.index:  # esperd is back, and was told
                break
            time.sleep(0.03)
        self.assertLess(max(took), 2.5)
        self.soon(lambda: ask(world, 0, "/v1/state")["models"][0]["epoch"] == epoch)


@needs_esperd
class Ending(Together):
    """Rank 1 is a process of its own."""

    def train(self, world, *lines):
        """Start rank 1 and return rank 0's client, and the process."""
        script = "\n".join(["import esperd, os, sys, time", f"ep = esperd.connect({world.socket(1)!r}, rank=1, world_size=2, slots=['r0c0'])",
                            "print('open', flush=True)", *lines])
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": PYTHON_DIR})
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        told = []
        ep = esperd.connect(world.socket(0), rank=0, world_size=2, slots=["r0c0"], on_fatal=told.append)
        self.addCleanup(ep.close)
        process.stdout.readline()
        return ep, process, told

    def test_a_trainer_that_dies_ends_the_round_for_all(self):
        world = World(self, 2)
        ep, process, told = self.train(world, "time.sleep(60)")
        self.assertFalse(ep.check())
        process.kill()
        self.soon(lambda: told)
        self.assertEqual((told[0].fault.code, told[0].fault.rank), ("unavailable", 1))
        self.assertRegex(str(told[0]), r"^round-faulted: round 1 is over: the trainer of rank 1 is gone: process \d+ ended without closing its session.*; its last call was "
                                       r"call 0, configure epoch -1.* \(entry \d+\); start it again on all ranks(\n  last of rank [01]: call 0, configure epoch -1 at .*:\d+)*$")
        self.soon(lambda: ep._calls.word[0] > ep._calls.seen)
        with self.assertRaisesRegex(esperd.RoundFaulted, "the trainer of rank 1 is gone"):
            ep.check()
        with self.assertRaisesRegex(esperd.RoundFaulted, "the trainer of rank 1 is gone"):
            ep.step_epoch(0)

    def test_one_that_fails_says_why(self):
        world = World(self, 2)
        for lines in (["raise ValueError('loss is NaN')"], ["with ep:", "    raise ValueError('loss is NaN')"]):
            ep, process, told = self.train(world, *lines)
            self.soon(lambda told=told: told)
            self.assertIn("the trainer of rank 1 is gone: it failed: ValueError: loss is NaN", str(told[0]))
            process.wait(20)

    def test_one_that_ends_in_order_ends_nothing(self):
        world = World(self, 2)
        for epoch, lines in enumerate(([], ["ep.close()"], ["with ep: pass", "os._exit(0)"])):
            ep, process, told = self.train(world, f"ep.step_epoch({epoch})", *lines)
            ep.step_epoch(epoch)
            process.wait(20)
            time.sleep(0.5)
            self.assertFalse(ep.check())
            self.assertEqual(told, [])
            ep.close()

    def test_a_call_that_an_ended_rank_does_not_make(self):
        world = World(self, 2)
        ep, process, told = self.train(world, "ep.step_epoch(0)")
        ep.step_epoch(0)
        process.wait(20)
        time.sleep(0.5)
        with self.assertRaisesRegex(esperd.RoundFaulted, "the trainer of rank 1 is gone: it closed its session in order, and rank 0 goes on with call 2, step_epoch"):
            ep.step_epoch(1)


if __name__ == "__main__":
    unittest.main()
