#!/usr/bin/env python3
"""A small network that grows while several ranks train it, with esperd.

    python examples/ddp_digits.py --ranks 4

starts 4 ranks on this machine, each with its esperd. Under a launcher, which
says who a rank is, the same file is one rank:

    torchrun --nproc_per_node 4 --no_python esperd exec -- python examples/ddp_digits.py

Every rank trains on its own shard and judges by its own images, so the ranks'
gates do not always agree. Rank 0's decision is in the log, and every rank's
network grows by it. At the end the ranks compare stages and weights.

With --mode keyed every rank asks for each decision, and is told whether its own
gate would have agreed. With --mode follow rank 0 alone asks, and the others only
apply the changes.

With --checkpoint FILE rank 0 stores weights and lifecycle after each epoch, and
a job that was killed goes on from there, with as many ranks as there are then,
whatever of its log is left. With --scripted what the gates see depends on the
epoch alone, so that such a job decides what one decides that was never killed.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping, Optional

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "python"))  # for those who have not installed it

import esperd  # noqa: E402
from flat_allreduce import FlatAllReduce  # noqa: E402
from growing_net import GrowingSlot, Host, Shard, accuracy  # noqa: E402

BATCH = 32
PLAN = {"r0c0": ("conv", 1), "r0c1": ("conv", 3), "r0c2": ("idle", 5)}  # slot: blueprint, epoch in which it germinates
GATES = esperd.Gates(min_training_improvement=2.0, min_blending_epochs=2, min_seed_gradient_ratio=0.01)
# Of the last slot all gates are open but the one that asks what the seed contributes.
OPEN = esperd.Gates(min_training_improvement=-100, min_blending_epochs=2, min_seed_gradient_ratio=0)


def main() -> int:
    options = argparse.ArgumentParser(description="Grow a network on several ranks.")
    options.add_argument("--ranks", type=int, default=4, help="ranks to start, where no launcher does")
    options.add_argument("--epochs", type=int, default=20)
    options.add_argument("--mode", choices=("keyed", "follow"), default="keyed", help="who asks for decisions: every rank, or rank 0 alone")
    options.add_argument("--checkpoint", metavar="FILE", help="store weights and lifecycle there after each epoch, and go on from them if they are there")
    options.add_argument("--scripted", action="store_true", help="observe what the epoch alone says, instead of what was measured")
    options.add_argument("--data-dir", help="for the logs, which replay the run; default: a temporary one")
    options.add_argument("--json", action="store_true", help="end with a JSON object")
    args = options.parse_args()
    if "RANK" in os.environ:
        return train(args)
    return start_ranks(args)


# The training, on one rank.


class Rank:
    """One rank's model, optimizer and place in the log."""

    def __init__(self, ep: esperd.Client, scripted: bool) -> None:
        torch.manual_seed(0)
        self.ep, self.scripted = ep, scripted
        self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()) if torch.cuda.is_available() else torch.device("cpu")
        self.host = Host().to(self.device)
        self.ddp = DistributedDataParallel(self.host)  # knows the host's parameters, and no seed's
        self.host_parameters = list(self.host.parameters())
        self.optimizer = torch.optim.Adam(self.host_parameters, lr=2e-3)
        self.shard = Shard(ep.rank, ep.world_size)
        self.shard.to(self.device)
        self.grown: List[str] = []  # slots with seeds, in the optimizer's order
        self.decisions: List[esperd.Decision] = []
        self.gradients: Dict[str, Dict[str, Any]] = {}  # readings, by slot
        self.place_gradients()

    def seeds(self) -> Dict[str, nn.Module]:
        return {slot.name: slot.seed for slot in self.host.slots if slot.seed is not None}

    def place_gradients(self) -> None:
        """Have the seeds' gradients averaged, which DDP does not do."""
        trained = {f"{slot}.{n}": p for slot, seed in self.seeds().items() for n, p in seed.named_parameters() if p.requires_grad}
        self.flat = FlatAllReduce(trained)

    def epoch(self, epoch: int) -> float:
        """Train on the shard once, and return the mean loss."""
        losses = []
        for images, labels in self.shard.batches(BATCH, epoch):
            for p in self.host_parameters:
                p.grad = None
            self.flat.zero_grad()
            loss = nn.functional.cross_entropy(self.ddp(images), labels)
            loss.backward()
            self.measure_gradients()
            self.flat.all_reduce()
            self.optimizer.step()
            losses.append(loss.item())
        return sum(losses) / len(losses)

    def measure_gradients(self) -> None:
        """Measure the seeds' gradients, which are this rank's own until they are
        averaged."""
        host = norm(self.host_parameters)
        for slot, seed in self.seeds().items():
            n = norm(seed.parameters())
            self.gradients[slot] = {"gradient_norm": n, "gradient_ratio": n / max(host, 1e-12), "has_exploding": n > 1e3}

    def observe(self, epoch: int) -> float:
        """Judge the network, with and without each seed, on this rank's images."""
        whole = accuracy(self.host, self.shard)
        for name in self.seeds():
            if self.scripted:
                contribution = 0.0 if PLAN[name][0] == "idle" else 5.0
                self.ep.observe(name, accuracy=100 - 60 / (1 + epoch / 4), gradient_ratio=0.5, contribution=contribution)
                continue
            slot = self.host.slot(name)
            readings = {"accuracy": whole, **self.gradients.get(name, {})}
            if slot.alpha > 0:
                alpha, slot.alpha = slot.alpha, 0.0
                readings["contribution"] = whole - accuracy(self.host, self.shard)
                slot.alpha = alpha
            self.ep.observe(name, **readings)
        return whole

    def policy(self, epoch: int, slots: Mapping[str, esperd.Slot]) -> List[esperd.Decision]:
        """Ask for what should happen next. It looks at nothing but the log, so
        every rank that asks asks for the same."""
        decisions = []
        for name, (blueprint, begin) in PLAN.items():
            slot = slots[name]
            ramps_down = slot.controller is not None and slot.controller.mode == "DOWN"
            if slot.stage == "DORMANT" and epoch >= begin and not slot.germinations:
                self.ep.germinate(name, blueprint, tempo=3)
            elif slot.stage in ("GERMINATED", "TRAINING", "BLENDING") and not ramps_down:
                decisions.append(self.ep.advance(name))
            elif slot.stage == "HOLDING":
                decisions.append(self.ep.advance(name, "FOSSILIZED"))
                if not decisions[-1] and slot.metrics.epochs_in_stage >= 2:
                    self.ep.schedule_prune(name, ticks=3, curve="COSINE", reason="contributes nothing")
        self.decisions += decisions
        return decisions

    def apply(self, change: esperd.Change) -> None:
        """Do to the network what became of a slot in the log."""
        slot = self.host.slot(change.slot)
        if change.ends:
            self.forget(slot)
        if change.begins:
            self.grow(slot, change.blueprint, change.seed)
        self.blend(slot, change.stage, change.alpha, change.frozen)

    def grow(self, slot: GrowingSlot, blueprint: str, count: int) -> None:
        seed = slot.germinate(blueprint, count).to(self.device)
        self.optimizer.add_param_group({"params": list(seed.parameters())})
        self.grown.append(slot.name)

    def blend(self, slot: GrowingSlot, stage: str, alpha: float, frozen: bool) -> None:
        slot.stage, slot.alpha = stage, alpha
        if slot.seed is not None:
            for p in slot.seed.parameters():
                p.requires_grad_(not frozen)
                p.grad = None

    def save(self, path: Path, epoch: int) -> None:
        """Store everything that the next start needs, or nothing."""
        state = {"epoch": epoch, "host": self.host.state_dict(), "grown": self.grown, "optimizer": self.optimizer.state_dict(), "esperd": self.ep.checkpoint()}
        whole = path.with_suffix(".new")
        torch.save(state, whole)
        os.replace(whole, path)

    def load(self, state: Mapping[str, Any]) -> None:
        """Make the network of a checkpoint. Its slots are the log's, which has
        gone back to the checkpoint's mark."""
        slots = self.ep.slots()
        for name in state["grown"]:
            self.grow(self.host.slot(name), slots[name].blueprint, slots[name].seed)
        self.host.load_state_dict(state["host"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name, slot in slots.items():
            self.blend(self.host.slot(name), slot.stage, slot.alpha, slot.frozen)
        self.place_gradients()

    def forget(self, slot: GrowingSlot) -> None:
        """Remove a seed, and what the optimizer knows of it."""
        gone = set(slot.seed.parameters())
        self.optimizer.param_groups = [g for g in self.optimizer.param_groups if not gone.intersection(g["params"])]
        for p in gone:
            self.optimizer.state.pop(p, None)
        slot.seed = None
        self.grown.remove(slot.name)

    def end(self, asked: bool) -> Dict[str, Any]:
        """Return what the ranks compare at the end. Who never asked cannot know
        how often it would have decided otherwise."""
        disagreed = sum(not d.agreed for d in self.decisions) if asked else None
        slots = self.ep.slots()
        return {"stages": {name: slot.stage for name, slot in slots.items()}, "alphas": {name: slot.alpha for name, slot in slots.items()},
                "lifecycle": self.ep.checkpoint().digest, "weights": self.host.digest(), "disagreed": disagreed}


def norm(parameters: Iterable[nn.Parameter]) -> float:
    grads = [p.grad.flatten() for p in parameters if p.grad is not None]
    return torch.cat(grads).norm().item() if grads else 0.0


def train(args: argparse.Namespace) -> int:
    torch.set_num_threads(1)
    with ExitStack() as stack:
        if "ESPERD_SOCKET" not in os.environ:
            directory = args.data_dir or stack.enter_context(tempfile.TemporaryDirectory(prefix="esperd-"))
            flags = ["--data-dir", os.path.join(directory, f"rank{os.environ['RANK']}"), "--log-level", "warn"]
            stack.enter_context(esperd.launch(*flags, binary=esperd_binary()))
        slots = {"r0c0": None, "r0c1": None, "r0c2": esperd.SlotConfig(gates=OPEN, blueprints=("idle",))}
        path = Path(args.checkpoint) if args.checkpoint else None
        state = torch.load(path, map_location="cpu") if path and path.exists() else None
        mark = state["esperd"] if state else None
        ep = stack.enter_context(esperd.connect(slots=slots, gates=GATES, mode=args.mode, resume=mark, on_fatal=stop))
        if state is None and ep.session.epoch >= 0:
            ep.reset()  # the log outlives the trainer: this network has none of the seeds that are in it
        dist.init_process_group("gloo")
        stack.callback(dist.destroy_process_group)
        rank, asks = Rank(ep, args.scripted), args.mode == "keyed" or ep.rank == 0
        if state is not None:
            rank.load(state)
        elif path and ep.rank == 0:
            rank.save(path, -1)  # a job that is killed before its first epoch ends has a place to go back to
        for epoch in range(state["epoch"] + 1 if state else 0, args.epochs):
            loss, own = rank.epoch(epoch), rank.observe(epoch)
            decisions = rank.policy(epoch, ep.slots()) if asks else []
            fence = ep.step_epoch(epoch)
            for change in fence.changes:
                rank.apply(change)
            if fence.changes:
                rank.place_gradients()
            if path and ep.rank == 0:
                rank.save(path, epoch)
            told = gather({"accuracy": own, "agreed": [d.agreed for d in decisions]})
            if ep.rank == 0:
                report(epoch, loss, told, decisions, fence)
        ranks = gather(rank.end(asks))
        if ep.rank == 0:
            summary(ep.slots(), ranks, len(rank.decisions), args.json)
        return 0 if same(ranks) else 1


def stop(error: esperd.EsperdError) -> None:
    """End this rank at once: it may be waiting in a collective for a rank that
    will not come."""
    print(error, file=sys.stderr, flush=True)
    os._exit(13)


def gather(mine: Any) -> List[Any]:
    out: List[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(out, mine)
    return out


def same(ranks: List[Dict[str, Any]]) -> bool:
    return all((r["stages"], r["lifecycle"], r["weights"]) == (ranks[0]["stages"], ranks[0]["lifecycle"], ranks[0]["weights"]) for r in ranks)


# What it prints.


def report(epoch: int, loss: float, told: List[Any], decisions: List[esperd.Decision], fence: esperd.Fence) -> None:
    print(f"epoch {epoch:2}  loss {loss:.3f}  accuracy of each rank " + " ".join(f"{t['accuracy']:5.1f}" for t in told), flush=True)
    for i, d in enumerate(decisions):
        why = ", ".join(d.checks_failed) or d.message or ", ".join(d.checks_passed)
        others = ", ".join(f"rank {r}" for r, t in enumerate(told) if t["agreed"] and not t["agreed"][i])
        note = f"; {others} would have said {'no' if d.passed else 'yes'}" if others else ""
        print(f"          {d.slot}#{d.seed} {d.gate} {'passed' if d.passed else 'failed'}: {why}{note}")
    for c in fence.changes:
        stage = c.stage if c.stage == c.stage_from else f"{c.stage_from} -> {c.stage}"
        print(f"          {c.slot}#{c.seed} {stage}, alpha {c.alpha:.3f}{', frozen' if c.frozen else ''}")


def summary(slots: Mapping[str, esperd.Slot], ranks: List[Dict[str, Any]], decisions: int, as_json: bool) -> None:
    print()
    for name, slot in slots.items():
        print(f"{name}  {slot.stage:10}  {slot.blueprint or '-':5}  seeds so far: {slot.germinations}")
    others = ", ".join(f"rank {r}: {t['disagreed']}" for r, t in enumerate(ranks) if r and t["disagreed"] is not None)
    print(f"{decisions} decisions" + (f"; verdicts that were not rank 0's: {others}" if others else ""))
    for r, t in enumerate(ranks):
        print(f"rank {r}  weights {t['weights'][:12]}")
    print("stages and weights are the same on every rank" if same(ranks) else "THE RANKS DIFFER")
    if as_json:
        print(json.dumps({"same": same(ranks), "decisions": decisions, "ranks": ranks}))


# Starting the ranks, where no launcher does.


def esperd_binary() -> Optional[str]:
    built = ROOT / "bin" / "esperd"  # by make build
    return str(built) if built.exists() and not os.environ.get("ESPERD_BINARY") else None


def start_ranks(args: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="esperd-") as directory:
        port = free_port(args.ranks, args.data_dir or directory)
        env = dict(os.environ, WORLD_SIZE=str(args.ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        command = [sys.executable, *sys.argv, *([] if args.data_dir else ["--data-dir", directory])]
        ranks = [subprocess.Popen(command, env=dict(env, RANK=str(r), LOCAL_RANK=str(r))) for r in range(args.ranks)]
        try:
            while any(r.poll() is None for r in ranks):
                if any(r.poll() for r in ranks):
                    return 1  # one has failed; the others would wait for it
                time.sleep(0.05)
            return max(r.returncode for r in ranks)
        finally:
            for r in ranks:
                r.terminate()
            for r in ranks:
                r.wait()


def free_port(ranks: int, directory: str) -> int:
    """Find a rendezvous port whose esperd ports, 100 above, are free, too. For a
    directory it is the same again: there the esperds look for each other."""
    for port in range(20000 + zlib.crc32(os.path.abspath(directory).encode()) % 8000, 60000):
        try:
            for p in (port, *range(port + 100, port + 100 + ranks)):
                with socket.socket() as s:
                    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    s.bind(("127.0.0.1", p))
            return port
        except OSError:
            continue
    raise OSError("there is no free port")


if __name__ == "__main__":
    sys.exit(main())
