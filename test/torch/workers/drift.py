"""A seed that is added after DDP wrapped the model."""

import hashlib

from torch import nn

from flat_allreduce import FlatAllReduce
from loops import Classifier, shard
from ranks import join


def digest(module):
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in module.parameters())).hexdigest()


def train(rank, world, say, reduce):
    """Train host and seed together on each rank's own images."""
    join(rank, world, timeout_s=10)
    model, ((images, labels), _) = Classifier(), shard(rank, world)
    flat = FlatAllReduce(dict(model.seed.named_parameters())) if reduce else None
    for _ in range(10):
        model.host.zero_grad()
        flat.zero_grad() if flat else model.seed.zero_grad()
        nn.functional.cross_entropy(model.ddp(images) + model.seed(images), labels).backward()
        if flat:
            flat.all_reduce()
        model.optimizer.step()
    say("weights", host=digest(model.host), seed=digest(model.seed))
    return model, flat, images


def left_to_ddp(rank, world, say):
    train(rank, world, say, reduce=False)


def reduced(rank, world, say):
    model, flat, images = train(rank, world, say, reduce=True)
    model.optimizer.zero_grad(set_to_none=True)  # the default since torch 2
    model.seed(images).sum().backward()
    try:
        flat.all_reduce()
    except RuntimeError as error:
        say("moved", text=str(error))
    model.seed.append(nn.Linear(10, 10 + rank))
    try:
        FlatAllReduce(dict(model.seed.named_parameters()))
    except RuntimeError as error:
        say("unequal", text=str(error))


