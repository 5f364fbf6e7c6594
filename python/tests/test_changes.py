"""What changes between fences tell of the modules to be made and removed, and
what an earlier trainer has left."""

import itertools
import logging
import unittest

import esperd
from tests.fakedoor import DoorTest
from tests.world import World, needs_esperd

LIVING = ("GERMINATED", "TRAINING", "BLENDING", "HOLDING", "FOSSILIZED")
GONE = ("DORMANT", "PRUNED", "EMBARGOED", "RESETTING")


def change(before, now, **more):
    return esperd.Change("r0c0", 1, before, now, 0.0, 0.0, False, **more)


class Changes(unittest.TestCase):
    def test_a_slot_that_was_or_is_empty(self):
        for living, gone in itertools.product(LIVING, GONE):
            self.assertEqual((change(gone, living).begins, change(gone, living).ends), (True, False), (gone, living))
            self.assertEqual((change(living, gone).begins, change(living, gone).ends), (False, True), (living, gone))
        for before, now in itertools.product(GONE, GONE):
            self.assertFalse(change(before, now).begins or change(before, now).ends, (before, now))

    def test_a_seed_that_goes_on_or_is_replaced(self):
        for before, now in itertools.product(LIVING, repeat=2):
            for replaced in (False, True):  # a seed may go back, by a resume
                c = change(before, now, replaced=replaced)
                self.assertEqual((c.begins, c.ends), (replaced, replaced), c)

    def test_what_an_answer_has(self):
        document = {"slot": "r0c0", "seed": 2, "from": "DORMANT", "to": "TRAINING", "alpha_from": 0, "alpha": 0, "frozen": False}
        self.assertEqual(esperd.Change.of({**document, "blueprint": "conv"}).blueprint, "conv")
        self.assertEqual(esperd.Change.of(document).blueprint, "", "of an esperd that does not say it")


class Before(DoorTest):
    def told(self, *slots, **session):
        """Connect to a log, and return what is logged of what is in it."""
        self.door.slots = lambda: list(slots)
        kept = self.door.session
        self.door.session = lambda model, answered: {**kept(model, answered), **session}
        self.addCleanup(setattr, self.door, "session", kept)
        with self.assertLogs("esperd", "INFO") as logs:
            logging.getLogger("esperd").info("-")
            self.connect()
        return [record.getMessage() for record in logs.records[1:]]

    def slot(self, stage="DORMANT", name="r0c0", germinations=0):
        return {"name": name, "stage": stage, "alpha": 0, "germinations": germinations}

    def test_a_fresh_log(self):
        self.assertEqual(self.told(self.slot()), [])

    def test_one_that_goes_on(self):
        self.assertEqual(self.told(self.slot("FOSSILIZED", germinations=1), self.slot(name="r0c1"), epoch=19),
                         ["run run-1 goes on where its log ends: generation 1, epoch 19, r0c0 FOSSILIZED"])
        self.assertEqual(self.told(self.slot(), generation=2), ["run run-1 goes on where its log ends: generation 2, epoch 19, all slots DORMANT"])
        self.assertIn("no epoch yet, r0c0 GERMINATED", self.told(self.slot("GERMINATED", germinations=1), epoch=-1, generation=1)[0])
        many = self.told(*[self.slot("TRAINING", f"s{i}", 1) for i in range(20)])
        self.assertTrue(many[0].endswith("s14 TRAINING, s15 TRAINING, and 4 more"), many)


@needs_esperd
class ARealLog(unittest.TestCase):
    def test_modules_are_made_and_removed(self):
        (ep,) = World(self, 1).connect(self)
        modules = {}

        def apply(fence):
            for c in fence.changes:
                if c.ends:
                    del modules[c.slot]
                if c.begins:
                    modules[c.slot] = (c.blueprint, c.seed)
            self.assertEqual(modules, {s.name: (s.blueprint, s.seed) for s in fence.slots.values() if s.stage in LIVING})
            return modules

        ep.germinate("r0c0", "conv")
        ep.advance("r0c0")
        self.assertEqual(apply(ep.fence(0)), {"r0c0": ("conv", 1)}, "GERMINATED was skipped")
        ep.prune("r0c0")
        ep.germinate("r0c1", "norm")
        fence = ep.step_epoch(0)
        self.assertEqual([(c.slot, c.stage, c.blueprint, c.ends) for c in fence.changes], [("r0c0", "EMBARGOED", "conv", True), ("r0c1", "GERMINATED", "norm", False)])
        self.assertEqual(apply(fence), {"r0c1": ("norm", 1)})
        ep.prune("r0c1")
        self.assertEqual(apply(ep.fence(1)), {})
        for epoch in range(1, 9):
            self.assertEqual(apply(ep.step_epoch(epoch)), {})
        ep.germinate("r0c0", "attention")
        ep.germinate("r0c1", "norm")
        ep.prune("r0c1")
        self.assertEqual(apply(ep.step_epoch(9)), {"r0c0": ("attention", 2)}, "who was pruned at once was never there")
        gone = ep.reset()
        self.assertEqual([(c.slot, c.seed, c.blueprint, c.stage) for c in gone.changes], [("r0c0", 0, "attention", "DORMANT"), ("r0c1", 0, "norm", "DORMANT")])
        self.assertEqual(apply(gone), {})


if __name__ == "__main__":
    unittest.main()
