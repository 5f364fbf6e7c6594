"""A small network for handwritten digits, with slots in which seeds may grow."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path
from typing import Callable, Dict, Iterator, Optional, Tuple

import torch
from torch import Tensor, nn

SLOTS = ("r0c0", "r0c1", "r0c2")
_CHANNELS = (8, 12, 16)
_DATA = Path(__file__).parent / "data" / "digits.csv.gz"


class Conv(nn.Module):
    """A seed that may learn something: two convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 2 * channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(2 * channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Idle(nn.Module):
    """A seed that contributes nothing, which the last gate has to find out."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return 0 * self.gain * x


BLUEPRINTS: Dict[str, Callable[[int], nn.Module]] = {"conv": Conv, "idle": Idle}


class GrowingSlot(nn.Module):
    """A place behind a block of the host, empty or with a seed."""

    def __init__(self, name: str, channels: int) -> None:
        super().__init__()
        self.name, self.channels = name, channels
        self.stage, self.alpha = "DORMANT", 0.0
        self.seed: Optional[nn.Module] = None

    def germinate(self, blueprint: str, count: int) -> nn.Module:
        """Put a seed in. Every rank makes the same one without being told: its
        random numbers begin with what names it."""
        begin = hashlib.sha256(f"{self.name}#{count} {blueprint}".encode()).digest()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int.from_bytes(begin[:7], "big"))
            self.seed = BLUEPRINTS[blueprint](self.channels)
        return self.seed

    def forward(self, x: Tensor) -> Tensor:
        if self.seed is None or self.stage == "GERMINATED":
            return x
        if self.stage == "TRAINING":  # the host does not hear the seed yet, but the seed learns what would help
            y = self.seed(x.detach())
            return x + (y - y.detach())
        return x + self.alpha * self.seed(x)


class Host(nn.Module):
    """Three convolutional blocks, a slot behind each, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        blocks, slots, channels = [], [], 1
        for name, out in zip(SLOTS, _CHANNELS):
            blocks.append(nn.Sequential(nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU()))
            slots.append(GrowingSlot(name, out))
            channels = out
        self.blocks, self.slots = nn.ModuleList(blocks), nn.ModuleList(slots)
        self.pool, self.classify = nn.AdaptiveAvgPool2d(2), nn.Linear(4 * channels, 10)

    def slot(self, name: str) -> GrowingSlot:
        return self.slots[SLOTS.index(name)]  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        for block, slot in zip(self.blocks, self.slots):
            x = slot(block(x))
        return self.classify(self.pool(x).flatten(1))

    def digest(self) -> str:
        """Name all weights, so that ranks can compare them."""
        h = hashlib.sha256()
        for name, p in self.named_parameters():
            h.update(name.encode())
            h.update(p.detach().cpu().contiguous().numpy().tobytes())
        return h.hexdigest()


class Shard:
    """One rank's part of the data: images to train on, and images to judge by."""

    def __init__(self, rank: int, world: int, noise: float = 0.05) -> None:
        images, labels = load()
        g = torch.Generator().manual_seed(1)
        order = torch.randperm(len(labels), generator=g)
        wrong = torch.rand(len(labels), generator=g) < noise
        labels = torch.where(wrong, torch.randint(0, 10, labels.shape, generator=g), labels)
        train, judge = order[: len(order) * 3 // 4], order[len(order) * 3 // 4 :]
        per_rank = len(train) // world  # the same number of steps on every rank
        mine = train[rank * per_rank : (rank + 1) * per_rank]
        self.images, self.labels = images[mine], labels[mine]
        self.judge_images, self.judge_labels = images[judge[rank::world]], labels[judge[rank::world]]

    def to(self, device: torch.device) -> None:
        for name, value in vars(self).items():
            setattr(self, name, value.to(device))

    def batches(self, size: int, epoch: int) -> Iterator[Tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(epoch))
        for part in order.split(size):
            yield self.images[part], self.labels[part]


def load() -> Tuple[Tensor, Tensor]:
    """Return 1,797 images (1 x 8 x 8, from 0 to 1) and the digits on them."""
    with gzip.open(_DATA, "rt", encoding="ascii") as f:
        rows = torch.tensor([[float(v) for v in line.split(",")] for line in f])
    return rows[:, :64].reshape(-1, 1, 8, 8) / 16, rows[:, 64].long()


@torch.no_grad()
def accuracy(model: nn.Module, shard: Shard) -> float:
    """Return percent of the shard's judging images that are classified right."""
    model.eval()
    right = (model(shard.judge_images).argmax(1) == shard.judge_labels).float().mean().item()
    model.train()
    return 100 * right
