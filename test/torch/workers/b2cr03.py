"""B2-CR-03: one rank goes through the slots in another order."""

import torch.distributed as dist

import esperd
from loops import GateLevel, GateResult, broadcast_gate
from ranks import join

READY = {"r0c0": True, "r0c1": False}  # what every rank finds, on its own
ODD = 1


def order_of(rank):
    return sorted(READY, reverse=rank == ODD)


def verdict_on(slot):
    return GateResult(GateLevel.G2, READY[slot], message=slot)


def broadcasts(rank, world, say):
    join(rank, world, timeout_s=10)
    for slot in order_of(rank):
        decided = broadcast_gate(verdict_on(slot))
        say("decided", slot=slot, passed=decided.passed, about=decided.message)
    dist.barrier()


def with_esperd(rank, world, say):
    with esperd.connect(slots=list(READY)) as ep:
        for slot in READY:
            ep.germinate(slot, "conv")
            ep.advance(slot)
        for slot in order_of(rank):
            decided = ep.sync_gate(slot, verdict_on(slot))
            say("decided", slot=slot, passed=decided.passed, about=decided.message)
        for epoch in range(1000):  # rank 0 learns of it at one of its next calls
            ep.step_epoch(epoch)


def with_esperd_warn(rank, world, say):
    """The same, where a loop whose order is known to differ has to go on."""
    with esperd.connect(slots=list(READY), ordering="warn") as ep:
        for slot in READY:
            ep.germinate(slot, "conv")
            ep.advance(slot)
        for slot in order_of(rank):
            decided = ep.sync_gate(slot, verdict_on(slot))
            say("decided", slot=slot, passed=decided.passed, about=decided.message)
        ep.step_epoch(0)


def observed(rank, world, say):
    """Broadcasts as they are, and esperd beside them."""
    join(rank, world, timeout_s=10)
    ep = esperd.connect(slots=list(READY), mode="observe")
    for slot in READY:
        ep.germinate(slot, "conv", outcome=esperd.Outcome("GERMINATED"))
        ep.advance(slot, outcome=esperd.Outcome("TRAINING", passed=True))
    stages = {}
    for slot in order_of(rank):
        decided = broadcast_gate(verdict_on(slot))
        say("decided", slot=slot, passed=decided.passed, about=decided.message)
        stages[slot] = "BLENDING" if decided.passed else "TRAINING"
        ep.verdict(slot, gate="G2", passed=READY[slot], outcome=esperd.Outcome(stages[slot], passed=decided.passed))
    dist.barrier()
    ep.step_epoch(0, outcomes={slot: esperd.Outcome(stage) for slot, stage in stages.items()})
    ep.close()
