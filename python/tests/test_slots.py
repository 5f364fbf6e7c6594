"""Slot objects of esper-lite's interface, with real esperds."""

import contextlib
import copy
import dataclasses
import enum
import logging
import unittest
from types import SimpleNamespace
from typing import List

import esperd
from esperd.slots import SlotDrift, SlotGroup, config_of
from tests.world import World, needs_esperd


class Stage(enum.IntEnum):
    UNKNOWN = 0
    DORMANT = 1
    GERMINATED = 2
    TRAINING = 3
    BLENDING = 4
    HOLDING = 6
    FOSSILIZED = 7
    PRUNED = 8
    EMBARGOED = 9
    RESETTING = 10


Level = enum.IntEnum("Level", {"G0": 0, "G1": 1, "G2": 2, "G3": 3, "G5": 5})
Mode = enum.IntEnum("Mode", {"HOLD": 0, "UP": 1, "DOWN": 2})
Curve = enum.IntEnum("Curve", {"LINEAR": 1, "COSINE": 2, "SIGMOID": 3})
Algorithm = enum.IntEnum("Algorithm", {"ADD": 1, "MULTIPLY": 2, "GATE": 3})

AFTER = {Stage.GERMINATED: [Stage.TRAINING], Stage.TRAINING: [Stage.BLENDING], Stage.BLENDING: [Stage.HOLDING],
         Stage.HOLDING: [Stage.FOSSILIZED, Stage.BLENDING], Stage.FOSSILIZED: []}


@dataclasses.dataclass
class Result:
    gate: Level
    passed: bool
    score: float = 0.0
    checks_passed: List[str] = dataclasses.field(default_factory=list)
    checks_failed: List[str] = dataclasses.field(default_factory=list)
    message: str = ""


class FakeGates:
    permissive = False
    min_training_improvement = 0.5
    min_blending_epochs = 1
    min_seed_gradient_ratio = 0.1
    min_gradient_health_for_blending = 0.7
    min_probation_stability = 0.95

    def check_gate(self, state, target):
        m, c = state.metrics, state.alpha_controller
        level, passed = {
            Stage.TRAINING: (Level.G1, state.stage == Stage.GERMINATED),
            Stage.BLENDING: (Level.G2, m.current_val_accuracy - m.accuracy_at_stage_start >= 0.5),
            Stage.HOLDING: (Level.G3, c.alpha_mode == Mode.HOLD and c.alpha == 1),
            Stage.FOSSILIZED: (Level.G5, (m.counterfactual_contribution or 0) >= 1),
        }[target]
        return Result(level, passed, float(passed), ["mine"] * passed, ["mine"] * (not passed), "m")


class FakeSlot:
    """A slot with esper-lite's interface, whose ramps are straight."""

    def __init__(self, name, auto_forward=()):
        self.slot_id, self.gates, self.auto_forward_gates = name, FakeGates(), frozenset(auto_forward)
        self.state = self.seed = None
        self.fast_mode = False

    @property
    def alpha(self):
        return self.state.alpha if self.state else 0.0

    def germinate(self, blueprint_id, seed_id=None, host_module=None, blend_algorithm_id="sigmoid", blend_tempo_epochs=5,
                  alpha_algorithm=Algorithm.ADD, alpha_target=None, topology=None):
        if blueprint_id == "unknown":
            raise ValueError("no such blueprint")
        self.blend = (alpha_target or 1.0, blend_tempo_epochs)
        self.seed = object()
        self.state = SimpleNamespace(
            seed_id=seed_id, stage=Stage.GERMINATED, alpha=0.0, is_healthy=True, alpha_algorithm=alpha_algorithm,
            telemetry=SimpleNamespace(gradient_norm=None, gradient_health=None, has_exploding=None, has_vanishing=None),
            metrics=SimpleNamespace(epochs_total=0, epochs_in_current_stage=0, current_val_accuracy=0.0, accuracy_at_stage_start=0.0,
                                    seed_gradient_norm_ratio=None, counterfactual_contribution=None),
            alpha_controller=SimpleNamespace(alpha=0.0, alpha_start=0.0, alpha_target=0.0, alpha_mode=Mode.HOLD, alpha_curve=Curve.LINEAR,
                                             alpha_steepness=12.0, alpha_steps_total=0, alpha_steps_done=0))
        return self.state

    def measure(self, accuracy, contribution=None):
        """What a trainer does after its evaluation: for every slot with a state,
        also in the cooldown."""
        if self.state is not None:
            m = self.state.metrics
            if m.epochs_total == 0:
                m.accuracy_at_stage_start = accuracy
            m.current_val_accuracy, m.seed_gradient_norm_ratio, m.counterfactual_contribution = accuracy, 0.5, contribution
            m.epochs_total += 1
            m.epochs_in_current_stage += 1

    def _enter(self, stage):
        m = self.state.metrics
        self.state.stage, m.accuracy_at_stage_start, m.epochs_in_current_stage = stage, m.current_val_accuracy, 0

    def _ramp(self, target, steps, curve=None, steepness=12.0):
        c = self.state.alpha_controller
        c.alpha_start, c.alpha_target, c.alpha_steps_total, c.alpha_steps_done = c.alpha, min(target, 1.0), steps, 0
        c.alpha_mode = Mode.UP if target > c.alpha else Mode.DOWN if target < c.alpha else Mode.HOLD
        c.alpha_curve, c.alpha_steepness = curve or c.alpha_curve, steepness

    def _sync_gate_decision(self, result):
        raise AssertionError("a broadcast beside the log's decision")

    def advance_stage(self, target_stage=None):
        if self.seed is None:
            return Result(Level.G0, False, checks_failed=["no_active_seed"])
        if target_stage in (Stage.PRUNED, Stage.EMBARGOED, Stage.RESETTING):
            raise ValueError("use prune")
        target = target_stage or (AFTER[self.state.stage] or [None])[0]
        if target is None:
            return Result(Level.G0, False, checks_failed=["no_valid_transition"])
        result = self._sync_gate_decision(self.gates.check_gate(self.state, target))
        if not result.passed:
            return result
        if target not in AFTER[self.state.stage]:
            return Result(result.gate, False, checks_failed=["transition_failed"])
        if (self.state.stage, target) == (Stage.TRAINING, Stage.BLENDING):
            self._ramp(*self.blend)
        elif target == Stage.HOLDING:
            self.set_alpha(1.0)
            c = self.state.alpha_controller
            c.alpha_start = c.alpha_target = 1.0
            c.alpha_mode, c.alpha_steps_done = Mode.HOLD, c.alpha_steps_total
        self._enter(target)
        return result

    def prune(self, reason="", *, initiator="policy"):
        if self.seed is None or self.state.stage == Stage.FOSSILIZED:
            return False
        self.seed, self.pruned_by = None, (reason, initiator)
        self._enter(Stage.PRUNED)
        self.set_alpha(0.0)
        return True

    def schedule_prune(self, *, steps, curve=None, steepness=12.0, reason="", initiator="policy"):
        if steps <= 0 or self.alpha <= 0:
            return self.prune(reason, initiator=initiator)
        if self.state.stage == Stage.HOLDING:
            self._enter(Stage.BLENDING)
        self._ramp(0.0, steps, curve, steepness)
        return True

    def set_alpha_target(self, *, alpha_target, steps, curve=None, steepness=12.0, alpha_algorithm=None, initiator="policy"):
        if self.state.stage == Stage.HOLDING and alpha_target < 1:
            self._enter(Stage.BLENDING)
        self.state.alpha_algorithm = alpha_algorithm or self.state.alpha_algorithm
        self._ramp(alpha_target, steps, curve, steepness)
        return True

    def set_alpha(self, alpha):
        self.state.alpha = self.state.alpha_controller.alpha = alpha

    @contextlib.contextmanager
    def force_alpha(self, value):
        before = self.alpha
        self.set_alpha(value)
        try:
            yield
        finally:
            self.set_alpha(before)

    def step_epoch(self):
        stage = self.state.stage if self.state else None
        if stage == Stage.GERMINATED and Level.G1 in self.auto_forward_gates:
            self.advance_stage(Stage.TRAINING)
        elif stage == Stage.TRAINING and Level.G2 in self.auto_forward_gates:
            self.advance_stage(Stage.BLENDING)
        elif stage == Stage.BLENDING:
            self._tick()
        elif stage == Stage.PRUNED:
            self._enter(Stage.EMBARGOED)
        elif stage == Stage.EMBARGOED:
            self.state.metrics.epochs_in_current_stage += 1
            if self.state.metrics.epochs_in_current_stage >= 5:
                self._enter(Stage.RESETTING)
        elif stage == Stage.RESETTING:
            self.state = None

    def _tick(self):
        c = self.state.alpha_controller
        if c.alpha_mode != Mode.HOLD:
            c.alpha_steps_done += 1
            c.alpha = c.alpha_start + (c.alpha_target - c.alpha_start) * c.alpha_steps_done / c.alpha_steps_total
            if c.alpha_steps_done == c.alpha_steps_total:
                c.alpha, c.alpha_mode = c.alpha_target, Mode.HOLD
        self.state.alpha = c.alpha
        if c.alpha_mode == Mode.HOLD and c.alpha_target == 0:
            self.prune("scheduled_prune")


class SlotsTest(unittest.TestCase):
    size, auto_forward = 1, ()

    def setUp(self):
        logging.getLogger("esperd").setLevel(logging.CRITICAL)
        self.world = World(self, self.size)
        self.own = [{n: FakeSlot(n, self.auto_forward) for n in ("r0c0", "r0c1")} for _ in range(self.size)]
        self.clients = self.world.connect(self, slots={n: config_of(s) for n, s in self.own[0].items()})
        self.groups = self.on_all(lambda rank: SlotGroup(self.clients[rank], self.own[rank]))

    def on_all(self, do):
        out = self.world.on_all(do)
        for o in out:
            if isinstance(o, Exception):
                raise o
        return out

    def calls(self, call, *measured):
        """Make one call for each rank, on r0c0, after it has measured."""
        def one(rank):
            if measured:
                self.own[rank]["r0c0"].measure(*measured[rank])
            return call(self.groups[rank]["r0c0"])

        out = self.on_all(one)
        now = [(s.state and s.state.stage, s.alpha) for s in (own["r0c0"] for own in self.own)]
        self.assertEqual(now, now[:1] * self.size)
        logged = self.clients[0].slots()["r0c0"]
        self.assertEqual((now[0][0] or Stage.DORMANT).name, logged.stage)
        self.assertAlmostEqual(now[0][1], logged.alpha, delta=1e-12)
        return out

    def step(self, *measured):
        """Step every slot, and return stage and alpha of r0c0."""
        self.calls(lambda slot: [s.step_epoch() for s in slot._group.values()], *measured)
        state = self.own[0]["r0c0"].state
        return (state.stage, state.alpha) if state else None

    def grow(self, until, tempo=4):
        """Bring a seed into a stage."""
        self.calls(lambda slot: slot.germinate("conv", blend_algorithm_id="linear", blend_tempo_epochs=tempo))
        for accuracy in range(50, 70):
            if self.own[0]["r0c0"].state.stage == until:
                return
            self.calls(lambda slot: slot.advance_stage(), *[(float(accuracy), 2.0)] * self.size)
            self.step()
        self.fail(f"not {until}")


@needs_esperd
class TwoRanks(SlotsTest):
    size = 2

    def test_rank_0s_gate_counts_for_every_slot(self):
        self.calls(lambda slot: slot.germinate("conv", blend_algorithm_id="linear", blend_tempo_epochs=2))
        for result in self.calls(lambda slot: slot.advance_stage()):
            self.assertEqual((result.gate, result.passed, result.agreed), (Level.G1, True, True))
        self.step((50.0,), (50.0,))

        zero, one = self.calls(lambda slot: slot.advance_stage(), (50.0,), (60.0,))
        self.assertEqual((zero.gate, zero.passed, zero.agreed), (Level.G2, False, True))
        self.assertEqual((type(one), one.passed, one.checks_failed, one.local.passed, one.agreed), (Result, False, ["mine"], True, False))
        self.step()

        zero, one = self.calls(lambda slot: slot.advance_stage(), (60.0,), (40.0,))
        self.assertEqual((one.passed, one.local.passed, one.decision.stage), (True, False, "BLENDING"))
        self.assertEqual(self.step(), (Stage.BLENDING, 0.5))
        self.assertEqual(self.step(), (Stage.BLENDING, 1.0))
        self.calls(lambda slot: slot.advance_stage(Stage.HOLDING))
        self.step()
        one = self.calls(lambda slot: slot.advance_stage(), (60.0, 3.0), (60.0, -3.0))[1]
        self.assertEqual((one.gate, one.passed, one.local.passed), (Level.G5, True, False))
        self.calls(lambda slot: slot.set_alpha(1.0))
        self.assertEqual([c.slots()["r0c0"].metrics.contribution for c in self.clients], [3.0, 3.0])

    def test_a_ramp_to_prune_and_what_follows(self):
        self.grow(Stage.HOLDING)
        self.assertEqual(self.calls(lambda slot: slot.schedule_prune(steps=3, curve=Curve.LINEAR, reason="poor")), [True, True])
        self.assertEqual(self.calls(lambda slot: slot.schedule_prune(steps=3)), [False, False], "it ramps already")
        self.assertEqual(self.calls(lambda slot: slot.set_alpha_target(alpha_target=0.5, steps=3)), [False, False])
        stage, alpha = self.step((50.0,), (70.0,))
        self.assertEqual((stage, round(alpha, 6)), (Stage.BLENDING, 0.666667))
        self.step()
        self.assertEqual(self.step(), (Stage.PRUNED, 0.0))
        self.assertEqual(self.calls(lambda slot: slot.prune()), [False, False])
        self.assertEqual([r.checks_failed for r in self.calls(lambda slot: slot.advance_stage())], [["no_active_seed"]] * 2)
        cooldown = [self.step((50.0,), (50.0,)) for _ in range(7)]  # an accuracy there shortens nothing
        self.assertEqual([c and c[0] for c in cooldown], [Stage.EMBARGOED] * 5 + [Stage.RESETTING, None])
        self.grow(Stage.TRAINING)

    def test_retargeting(self):
        self.grow(Stage.HOLDING)
        self.assertEqual(self.calls(lambda slot: slot.set_alpha_target(alpha_target=0.5, steps=2, curve=Curve.LINEAR, alpha_algorithm=Algorithm.MULTIPLY)), [True, True])
        self.assertEqual([self.step(), self.step(), self.step()], [(Stage.BLENDING, 0.75), (Stage.BLENDING, 0.5), (Stage.BLENDING, 0.5)])
        self.calls(lambda slot: slot.set_alpha_target(alpha_target=1.5, steps=1))
        self.assertEqual(self.step(), (Stage.BLENDING, 1.0))
        self.calls(lambda slot: slot.advance_stage())
        self.calls(lambda slot: slot.set_alpha_target(alpha_target=1 - 5e-7, steps=3))  # to 1, for the log
        self.assertEqual(self.step(), (Stage.HOLDING, 1.0))

    def test_another_call_than_rank_0s_is_named_by_its_line(self):
        self.on_all(lambda rank: [s.germinate("conv") for s in self.groups[rank].values()])
        self.groups[0]["r0c0"].advance_stage()
        with self.assertRaisesRegex(esperd.OrderMismatch, r"verdict r0c1#1 .* at test_slots.py:\d+, but rank 0 made .* verdict r0c0#1 .* at test_slots.py:\d+"):
            self.groups[1]["r0c1"].advance_stage()
        self.assertEqual(self.own[1]["r0c1"].state.stage, Stage.GERMINATED)


@needs_esperd
class AutoForward(SlotsTest):
    size, auto_forward = 2, (Level.G1, Level.G2)

    def test_rank_0s_gate_counts_in_an_epoch_step(self):
        self.assertEqual(config_of(self.own[0]["r0c0"]), esperd.SlotConfig(esperd.Gates(min_blending_epochs=1), ("G1", "G2")))
        self.calls(lambda slot: slot.germinate("conv", blend_algorithm_id="linear"))
        self.assertEqual(self.step((50.0,), (50.0,)), (Stage.TRAINING, 0.0))
        self.assertEqual(self.step((50.0,), (60.0,)), (Stage.TRAINING, 0.0), "rank 1 would pass")
        self.assertEqual(self.step((60.0,), (50.0,)), (Stage.BLENDING, 0.0), "rank 1 would fail")
        self.assertEqual(self.own[1]["r0c0"].auto_forward_gates, {Level.G1, Level.G2})


@needs_esperd
class OneRank(SlotsTest):
    def setUp(self):
        super().setUp()
        (self.ep,), (self.group,) = self.clients, self.groups
        self.slot, self.inner = self.group["r0c0"], self.own[0]["r0c0"]

    def test_steps_one_by_one_are_one_epoch(self):
        one, other = self.group.values()
        one.germinate("conv")
        self.assertEqual(self.group.step_epoch(7).epoch, 7)
        one.step_epoch()
        with self.assertRaisesRegex(esperd.Refused, "r0c0 was stepped in epoch 8 already, and r0c1 not yet: expected step_epoch.. of every slot"):
            one.step_epoch()
        with self.assertRaisesRegex(esperd.Refused, "r0c1 was not stepped in epoch 8, which other slots were"):
            other.germinate("conv")
        with self.assertRaisesRegex(esperd.Refused, "epoch 8 is not over: expected step_epoch.. of r0c1 first"):
            self.group.step_epoch()
        one.advance_stage()
        other.step_epoch()
        self.assertEqual(self.group.step_epoch().epoch, 9)

    def test_what_the_log_refuses_leaves_the_slot_alone(self):
        self.assertFalse(self.slot.prune())
        self.slot.germinate("conv")
        before = copy.deepcopy(self.inner.state)
        with self.assertRaisesRegex(esperd.Refused, "expected an empty slot"):
            self.slot.germinate("conv")
        with self.assertRaisesRegex(esperd.Refused, "use schedule_prune"):
            self.slot.set_alpha_target(alpha_target=0, steps=3)
        with self.assertRaisesRegex(esperd.Refused, "set_alpha r0c0: expected 0, as the log has it, got 1; use set_alpha_target"):
            self.slot.set_alpha(1)
        with self.assertRaisesRegex(ValueError, "use prune"):
            self.slot.advance_stage(Stage.PRUNED)
        self.assertEqual(self.slot.advance_stage(Stage.BLENDING).checks_failed, ["mine"])
        self.assertEqual(self.inner.state, before)
        with self.assertRaisesRegex(esperd.Refused, "model main has no slot 'x', expected some of r0c0, r0c1") as caught:
            SlotGroup(self.ep, {"x": FakeSlot("x")})
        self.assertEqual(caught.exception.code, "unknown-slot")

    def test_every_rank_makes_the_calls(self):
        for mode in ("follow", "observe"):
            with self.assertRaisesRegex(esperd.Refused, f'expected a client of the mode keyed, .* got one of the mode {mode}: connect with mode="keyed"'):
                SlotGroup(SimpleNamespace(mode=mode), self.own[0])

    def test_a_slot_that_drifts_is_named(self):
        self.grow(Stage.BLENDING)
        self.inner.set_alpha(0.3)
        with self.assertRaises(SlotDrift) as caught:
            self.slot.advance_stage()
        self.assertEqual(str(caught.exception), "slot-drift: slot r0c0 of model main is not as the log has it, on rank 0: alpha is 0.3 here and 0.25 in "
                                                "the log; ramp's alpha is 0.3 here and 0.25 in the log. Expected every call that changes it on its "
                                                "ReplicatedSlot, and no state restored into it alone")
        self.assertEqual((SlotDrift.__module__, SlotDrift.__name__), ("esperd.slots", "SlotDrift"))
        self.assertRaises(SlotDrift, self.group.step_epoch)
        self.inner.set_alpha(0.25)
        self.inner.state.alpha_controller.alpha_target = 0.5
        with self.assertRaisesRegex(SlotDrift, "rank 0: ramp's target is 0.5 here and 1.0 in the log. Expected"):
            self.slot.schedule_prune(steps=1)
        self.inner.state.alpha_controller.alpha_target = 1.0
        with self.slot.force_alpha(0.0), self.assertRaisesRegex(SlotDrift, "alpha is 0.0 here"):
            self.slot.step_epoch()
        self.assertEqual(self.step(), (Stage.BLENDING, 0.5))
        with self.assertRaisesRegex(SlotDrift, "stage is DORMANT here and BLENDING in the log"):
            SlotGroup(self.ep, {"r0c0": FakeSlot("r0c0")})

    def test_a_slot_that_does_something_else_than_was_decided(self):
        with self.assertRaisesRegex(ValueError, "no such blueprint"):
            self.slot.germinate("unknown")
        with self.assertRaisesRegex(SlotDrift, "stage is DORMANT here and GERMINATED in the log"):
            self.slot.germinate("conv")
        other = self.group["r0c1"]
        other.germinate("conv")
        other.state.alpha_controller.alpha_steepness = 3.0  # of no consequence while nothing ramps
        other._slot._enter = lambda stage: None
        with self.assertRaisesRegex(SlotDrift, "stage is GERMINATED here and TRAINING in the log"):
            other.advance_stage()

    def test_calls_on_the_client_alone_are_drift(self):
        self.grow(Stage.TRAINING)
        self.ep.prune("r0c0")
        with self.assertRaisesRegex(SlotDrift, "stage is TRAINING here and PRUNED in the log"):
            self.group.step_epoch()

    def test_a_governor_restores_a_snapshot_and_prunes(self):
        self.grow(Stage.TRAINING)
        snapshot = copy.deepcopy(self.inner.state)
        self.calls(lambda slot: slot.advance_stage(), (90.0,))
        self.step()
        self.inner.state = snapshot
        self.assertRaises(SlotDrift, self.slot.advance_stage)
        self.assertEqual([s.prune("governor_nan", initiator="governor") for s in self.group.values()], [True, False])
        self.assertEqual(self.step()[0], Stage.EMBARGOED)

    def test_a_fence_that_prunes_for_somebody_else(self):
        self.grow(Stage.BLENDING)

        class Elsewhere:
            def __getattr__(_, name):
                return getattr(self.ep, name)

            def step_epoch(_, epoch):
                self.ep.step_epoch(epoch)
                self.ep.prune("r0c0", "asked for by an operator")
                return self.ep.fence(epoch)

            def fence(_, n):
                self.ep.prune("r0c1")
                return self.ep.fence(n)

        elsewhere = SlotGroup(Elsewhere(), self.own[0])
        elsewhere.step_epoch(1000)
        self.assertEqual((self.inner.state.stage, self.inner.alpha, self.inner.pruned_by[1]), (Stage.PRUNED, 0.0, "esperd"))
        elsewhere["r0c1"].germinate("conv")
        self.assertEqual(elsewhere.fence(1001).changes[0].stage, "PRUNED")
        self.assertEqual(elsewhere["r0c1"].state.stage, Stage.PRUNED)

    def test_everything_else_is_the_slots_own(self):
        self.slot.fast_mode = True
        self.assertTrue(self.inner.fast_mode)
        self.slot.germinate("conv", alpha_algorithm=Algorithm.MULTIPLY, alpha_target=0.5)
        self.assertIs(self.slot.state, self.inner.state)
        self.assertEqual((self.slot.alpha, self.slot.state.seed_id, self.slot.slot_id), (0.0, "r0c0-conv", "r0c0"))
        self.assertEqual(self.ep.slots()["r0c0"].algorithm, "MULTIPLY")
        self.assertEqual((list(self.group), len(self.group)), (["r0c0", "r0c1"], 2))
        self.assertRegex(repr(self.slot), "ReplicatedSlot 'r0c0' of <esperd.Client of model 'main'")
        with self.assertRaises(TypeError):
            copy.deepcopy(self.slot)


if __name__ == "__main__":
    unittest.main()
