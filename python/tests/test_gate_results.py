"""sync_gate with gate results of several making."""

import dataclasses
import datetime
import enum
from typing import List

import esperd
from tests.fakedoor import DECISION, DoorTest


class GateLevel(enum.IntEnum):
    G0 = 0
    G1 = 1
    G2 = 2


@dataclasses.dataclass
class GateResult:
    """esper-lite's."""

    gate: GateLevel
    passed: bool
    score: float = 0.0
    checks_passed: List[str] = dataclasses.field(default_factory=list)
    checks_failed: List[str] = dataclasses.field(default_factory=list)
    message: str = ""
    timestamp: datetime.datetime = dataclasses.field(default_factory=datetime.datetime.now)


@dataclasses.dataclass(frozen=True)
class Frozen:
    gate: str
    passed: bool
    score: float
    checks_passed: tuple
    checks_failed: tuple
    message: str


@dataclasses.dataclass
class Slotted:
    __slots__ = ("gate", "passed", "score", "checks_passed", "checks_failed", "message")
    gate: int
    passed: bool
    score: float
    checks_passed: list
    checks_failed: list
    message: str


class Plain:
    def __init__(self, gate):
        self.gate, self.passed, self.score, self.checks_passed, self.checks_failed, self.message = gate, True, 1, [], [], "mine"


class SyncGate(DoorTest):
    def test_the_decided_result_is_of_the_same_class(self):
        ep = self.connect()
        mine = GateResult(GateLevel.G2, True, 0.5, ["mine"], [], "mine")
        before = dataclasses.replace(mine)
        got = ep.sync_gate("r0c0", mine)
        self.assertEqual(got, GateResult(GateLevel.G2, False, 0.25, ["a"], ["b", "c"], "m", mine.timestamp))
        self.assertIs(type(got.gate), GateLevel)
        self.assertEqual((got.local, got.agreed, got.decision), (mine, False, esperd.Decision.of(DECISION)))
        self.assertEqual((mine, mine.__dict__), (before, before.__dict__), "the given one is left alone")
        sent = self.door.called()[0]
        self.assertEqual((sent.path, sent.body["gate"], sent.body["passed"], sent.body["checks_passed"]), ("/v1/slots/r0c0/verdict", "G2", True, ["mine"]))

    def test_other_classes(self):
        ep = self.connect()
        frozen = ep.sync_gate("r0c0", Frozen("G2", True, 1, (), ("x",), ""))
        self.assertEqual(frozen, Frozen("G2", False, 0.25, ("a",), ("b", "c"), "m"))
        self.assertFalse(frozen.agreed)
        slotted = ep.sync_gate("r0c0", Slotted(2, True, 1, [], [], ""))
        self.assertEqual((slotted.gate, slotted.passed, hasattr(slotted, "agreed")), (2, False, False))
        plain = Plain("G2")
        got = ep.sync_gate("r0c0", plain)
        self.assertEqual((type(got), got.passed, got.checks_failed, got.message, plain.message, got.local), (Plain, False, ["b", "c"], "m", "mine", plain))

    def test_no_gate_result(self):
        with self.assertRaises(AttributeError):
            self.connect().sync_gate("r0c0", object())
        with self.assertRaisesRegex(TypeError, "gate: expected a string"):
            self.connect().sync_gate("r0c0", Plain(None))
        self.assertEqual(self.door.called(), [])
