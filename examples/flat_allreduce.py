"""Gradients of parameters that DDP does not know.

DistributedDataParallel averages the gradients of the parameters that its module
had when it was wrapped. Those of a module that is added later stay each rank's
own: no error, and the ranks' weights drift apart. This averages them, in one
all-reduce for all.
"""

from __future__ import annotations

import hashlib
from typing import Dict, List, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn


class FlatAllReduce:
    """One buffer in which the gradients of a set of parameters live.

    Each parameter's ``grad`` is a part of the buffer, so that there is nothing to
    copy. A gradient that has been moved elsewhere, as ``zero_grad(set_to_none=
    True)`` does (the default since torch 2), would be left out silently: it is
    an error here.

    The process group has to be up, and every rank has to hold the same
    parameters; where they do not, the constructor raises on all ranks.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = dict(parameters)
        _agree(self._parameters)
        total = sum(p.numel() for p in self._parameters.values())
        first = next(iter(self._parameters.values()), None)
        self._buffer = torch.zeros(total, dtype=None if first is None else first.dtype, device=None if first is None else first.device)
        self._places: Dict[str, Tensor] = {}
        offset = 0
        for name, p in self._parameters.items():
            self._places[name] = self._buffer[offset : offset + p.numel()].view_as(p)
            offset += p.numel()
            p.grad = self._places[name]

    def zero_grad(self) -> None:
        """Zero the gradients where they are: instead of the optimizer's."""
        self._buffer.zero_()

    def all_reduce(self) -> None:
        """Average the gradients over all ranks. Call it between backward and the
        optimizer's step. RuntimeError: some are not where they should be."""
        moved = self._moved()
        if moved:
            raise RuntimeError(
                f"the gradients of {', '.join(moved[:8])}{' and more' if len(moved) > 8 else ''} are not in the buffer that is reduced: "
                "expected them where FlatAllReduce put them; zero them by its zero_grad(), not by zero_grad(set_to_none=True), "
                "and make a new FlatAllReduce after .to(), .half() or load_state_dict(assign=True)"
            )
        if self._parameters:
            dist.all_reduce(self._buffer)
            self._buffer /= dist.get_world_size()

    def _moved(self) -> List[str]:
        def there(name: str, p: nn.Parameter) -> bool:
            place, grad = self._places[name], p.grad
            return grad is not None and grad.data_ptr() == place.data_ptr() and grad.stride() == place.stride()

        return [name for name, p in self._parameters.items() if not there(name, p)]


def _agree(parameters: Mapping[str, nn.Parameter]) -> None:
    """Compare names, shapes and types on all ranks, before a reduction adds up
    what does not belong together."""
    layout = [(name, tuple(p.shape), str(p.dtype)) for name, p in parameters.items()]
    digest = int.from_bytes(hashlib.sha256(repr(layout).encode()).digest()[:7], "big")
    both = torch.tensor([digest, -digest], dtype=torch.int64)
    dist.all_reduce(both, op=dist.ReduceOp.MAX)
    if both[0] != -both[1]:
        raise RuntimeError(f"the ranks do not hold the same parameters: expected the same everywhere, rank {dist.get_rank()} has {[name for name, *_ in layout]}")
