"""BUG-030: ranks judge by their own metrics, and their networks part."""

import torch.distributed as dist

import esperd
from loops import Classifier, improvement_gate, shard
from ranks import join

EPOCHS = 4


def local_verdicts(rank, world, say):
    join(rank, world, timeout_s=3)
    model, (train, judge) = Classifier(), shard(rank, world)
    stage, first = "TRAINING", None
    for epoch in range(EPOCHS):
        for _ in range(5):
            model.step(*train)
        now = model.accuracy(*judge)
        first = now if first is None else first
        if stage == "TRAINING" and improvement_gate(first, now, epoch + 1).passed:
            stage, model.alpha = "BLENDING", 1.0
        say("epoch", epoch=epoch, stage=stage, accuracy=now)
    say("weights", digest=model.digest())


def with_esperd(rank, world, say):
    join(rank, world, timeout_s=30)
    model, (train, judge) = Classifier(), shard(rank, world)
    with esperd.connect(slots=["r0c0"], gates={"min_blending_epochs": 2}) as ep:
        ep.germinate("r0c0", "mlp", tempo=2)
        ep.advance("r0c0")
        for epoch in range(EPOCHS):
            for _ in range(5):
                model.step(*train)
            now = model.accuracy(*judge)
            ep.observe("r0c0", accuracy=now, gradient_ratio=1.0)
            decision = ep.advance("r0c0")
            fence = ep.step_epoch(epoch)
            for change in fence.changes:
                model.alpha = change.alpha
            slot = fence.slots["r0c0"]
            say("epoch", epoch=epoch, stage=slot.stage, alpha=slot.alpha, accuracy=now, passed=decision.passed, agreed=decision.agreed)
        dist.barrier()
    say("weights", digest=model.digest())
