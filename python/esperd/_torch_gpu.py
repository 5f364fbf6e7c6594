"""What is asked of torch about GPUs: what tests on a machine without one put
something else in the place of. Only functions of this module call torch.cuda.

A GPU is named by its ordinal, which torch and libcuda have in common in one
process.
"""

from __future__ import annotations

import sys
from typing import Any, Optional, Tuple

from esperd import _dlpack


def current() -> Optional[int]:
    """Return the GPU that torch uses now. None: there is none, it is no
    NVIDIA's, or torch is not imported yet."""
    torch = sys.modules.get("torch")
    if torch is None or torch.version.cuda is None or not torch.cuda.is_available():
        return None
    return int(torch.cuda.current_device())


def of(tensor: Any) -> Optional[int]:
    """Return the NVIDIA GPU that a tensor is on, or None."""
    torch = sys.modules["torch"]
    return int(tensor.device.index) if tensor.is_cuda and torch.version.cuda is not None else None


def device(ordinal: int) -> str:
    """Return torch's name of a GPU."""
    return f"cuda:{ordinal}"


def wait(ordinal: int) -> None:
    """Wait until all that torch has started on a GPU is done, on any stream."""
    sys.modules["torch"].cuda.synchronize(ordinal)


def stream(ordinal: int) -> int:
    """Return the handle of torch's current stream on a GPU; 0: the default one."""
    return int(sys.modules["torch"].cuda.current_stream(ordinal).cuda_stream)


def dlpack_device(ordinal: int) -> Tuple[int, int]:
    """Return DLPack's name of a GPU."""
    return _dlpack.CUDA, ordinal
