"""Training loops as users have them: gate results, a broadcast for each, seeds
that are trained beside a DDP model."""

import dataclasses
import enum
import hashlib
from typing import List

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


class GateLevel(enum.IntEnum):
    G1 = 1
    G2 = 2


@dataclasses.dataclass
class GateResult:
    """As esper-lite has it."""

    gate: GateLevel
    passed: bool
    score: float = 0.0
    checks_passed: List[str] = dataclasses.field(default_factory=list)
    checks_failed: List[str] = dataclasses.field(default_factory=list)
    message: str = ""


def broadcast_gate(result: GateResult) -> GateResult:
    """The usual remedy: rank 0's result, by a collective for each gate."""
    payload = [dataclasses.asdict(result) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(payload, src=0)
    return GateResult(**payload[0])


def improvement_gate(first: float, now: float, epochs: int) -> GateResult:
    """G2 on this rank's own metrics: has it become better since the stage began?"""
    passed = now - first >= 0.5 and epochs >= 2
    return GateResult(GateLevel.G2, passed, message=f"Improvement: {now - first:.2f}%")


class Classifier:
    """A linear host in DDP, and a seed beside it that grows when it blends in."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.host = nn.Linear(64, 10)
        self.ddp = DistributedDataParallel(self.host)
        self.seed = nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))
        self.alpha = 0.0
        self.optimizer = torch.optim.SGD([*self.host.parameters(), *self.seed.parameters()], lr=0.1)

    def __call__(self, x):
        return self.ddp(x) + (self.alpha * self.seed(x) if self.alpha else 0)

    def step(self, images, labels) -> None:
        """One optimizer step, in which the gradients of what is active are
        averaged."""
        self.optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(self(images), labels).backward()
        if self.alpha:
            flat = torch.cat([p.grad.flatten() for p in self.seed.parameters()])
            dist.all_reduce(flat)
            flat /= dist.get_world_size()
            for p, grad in zip(self.seed.parameters(), flat.split([p.numel() for p in self.seed.parameters()])):
                p.grad.copy_(grad.view_as(p))
        self.optimizer.step()

    def accuracy(self, images, labels) -> float:
        with torch.no_grad():
            return 100 * (self(images).argmax(1) == labels).float().mean().item()

    def digest(self) -> str:
        h = hashlib.sha256()
        for p in [*self.host.parameters(), *self.seed.parameters()]:
            h.update(p.detach().numpy().tobytes())
        return h.hexdigest()


def shard(rank: int, world: int):
    """This rank's images and labels, flat: half to train on, half to judge by.
    Rank 1 has drawn the judging labels that say nothing."""
    from growing_net import load

    images, labels = load()
    images, labels = images.flatten(1)[rank::world][:400], labels[rank::world][:400]
    judge = labels[200:]
    if rank == 1:
        judge = judge[torch.randperm(len(judge), generator=torch.Generator().manual_seed(3))]
    return (images[:200], labels[:200]), (images[200:], judge)
