"""B2-DRL-05: loaders of unequal length, so that epochs do not end together."""

import torch
import torch.distributed as dist

import esperd
from loops import Classifier, shard
from ranks import join

BATCHES = (8, 10)  # of each rank's loader
STEPS = 40


def local_ticks(rank, world, say):
    """Every rank ticks its alpha when its own loader is exhausted."""
    join(rank, world, timeout_s=10)
    model, (train, _) = Classifier(), shard(rank, world)
    for step in range(STEPS):
        model.alpha = min(1.0, (1 + step // BATCHES[rank]) / 5)
        say("step", step=step, alpha=model.alpha)
        model.step(*train)
    say("weights", digest=model.digest())


def connect():
    ep = esperd.connect(slots=["r0c0"])
    ep.germinate("r0c0", "mlp", tempo=3, blend="linear")
    ep.advance("r0c0")
    ep.verdict("r0c0", gate="G2", passed=True)
    return ep


def with_esperd(rank, world, say):
    """The shortest loader says how long an epoch is, and the fence is the tick."""
    join(rank, world, timeout_s=30)
    model, (train, _) = Classifier(), shard(rank, world)
    length = torch.tensor(BATCHES[rank])
    dist.all_reduce(length, op=dist.ReduceOp.MIN)
    with connect() as ep:
        for step in range(STEPS):
            say("step", step=step, alpha=model.alpha)
            model.step(*train)
            if (step + 1) % length.item() == 0:
                fence = ep.step_epoch(step // length.item())
                model.alpha = fence.slots["r0c0"].alpha
                say("fence", epoch=fence.epoch, index=fence.index, alpha=model.alpha)
    say("weights", digest=model.digest())


def own_ends_with_esperd(rank, world, say):
    """Every rank fences when its own loader is exhausted: at other steps, but
    with the same alpha after the same epoch; all end after the same number of
    epochs, since a rank that has left is not waited for."""
    join(rank, world, timeout_s=30)
    epochs = STEPS // max(BATCHES)
    with connect() as ep:
        for step in range(STEPS):
            dist.all_reduce(torch.ones(8))
            if (step + 1) % BATCHES[rank] == 0 and step // BATCHES[rank] < epochs:
                fence = ep.step_epoch(step // BATCHES[rank])
                say("fence", epoch=fence.epoch, index=fence.index, alpha=fence.slots["r0c0"].alpha, step=step)
