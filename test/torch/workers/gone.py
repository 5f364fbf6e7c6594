"""A rank dies in the middle of an epoch, without a word."""

import os
import signal
import time

import torch
import torch.distributed as dist

import esperd
from ranks import join, tell

DIES, EPOCH = 1, 2


def with_esperd(rank, world, say):
    def fatal(error):
        tell(say, "fatal", error)
        os._exit(13)

    ep = esperd.connect(slots=["r0c0"], mode="follow", on_fatal=fatal)
    join(rank, world, timeout_s=50)
    for epoch in range(4):
        if rank == DIES and epoch == EPOCH:
            say("dies")
            os.kill(os.getpid(), signal.SIGKILL)
        if epoch < EPOCH:
            dist.all_reduce(torch.ones(8))
        else:
            time.sleep(60)  # an evaluation, or a collective of a backend that does not notice
        if rank == 0 and epoch == 0:
            ep.germinate("r0c0", "conv")
        ep.step_epoch(epoch)
