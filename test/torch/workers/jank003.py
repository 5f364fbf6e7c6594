"""JANK-003: one rank does not make the gate calls that the others make."""

import os
import time

import torch
import torch.distributed as dist

import esperd
from loops import GateLevel, GateResult, broadcast_gate
from ranks import join, tell

SLOTS = ("r0c0", "r0c1")
ODD, FROM = 1, 2  # the rank that does otherwise, and the epoch from which on
STAY_S = 2  # for which that rank keeps its connections: gloo would notice a closed one, other backends do not


def gates_of(rank, epoch, skip):
    """The slots whose gates a rank calls in an epoch, in order."""
    if rank != ODD or epoch < FROM:
        return SLOTS
    return SLOTS[:1] if skip else SLOTS[:1] + SLOTS


def today(rank, world, say, skip):
    join(rank, world, timeout_s=3)
    for epoch in range(4):
        gradients = torch.ones(8)
        dist.all_reduce(gradients)
        for slot in gates_of(rank, epoch, skip):
            say("gate", epoch=epoch, slot=slot)
            mine = GateResult(GateLevel.G2, True, message=f"{slot} in epoch {epoch}")
            decided = broadcast_gate(mine)
            say("decided", epoch=epoch, slot=slot, message=decided.message)


def skip_today(rank, world, say):
    today(rank, world, say, skip=True)


def extra_today(rank, world, say):
    today(rank, world, say, skip=False)


def with_esperd(rank, world, say, skip):
    def fatal(error):
        tell(say, "fatal", error)
        if rank != ODD:
            os._exit(13)  # out of the collective, which rank 1 will not join

    ep = esperd.connect(slots=SLOTS, on_fatal=fatal)
    join(rank, world, timeout_s=50)
    try:
        for slot in SLOTS:
            ep.germinate(slot, "conv")
            ep.advance(slot)
        for epoch in range(4):
            gradients = torch.ones(8)
            dist.all_reduce(gradients)
            for slot in gates_of(rank, epoch, skip):
                say("call", epoch=epoch, slot=slot)
                ep.sync_gate(slot, GateResult(GateLevel.G2, False))
            say("call", epoch=epoch, slot="")
            ep.step_epoch(epoch)
    except esperd.EsperdError as error:
        tell(say, "raised", error)
        time.sleep(STAY_S if rank == ODD else 0)


def skip_with_esperd(rank, world, say):
    with_esperd(rank, world, say, skip=True)


def extra_with_esperd(rank, world, say):
    with_esperd(rank, world, say, skip=False)
