"""The trainer's side of the checks: two ranks with torch and the Python client,
each beside an esperd of its own, on one device.

    trainer.py RANK SOCKET EXPECTED

EXPECTED: the first bytes of each parameter as the log makes them, as JSON. Lines
that begin with @ ask trainer_test.go for something, which answers with a line.
"""
import json
import os
import sys
import time

import torch
import torch.distributed as dist
from torch import nn

import esperd
from esperd import _fingerprint

RANK, SOCKET, EXPECTED = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
WORLD, WIDTH, HEIGHT = 2, 256, 384

if os.environ.get("ESPERD_STUB"):  # a libcuda without a GPU, for torch without CUDA
    from tests.stubgpu import StubGpu

    StubGpu(os.environ["ESPERD_STUB"]).play()
CUDA = torch.cuda.is_available() and os.environ["ESPERD_DEVICE"] != "host"
DEVICE = torch.device("cuda", int(os.environ["ESPERD_DEVICE"].partition(":")[2] or 0)) if CUDA else torch.device("cpu")


class Block(nn.Module):
    """What grows in slot a: two element types, of which one learns."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(WIDTH, HEIGHT))
        self.bias = nn.Parameter(torch.zeros(HEIGHT))
        self.sixteen = nn.Parameter(torch.zeros(1000, 33, dtype=torch.float16))

    def forward(self, x):
        return x @ self.weight + self.bias


class Brain(nn.Module):
    """What grows in slot b: bfloat16, and larger than a chunk."""

    def __init__(self):
        super().__init__()
        self.brain = nn.Parameter(torch.zeros(5_234_567, dtype=torch.bfloat16))


def say(*words):
    if RANK == 0:
        print(*words, flush=True)


def ask(what):
    print("@" + what, flush=True)
    sys.stdin.readline()


def wait():
    if CUDA:
        torch.cuda.synchronize(DEVICE)


class Graph:
    """Something that is computed again and again: on a GPU a CUDA graph."""

    def __init__(self, f):
        self.again = f
        if CUDA:
            side = torch.cuda.Stream(DEVICE)
            side.wait_stream(torch.cuda.current_stream(DEVICE))
            with torch.cuda.stream(side):
                f()
            torch.cuda.current_stream(DEVICE).wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                f()
            self.again = graph.replay


class Checks:
    def __init__(self):
        block = esperd.Blueprint("block", (esperd.Tensor("weight", (WIDTH, HEIGHT), uniform=0.1), esperd.Tensor("bias", (HEIGHT,), constant=0.5),
                                           esperd.Tensor("sixteen", (1000, 33), "float16", uniform=0.3)))
        brain = esperd.Blueprint("brain", (esperd.Tensor("brain", (5_234_567,), "bfloat16", uniform=2.0, master=True),))
        config = esperd.SlotConfig(blueprints=(block, brain))
        self.ep = esperd.connect(SOCKET, rank=RANK, world_size=WORLD, slots={"a": config, "b": config}, residency=True, arena=True,
                                 gates=esperd.Gates(permissive=True, min_blending_epochs=0))
        self.epoch = -1
        self.x = torch.ones(8, WIDTH, device=DEVICE)
        self.own = torch.arange(300_000, dtype=torch.float32, device=DEVICE)[1:]  # where the kernel cannot read it, but for a copy

    def step(self):
        self.epoch += 1
        return self.ep.step_epoch(self.epoch)

    def same(self):
        """Close an epoch, compare, and close another, which knows what came of it."""
        self.step()
        self.ep.attest({"own": self.own})
        return self.step()

    def grow(self, slot, blueprint, module):
        self.ep.germinate(slot, blueprint)
        self.step()
        module = module.to(DEVICE)
        self.ep.attach(module, slot=slot)
        for name, p in module.named_parameters():
            first = bytes(p.detach().reshape(-1).view(torch.uint8)[:64].tolist()).hex()
            assert first == EXPECTED[name], "the log's initial bits of %s: expected %s, got %s" % (name, EXPECTED[name], first)
        return module

    def run(self):
        seed = self.seed = self.grow("a", "block", Block())
        assert seed.weight.is_cuda == CUDA
        while self.ep.advance("a").stage != "TRAINING":
            time.sleep(0.02)
            self.step()
        assert self.same().differs == ()
        say("initial bits are the log's, on both ranks")
        self.steps_in_place()
        self.alpha_in_a_graph()
        self.planted_bits()
        self.killed()
        self.given_back()
        if RANK == 0 and (CUDA or os.environ.get("ESPERD_STUB")):
            figures(*(1 << 30, 50) if CUDA else (1 << 20, 2))
        dist.barrier()
        self.ep.close()
        assert torch.isfinite(self.seed.weight).all(), "what was the seed's is the module's, and readable"

    def steps_in_place(self):
        seed, ep = self.seed, self.ep
        before = [p.detach().clone() for p in seed.parameters()]
        self.optimizer = torch.optim.SGD(seed.parameters(), lr=0.01, momentum=0.9)
        address = [(p.data_ptr(), p.grad.data_ptr()) for p in seed.parameters()]
        for i in range(3):
            self.optimizer.zero_grad(set_to_none=i == 1)
            (seed(self.x * (1 + RANK + i)).pow(2).mean()).backward()
            ep.reduce()
            self.optimizer.step()
        assert self.same().differs == (), "the gradients were averaged over the ranks"
        assert address == [(p.data_ptr(), p.grad.data_ptr()) for p in seed.parameters()], "nothing moved"
        changed = [n for (n, p), old in zip(seed.named_parameters(), before) if not torch.equal(p, old)]
        assert changed == ["weight", "bias"], changed
        say("3 steps in place: %s changed, nothing else, and the ranks hold the same" % changed)

    def alpha_in_a_graph(self):
        alpha, out = self.ep.alpha("a"), torch.zeros(HEIGHT, device=DEVICE)
        graph = Graph(lambda: out.copy_(alpha * self.seed(self.x)[0].detach()))
        self.ep.observe("a", accuracy=50.0, gradient_health=0.9)
        assert self.ep.advance("a").stage == "BLENDING"
        graph.again()
        assert out.abs().sum().item() == 0
        for grown in (False, True):  # memory that comes in the graph's lifetime does not touch it
            if grown:
                self.brain = self.grow("b", "brain", Brain())
            start = time.perf_counter()
            f = self.step()
            took = time.perf_counter() - start
            graph.again()
            want = f.slots["a"].alpha * self.seed(self.x)[0].detach()
            assert f.slots["a"].alpha > 0 and torch.allclose(out, want, rtol=1e-5), (f.slots["a"].alpha, out[:4], want[:4])
            say("alpha %.3f: seen by the same %s %.0f us after asking for the step" % (f.slots["a"].alpha, "graph" if CUDA else "function", took * 1e6))

    def planted_bits(self):
        def flip():
            with torch.no_grad():
                self.own.view(torch.int32)[222_222] ^= 1
                self.seed.weight.view(torch.int32)[1, 1] ^= 1

        assert self.same().differs == ()
        self.step()
        if CUDA:  # behind work on the stream on which it is attested, and nobody waits for it
            with torch.cuda.stream(torch.cuda.Stream(DEVICE)):
                busy = torch.ones(4096, 4096, device=DEVICE)
                for _ in range(50):
                    busy = busy @ busy * 0
                if RANK == 1:
                    flip()
                self.ep.attest({"own": self.own})
        else:
            if RANK == 1:
                flip()
            self.ep.attest({"own": self.own})
        found = [(d.ranks, d.tensors) for d in self.step().differs]
        assert found == [((1,), ("a/weight", "own"))], found
        if RANK == 1:
            flip()
        assert self.same().differs == ()
        say("one bit in the arena and one beside it, planted on rank 1: both are named")

    def killed(self):
        seed, address = self.seed, self.seed.weight.data_ptr()
        wait()
        kept = [p.detach().clone() for p in seed.parameters()]
        if RANK == 1:
            ask("kill")
            seed(self.x).sum().backward()
            self.optimizer.step()
            assert not torch.equal(kept[0], seed.weight) and bool(torch.isfinite(seed.weight).all())
            with torch.no_grad():
                for p, k in zip(seed.parameters(), kept):
                    p.copy_(k)
            wait()
            ask("start")
        f = self.step()
        assert f.lost == () and f.moved == (RANK == 1), (f.lost, f.moved)
        assert (seed.weight.data_ptr() != address) == f.moved
        assert all(torch.equal(p, k) for p, k in zip(seed.parameters(), kept))
        alpha = self.ep.alpha("a").item()
        assert abs(alpha - f.slots["a"].alpha) < 1e-6 and alpha > 0, alpha
        assert self.same().differs == ()
        say("esperd was killed on rank 1: training goes on in its memory, and in that of the next one")

    def given_back(self):
        free = torch.cuda.mem_get_info(DEVICE)[0] if CUDA else 0
        self.ep.prune("b")
        self.step()
        assert self.brain.brain.abs().sum().item() == 0
        del self.brain
        if CUDA:
            torch.cuda.empty_cache()
            say("pruning %d MiB gives %d MiB back to this GPU" % (6 * 5_234_567 >> 20, torch.cuda.mem_get_info(DEVICE)[0] - free >> 20))
        assert self.same().differs == ()


def figures(n, rounds):
    """What torch takes for n bytes, beside the figures of gpu_test.go, and what a
    fingerprint takes in the trainer."""
    a = torch.empty(n // 4, device=DEVICE)
    b = torch.empty_like(a)
    alpha = torch.zeros(1, device=DEVICE)
    for name, count, f in (("copy (read plus written)", 2 * n, lambda: b.copy_(a)), ("uniform_", n, lambda: a.uniform_(-1, 1)), ("sum", n, lambda: a.sum()),
                           ("zero_", n, lambda: a.zero_()), ("esperd's fingerprint on torch's stream", n, lambda: _fingerprint.fingerprints([a], DEVICE.index or 0))):
        f()
        wait()
        start = time.perf_counter()
        for _ in range(rounds):
            f()
        wait()
        print("torch, %d MiB: %8.1f GB/s: %s" % (n >> 20, count * rounds / (time.perf_counter() - start) / 1e9, name), flush=True)
    start, rounds = time.perf_counter(), 40 * rounds
    for _ in range(rounds):
        alpha.fill_(0.5)
        wait()
    print("torch: an in-place fill of one alpha, until the GPU has finished: %.1f us" % ((time.perf_counter() - start) / rounds * 1e6), flush=True)


if __name__ == "__main__":
    if CUDA:
        torch.cuda.set_device(DEVICE)
    dist.init_process_group("gloo", rank=RANK, world_size=WORLD)
    Checks().run()
