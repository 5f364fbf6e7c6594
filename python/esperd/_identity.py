"""Who this trainer is: its rank, its world, its rendezvous, and its socket.

The precedence is that of ``esperd run``: what the program was given, then
ESPERD_*, then torchrun's, SLURM's and MPI's variables.
"""

from __future__ import annotations

import operator
import os
from typing import Mapping, NamedTuple, Optional, Union

from esperd.errors import ConfigMismatch, Unavailable

# Program, and its variables for rank and world size, in order of precedence.
_LAUNCHERS = (
    ("esperd", "ESPERD_RANK", "ESPERD_WORLD_SIZE"),
    ("torchrun", "RANK", "WORLD_SIZE"),
    ("SLURM", "SLURM_PROCID", "SLURM_NTASKS"),
    ("Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI", "PMI_RANK", "PMI_SIZE"),
)

_HOW_TO_START = (
    "start the trainer together with an esperd, by `esperd exec -- python train.py` (several ranks: "
    "`torchrun --nproc_per_node 4 --no_python esperd exec -- python train.py`); or call esperd.launch() before "
    "esperd.connect(); or run `esperd run` beside it, which needs no configuration for world size 1, and set "
    "ESPERD_SOCKET to the socket that it logs"
)


class Identity(NamedTuple):
    rank: int
    world_size: int


def identity(rank: Optional[int], world_size: Optional[int], env: Mapping[str, str]) -> Identity:
    """Take rank and world size from one source: halves of two of them would be
    a rank of some other world. Raises ConfigMismatch."""
    if rank is not None or world_size is not None:
        return _pair("rank=", rank, "world_size=", world_size, "")
    for program, rank_name, world_name in _LAUNCHERS:
        r, w = env.get(rank_name) or None, env.get(world_name) or None
        if r is not None or w is not None:
            return _pair(rank_name, r, world_name, w, f" (from {program})")
    return Identity(0, 1)


_Number = Union[int, str, None]


def _pair(rank_name: str, rank: _Number, world_name: str, world: _Number, source: str) -> Identity:
    if rank is None or world is None:
        given, missing = (world_name, rank_name) if rank is None else (rank_name, world_name)
        raise ConfigMismatch(f"{given}{source} is given and {missing} is not, expected both from one source: give the other one too, or neither")
    r, w = _whole(rank_name, rank), _whole(world_name, world)
    if not 0 <= r < w:
        raise ConfigMismatch(f"{rank_name} is {r} and {world_name} is {w}{source}, expected a rank from 0 to the world size - 1")
    return Identity(r, w)


def _whole(name: str, value: Union[int, str]) -> int:
    try:
        return int(value) if isinstance(value, str) else operator.index(value)
    except ValueError:
        raise ConfigMismatch(f"{name} is {value!r}, expected a whole number") from None


def fingerprint(env: Mapping[str, str], world_size: int) -> str:
    """Tell one rendezvous from another, alike on all of its ranks, and as
    ``esperd run`` does; empty where the environment says nothing."""
    if env.get("ESPERD_ROUND"):
        return env["ESPERD_ROUND"]
    address, port = env.get("MASTER_ADDR", ""), env.get("MASTER_PORT", "")
    restart = env.get("TORCHELASTIC_RESTART_COUNT", "")
    if not (address or port) and env.get("SLURM_JOB_ID"):
        address, port = "slurm-" + env["SLURM_JOB_ID"], env.get("SLURM_STEP_ID", "")
        restart = env.get("SLURM_RESTART_COUNT", "")
    if not (address or port):
        return ""
    return f"{address}:{port}/{world_size}/{restart or 0}"


def socket_path(given: Union[str, "os.PathLike[str]", None], launched: Optional[str], env: Mapping[str, str], rank: int) -> str:
    """Return the path of the trainer's door. Raises Unavailable where nothing
    says it."""
    path = os.fspath(given) if given is not None else launched or env.get("ESPERD_SOCKET", "")
    if not path:
        raise Unavailable(f"there is no esperd to connect to: no socket is given and ESPERD_SOCKET is not set; {_HOW_TO_START}")
    return path.replace("{rank}", str(rank))
