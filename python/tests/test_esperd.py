"""The client with real esperds."""

import logging
import threading
import time
import unittest

import esperd
from tests.world import World, needs_esperd


@needs_esperd
class OneRank(unittest.TestCase):
    def test_a_seeds_life(self):
        world = World(self, 1)
        (ep,) = world.connect(self, gates=esperd.Gates(min_blending_epochs=1), slots={"r0c0": esperd.SlotConfig(blueprints=("conv",))})
        self.assertEqual(ep.germinate("r0c0", "conv", blend="linear", tempo=2).stage, "GERMINATED")
        self.assertEqual(ep.advance("r0c0").stage, "TRAINING")
        for epoch in range(4):
            ep.observe("r0c0", accuracy=50 + 5 * epoch, gradient_ratio=0.5, contribution=float(epoch))
            decision = ep.advance("r0c0") if epoch < 3 else ep.advance("r0c0", "HOLDING")
            fence = ep.step_epoch(epoch)
        self.assertTrue(decision, decision)
        slot = fence.slots["r0c0"]
        self.assertEqual((slot.stage, slot.alpha, slot.blueprint, slot.controller.mode, slot.metrics.contribution), ("HOLDING", 1.0, "conv", "HOLD", 3.0))
        self.assertEqual([(c.stage_from, c.stage, c.alpha) for c in fence.changes], [("BLENDING", "HOLDING", 1.0)])
        with self.assertRaisesRegex(esperd.Refused, "FOSSILIZED, for good"):
            ep.advance("r0c0")
        self.assertEqual(ep.advance("r0c0", "FOSSILIZED").stage, "FOSSILIZED")
        with self.assertRaisesRegex(esperd.Refused, "a fossilized one is permanent") as caught:
            ep.prune("r0c0")
        self.assertGreater(caught.exception.index, 0)
        with self.assertRaisesRegex(esperd.Refused, "epoch"):
            ep.step_epoch(3)
        self.assertEqual(ep.slots()["r0c0"].stage, "FOSSILIZED")
        self.assertEqual(ep.fence(1).changes[0].stage, "FOSSILIZED")

    def test_a_trainer_that_is_replaced(self):
        world = World(self, 1)
        (old,) = world.connect(self)
        told = []
        (new,) = world.connect(self, on_fatal=told.append)
        self.assertEqual(new.session.round, old.session.round + 1)
        with self.assertRaisesRegex(esperd.Refused, "another trainer of rank 0 connected") as caught:
            old.advance("r0c0")
        self.assertEqual(caught.exception.code, "not-authority")
        new.step_epoch(0)
        self.assertEqual(told, [])

    def test_who_it_is_not(self):
        world = World(self, 1)
        with self.assertRaisesRegex(esperd.ConfigMismatch, "world size is 2, this esperd's is 1"):
            esperd.connect(world.socket(0), rank=0, world_size=2)
        with self.assertRaisesRegex(esperd.ConfigMismatch, "trainer is in run \"other\""):
            esperd.connect(world.socket(0), rank=0, world_size=1, run_id="other")
        (ep,) = world.connect(self)
        with self.assertRaisesRegex(esperd.ConfigMismatch, "slot 0 is r0c0 in the log, x here"):
            world.connect(self, slots=["x"])
        (again,) = world.connect(self, slots=None)
        self.assertEqual(list(again.slots()), list(ep.session and ["r0c0", "r0c1"]))


@needs_esperd
class TwoRanks(unittest.TestCase):
    def setUp(self):
        logging.getLogger("esperd").setLevel(logging.CRITICAL)

    def test_rank_0_decides_for_both(self):
        world = World(self, 2)
        clients = world.connect(self, gates={"min_blending_epochs": 1})

        def train(rank):
            ep, seen = clients[rank], []
            ep.germinate("r0c1", "conv")
            ep.advance("r0c1")
            for epoch in range(3):
                ep.observe("r0c1", accuracy=50 + 10 * epoch * (1 - rank), gradient_ratio=0.5)  # rank 1 learns nothing
                decision = ep.advance("r0c1", "BLENDING")
                seen.append((decision.passed, decision.stage, decision.index, ep.slots()["r0c1"], ep.step_epoch(epoch)))
                if decision.passed:
                    return seen, decision
            return seen, decision

        (seen0, d0), (seen1, d1) = world.on_all(train)
        self.assertEqual(seen0, seen1)
        self.assertTrue(d0.passed and d0.agreed)
        self.assertEqual((d1.passed, d1.agreed, d1.local.passed, d1.local.checks_failed), (True, False, False, ("global_improvement_insufficient_0.00%",)))

    def test_a_rank_sees_the_world_at_its_own_cursor(self):
        world = World(self, 2)
        ahead, behind = world.connect(self)
        ahead.germinate("r0c0", "conv")
        ahead.advance("r0c0")
        ahead.step_epoch(0)
        self.assertEqual(behind.slots()["r0c0"].stage, "DORMANT")
        behind.germinate("r0c0", "conv")
        self.assertEqual(behind.slots()["r0c0"].stage, "GERMINATED")
        behind.advance("r0c0")
        self.assertEqual(behind.step_epoch(0).slots, ahead.slots())

    def test_ranks_that_make_other_calls_are_told(self):
        world = World(self, 2)
        told = [[], []]
        arrived = [threading.Event(), threading.Event()]
        clients = world.on_all(lambda r: esperd.connect(world.socket(r), rank=r, world_size=2, slots=["r0c0", "r0c1"],
                                                        on_fatal=lambda e: (told[r].append(e), arrived[r].set())))
        for c in clients:
            self.addCleanup(c.close)
        world.on_all(lambda r: [clients[r].germinate(s, "conv") for s in ("r0c0", "r0c1")])
        began = time.monotonic()
        world.on_all(lambda r: clients[r].advance(("r0c0", "r0c1")[0]) if r == 0 else None)
        with self.assertRaises(esperd.OrderMismatch) as caught:
            clients[1].advance("r0c1")
        e = caught.exception
        self.assertEqual((e.want.slot, e.got.slot, e.differs), ("r0c0", "r0c1", ("slot", "args")[:len(e.differs)]))
        self.assertRegex(str(e), r"rank 1 is at call 3, advance r0c1#1 epoch -1 at test_esperd.py:\d+, but rank 0 made call 3, advance r0c0#1 epoch -1 at test_esperd.py:\d+")
        self.assertTrue(arrived[0].wait(5))
        self.assertEqual((told[0][0].fault.rank, told[0][0].got.slot), (1, "r0c1"))
        clients[1]._family.watch.join(5)
        self.assertFalse(clients[1]._family.watch.is_alive() or told[1], "its call has said it")
        with self.assertRaisesRegex(esperd.RoundFaulted, "rank 1 was at call 3, advance r0c1#1"):
            clients[0].advance("r0c1")
        self.assertLess(time.monotonic() - began, 5)
        again = world.connect(self)
        self.assertEqual([c.session.round for c in again], [2, 2])
        self.assertEqual([c.slots()["r0c0"].stage for c in again], ["TRAINING", "TRAINING"])

    def test_an_unanswered_call_outlives_the_esperd_that_was_killed(self):
        world = World(self, 2)
        clients = world.connect(self)
        fences = []

        def train(rank):
            for epoch in range(30):
                clients[rank].observe("r0c0", accuracy=epoch)
                if epoch == 0:
                    clients[rank].germinate("r0c0", "conv")
                fences.append((rank, clients[rank].step_epoch(epoch)))
                time.sleep(0.01)

        def disturb():
            for rank in (1, 0, 1):
                time.sleep(0.15)
                world.kill(rank)
                world.start(rank)

        disturber = threading.Thread(target=disturb)
        disturber.start()
        self.assertEqual(world.on_all(train), [None, None])
        disturber.join()
        by_rank = [[f for r, f in fences if r == rank] for rank in (0, 1)]
        self.assertEqual(by_rank[0], by_rank[1])
        self.assertEqual([f.slots["r0c0"].metrics.epochs for f in by_rank[0]], [0] + list(range(1, 30)), "no observation is lost, none counts twice")

    def test_models_of_several_threads(self):
        world = World(self, 2)
        clients = world.connect(self)

        def train(rank):
            models = [clients[rank]] + [clients[rank].model(n) for n in ("a", "b")]
            results = {}

            def one(m):
                m.germinate("r0c0", "conv-" + m.name)
                results[m.name] = [m.step_epoch(e) for e in range(5)]

            threads = [threading.Thread(target=one, args=(m,)) for m in (models if rank else reversed(models))]
            for t in threads:
                t.start()
            for t in threads:
                t.join(30)
            return {name: [(f.epoch, f.slots["r0c0"].blueprint) for f in fs] for name, fs in results.items()}

        one, other = world.on_all(train)
        self.assertEqual(one, other)
        self.assertEqual(one["b"], [(e, "conv-b") for e in range(5)])


if __name__ == "__main__":
    unittest.main()
