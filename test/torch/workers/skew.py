"""Ranks that reach the same call at times far apart."""

import dataclasses
import hashlib
import json
import os
import random
import time

import esperd
from esperd._http import Connection

SLOTS = [f"r0c{i}" for i in range(4)]
GATES = {"min_training_improvement": -100, "min_blending_epochs": 0, "min_seed_gradient_ratio": -1}
OPERATIONS = ["germinate"] * 4 + ["advance"] * 8 + ["fossilize", "prune", "schedule_prune", "alpha_target", "fence"] + ["step"] * 4
POLL_EVERY = 20  # calls


def with_esperd(rank, world, say):
    calls, seed = int(os.environ["CALLS"]), os.environ["SEED"]
    script, own = random.Random(f"script {seed}"), random.Random(f"rank {rank} {seed}")
    head = Connection(os.environ["ESPERD_SOCKET"].replace("{rank}", str(rank)), 10)
    with esperd.connect(slots=SLOTS, gates=GATES) as ep:
        time.sleep(rank)  # seconds apart from the beginning
        answers, ahead = [], 0
        for k in range(calls):
            time.sleep(own.random() * own.choices([0.002, 0.02, 0.3], [90, 9, 1])[0])
            ep.observe(script.choice(SLOTS), accuracy=100 * own.random(), gradient_ratio=own.random())  # another one on every rank
            answers.append(digest(call(ep, script, k)))
            if k % POLL_EVERY == 0:
                here = ep.slots()
                answers[-1] += digest(here)
                ahead += {s["name"]: esperd.Slot.of(s) for s in json.loads(head.request("GET", "/v1/slots")[1])["slots"]} != here
        head.close()
    say("answers", digests=answers, head_was_another=ahead, polls=len(range(0, calls, POLL_EVERY)))


def call(ep, script, k):
    """Make the script's next call; the answer, as far as it is every rank's."""
    operation, slot = script.choice(OPERATIONS), script.choice(SLOTS)
    try:
        if operation == "step":
            return ep.step_epoch(k)
        if operation == "fence":
            return ep.fence(k)
        if operation == "germinate":
            return ep.germinate(slot, "conv", tempo=script.randint(1, 3))
        if operation == "prune":
            return ep.prune(slot, "why not")
        if operation == "schedule_prune":
            return ep.schedule_prune(slot, ticks=script.randint(0, 3))
        if operation == "alpha_target":
            return ep.alpha_target(slot, target=script.random(), ticks=2)
        decision = ep.advance(slot, script.choice(["TRAINING", "BLENDING", "HOLDING"]) if operation == "advance" else "FOSSILIZED")
        return dataclasses.replace(decision, local=None, agreed=True)
    except esperd.Refused as refused:
        return refused.index, str(refused)


def digest(answer):
    return hashlib.sha256(repr((answer, getattr(answer, "slots", None))).encode()).hexdigest()[:8]
