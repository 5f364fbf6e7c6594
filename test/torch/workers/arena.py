"""Seeds in esperd's arena, on DDP: germinated, trained, blended, pruned, and the
slot used again."""

import copy
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import esperd

WIDTH = 16


def module():
    return nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU(), nn.Linear(8, WIDTH))


def blueprint():
    return esperd.Blueprint("mlp", tuple(esperd.Tensor(n, tuple(p.shape), uniform=0.25) for n, p in module().named_parameters()))


class Job:
    def __init__(self, rank, world):
        config = esperd.SlotConfig(blueprints=(blueprint(),))
        self.ep = esperd.connect(rank=rank, world_size=world, slots={"a": config, "b": config}, residency=True, arena=True,
                                 gates=esperd.Gates(permissive=True, min_blending_epochs=0))
        self.rank, self.world, self.epoch = rank, world, -1
        torch.manual_seed(0)
        self.host = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH))
        self.ddp = DistributedDataParallel(self.host, broadcast_buffers=False)
        self.data = torch.Generator().manual_seed(100 + rank)
        self.seed = None

    def step(self):
        """Close an epoch, and have what this rank holds compared."""
        self.epoch += 1
        f = self.ep.step_epoch(self.epoch)
        self.ep.attest({"host." + n: p for n, p in self.host.named_parameters()}, more=True)
        self.ep.attest({"host." + n: b for n, b in self.host.named_buffers()}, kind="local")
        return f

    def grow(self, slot):
        """Germinate, wait until all ranks have room, and bind a module."""
        self.ep.germinate(slot, "mlp")
        f = self.step()
        assert [c.op for c in f.plan if c.slot == slot] == ["reserve", "initialise"], f.plan
        self.seed = module()
        self.ep.attach(self.seed, slot=slot)
        while self.ep.advance(slot).stage != "TRAINING":
            time.sleep(0.02)
            assert not self.step().differs
        assert not self.step().differs
        return torch.cat([p.detach().flatten() for p in self.seed.parameters()])

    def train(self, slot, steps=3, compare=False):
        optimizer = torch.optim.SGD([*self.host.parameters(), *self.seed.parameters()], lr=0.05, momentum=0.9)
        alpha = self.ep.alpha(slot)
        for _ in range(steps):
            x = torch.randn(12, WIDTH, generator=self.data)
            other = DistributedDataParallel(copy.deepcopy(self.seed)) if compare else None
            optimizer.zero_grad(set_to_none=True)
            (self.ddp(x) + (alpha + 0.5) * self.seed(x)).pow(2).mean().backward()
            self.ep.reduce()
            if other:
                with self.ddp.no_sync():
                    (self.host(x).detach() + (alpha + 0.5) * other(x)).pow(2).mean().backward()
                for ours, theirs in zip(self.seed.parameters(), other.module.parameters()):
                    assert torch.allclose(ours.grad, theirs.grad, atol=1e-7, rtol=1e-5), "reduce is what DDP does"
            optimizer.step()
        return optimizer


def life(rank, world, say):
    dist.init_process_group("gloo", rank=rank, world_size=world)
    job = Job(rank, world)
    ep = job.ep
    first = job.grow("a")
    optimizer = job.train("a", compare=True)
    assert not torch.equal(first, torch.cat([p.detach().flatten() for p in job.seed.parameters()])), "it has learned"
    saved = copy.deepcopy(job.seed.state_dict())
    address = [p.data_ptr() for p in job.seed.parameters()]
    job.seed.load_state_dict(saved)
    assert address == [p.data_ptr() for p in job.seed.parameters()], "loading keeps the places"

    # Blending: alpha is in the table.
    ep.observe("a", accuracy=50.0 + rank, gradient_health=0.9)
    ep.advance("a")
    alpha = ep.alpha("a")
    assert alpha.item() == 0
    f = job.step()
    assert not f.differs and f.slots["a"].stage == "BLENDING" and f.slots["a"].alpha > 0, f
    assert abs(alpha.item() - f.slots["a"].alpha) < 1e-6
    job.train("a")

    # One bit on one rank is named at the next fence.
    assert not job.step().differs, "batch norm's own statistics raise no alarm"
    if rank == 2:
        with torch.no_grad():
            job.seed[0].weight.view(torch.int32)[1, 1] ^= 1
    job.epoch += 1
    ep.step_epoch(job.epoch)
    ep.attest()
    f = job.step()
    say("differs", ranks=list(f.differs[0].ranks), tensors=list(f.differs[0].tensors), count=len(f.differs))
    if rank == 2:
        with torch.no_grad():
            job.seed[0].weight.view(torch.int32)[1, 1] ^= 1

    # So is who writes into the table, which nobody has attested, and it is right again.
    if rank == 1:
        alpha.fill_(-7.0)
    job.epoch += 1
    f = ep.step_epoch(job.epoch)
    assert abs(alpha.item() - f.slots["a"].alpha) < 1e-6, alpha
    while not [d for d in f.differs if d.what == "active"]:
        time.sleep(0.02)
        job.epoch += 1
        f = ep.step_epoch(job.epoch)
    say("table", ranks=list(f.differs[-1].ranks), tensors=list(f.differs[-1].tensors), count=len(f.differs))

    # What moved comes back, what changed is refused.
    job.seed[0].weight.data = job.seed[0].weight.data.clone()
    assert not any("a/0.weight" in d.tensors for d in job.step().differs[1:])
    assert job.seed[0].weight.data_ptr() == address[0]
    try:
        ep.attach(nn.Linear(3, 3), slot="a")
        raise AssertionError("another module was bound")
    except esperd.ConfigMismatch as error:
        assert "in the log" in str(error), error

    # Pruned on all, and the slot used again: other bits, no moments left.
    ep.prune("a")
    f = job.step()
    assert {"zero", "release"} <= {c.op for c in f.plan}, f.plan
    old = list(job.seed.parameters())
    assert optimizer.state[old[0]], "there are moments"
    ep.forget(optimizer, "a")
    assert old[0] not in optimizer.state
    while job.step().slots["a"].stage != "DORMANT":
        pass
    second = job.grow("a")
    assert not torch.equal(first, second), "a seed of its own"
    job.train("a")
    assert not job.step().differs

    # One rank has no room: pruned on all, at the same fence.
    ep.germinate("b", "mlp")
    if rank == 3:
        ep.failed("b", "CUDA out of memory")
    while job.step().slots["b"].stage == "GERMINATED":
        time.sleep(0.02)
    say("pruned", epoch=job.epoch, digest=str(float(second.sum())))
    ep.close()
