"""What trainers see when a replica of the log has diverged, with real esperds."""

import logging
import threading
import unittest

import esperd
from esperd.errors import error_of_fault
from esperd.evidence import Fault
from tests.world import World, needs_esperd, needs_faulty

AT = 12  # the entry after which the state is wrong: one of rank 0's calls


class WhoIsTold(unittest.TestCase):
    def test_only_who_cannot_trust_what_it_was_told_gets_diverged(self):
        def told(of, rank, node="n"):
            call = {"op": "fence", "model": "main", "call": 3}
            fault = Fault.of({"round": 1, "code": "diverged", "rank": of, "node": node, "index": 9, "got": call, "want": call, "reason": "why"})
            return error_of_fault(fault, rank=rank)

        for of, rank, node, kind in ((1, 1, "n", esperd.Diverged), (1, 2, "n", esperd.RoundFaulted), (0, 0, "n", esperd.Diverged),
                                     (0, 2, "n", esperd.Diverged), (1, 2, "", esperd.Diverged)):
            error = told(of, rank, node)
            self.assertIs(type(error), kind, f"rank {of} at fault, as rank {rank} is told")
            self.assertEqual((error.fault.code, error.fault.rank, error.fault.index), ("diverged", of, 9))
            self.assertIn("why (entry 9); see esperd status and esperd audit", str(error))
        self.assertEqual(told(1, 1).code, "diverged")
        self.assertNotIsInstance(told(1, 2), esperd.Diverged)


@needs_esperd
@needs_faulty
class WithEsperd(unittest.TestCase):
    def setUp(self):
        logging.getLogger("esperd").setLevel(logging.CRITICAL)

    def go_wrong(self, at_fault):
        """Train until the states differ, and return by rank what the next call
        raises, and what on_fatal was told."""
        world = World(self, 2, faults={at_fault: {"ESPERD_FAULT_MEMORY": str(AT)}})
        told = [[], []]
        fatal = [threading.Event(), threading.Event()]

        def connect(rank):
            def on_fatal(error):
                told[rank].append(error)
                fatal[rank].set()

            return esperd.connect(world.socket(rank), rank=rank, world_size=2, slots=["r0c0"], mode="follow", on_fatal=on_fatal)

        clients = world.on_all(connect)
        for c in clients:
            self.assertIsInstance(c, esperd.Client)
            self.addCleanup(c.close)
        clients[0].germinate("r0c0", "conv")
        try:
            for _ in range(2 * AT):  # each is an entry
                clients[0].advance("r0c0")
        except esperd.EsperdError:
            pass  # the round is over for rank 0, too
        raised = world.on_all(lambda rank: clients[rank].step_epoch(0))
        for rank in range(2):
            self.assertTrue(fatal[rank].wait(30), f"rank {rank} was not told: its call raised {raised[rank]!r}")
        return raised, [t[0] for t in told], clients

    def test_a_wrong_follower(self):
        raised, told, clients = self.go_wrong(1)
        for of in (raised, told):
            self.assertIs(type(of[0]), esperd.RoundFaulted, repr(of[0]))
            self.assertIs(type(of[1]), esperd.Diverged, repr(of[1]))
        for error in raised + told:
            self.assertEqual((error.fault.code, error.fault.rank, error.fault.index), ("diverged", 1, AT + 1), str(error))
            self.assertTrue(error.fault.node)
        self.assertIn("esperd audit", str(raised[1]))
        with self.assertRaises(esperd.Diverged):
            clients[1].step_epoch(0)
        with self.assertRaises(esperd.RoundFaulted):
            clients[0].advance("r0c0")

    def test_a_wrong_rank_0(self):
        raised, told, _ = self.go_wrong(0)
        for error in raised + told:
            self.assertIs(type(error), esperd.Diverged, repr(error))
            self.assertEqual((error.fault.code, error.fault.rank, error.fault.index), ("diverged", 0, AT + 1), str(error))
