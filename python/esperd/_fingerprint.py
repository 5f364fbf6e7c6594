"""Fingerprints of tensors on a GPU, taken where they are: by esperd's own kernel,
on torch's current stream, so after what was started on it before.

What a fingerprint is, gpuexec/element says; the sums of 16-byte blocks are the
kernel's, what is folded into them is done here.
"""

from __future__ import annotations

import ctypes
import hashlib
import struct
from ctypes import c_uint, c_uint64, c_void_p
from typing import Any, Iterator, List

from esperd import _torch_gpu
from esperd._cuda import Gpu, gpu
from esperd._handover import dtype_of

__all__ = ["fingerprints"]

_KERNEL = "esperd_fingerprint"
_SEGMENT_BYTES = 256 << 10  # that one sum covers at most
_ALIGN = 16  # of what the kernel reads
_THREADS, _GROUPS = 256, 16  # of a group; groups for each processor
_COPIES_BYTES_MAX = 256 << 20  # of tensors that are not in one piece, at a time
_SUM_MASK = (1 << 128) - 1


def fingerprints(tensors: List[Any], ordinal: int) -> List[str]:
    """Return the fingerprints of tensors on one GPU. It waits for them."""
    g = gpu(ordinal)
    begun = [(batch, _start(g, [_in_one_piece(t) for t in batch])) for batch in _batches(tensors)]
    out: List[str] = []
    for batch, sums in begun:
        words = sums.tolist()  # waits
        for t in batch:
            n = 2 * _segments(_size(t))
            out.append(_finished(_total(words[:n]), dtype_of(t), list(t.shape), _size(t)))
            words = words[n:]
    return out


def _batches(tensors: List[Any]) -> Iterator[List[Any]]:
    """Part tensors so that few copies are held at a time. torch uses their memory
    again in the stream's order, so after the kernel."""
    batch: List[Any] = []
    copied = 0
    for t in tensors:
        batch.append(t)
        copied += 0 if t.is_contiguous() and t.data_ptr() % _ALIGN == 0 else _size(t)
        if copied > _COPIES_BYTES_MAX:
            yield batch
            batch, copied = [], 0
    if batch:
        yield batch


def _size(t: Any) -> int:
    return int(t.numel() * t.element_size())


def _segments(size: int) -> int:
    return -(-size // _SEGMENT_BYTES)


def _in_one_piece(t: Any) -> Any:
    piece = t.detach().resolve_conj().resolve_neg().contiguous()
    return piece if piece.data_ptr() % _ALIGN == 0 else piece.clone()


def _start(g: Gpu, pieces: List[Any]) -> Any:
    """Start the kernel, and return where it puts the sums: two words for each
    segment, the lower one first."""
    import torch

    device = _torch_gpu.device(g.ordinal)
    base = min((p.data_ptr() for p in pieces if p.numel()), default=0)
    segments: List[int] = []
    for p in pieces:
        size, offset = _size(p), p.data_ptr() - base
        for at in range(0, size, _SEGMENT_BYTES):
            segments += (offset + at, min(size - at, _SEGMENT_BYTES), at // 16)
    count = len(segments) // 3
    sums = torch.empty(2 * count, dtype=torch.int64, device=device)
    if count == 0:
        return sums
    table = torch.tensor(segments, dtype=torch.int64, device=device)
    arguments = (c_uint64(base), c_uint64(table.data_ptr()), c_uint(count), c_uint64(sums.data_ptr()))
    pointers = (c_void_p * len(arguments))(*(ctypes.addressof(a) for a in arguments))
    with g:
        g.call("cuLaunchKernel", g.kernel(_KERNEL), min(count, g.processors * _GROUPS), 1, 1, _THREADS, 1, 1, 0, _torch_gpu.stream(g.ordinal), pointers, None)
    return sums


def _total(words: List[int]) -> int:
    total = 0
    for lo, hi in zip(words[::2], words[1::2]):
        total += (lo & (1 << 64) - 1) | (hi & (1 << 64) - 1) << 64
    return total & _SUM_MASK


def _finished(total: int, dtype: str, shape: List[int], size: int) -> str:
    name = dtype.encode()
    text = b"esperd tensor 1\x00" + struct.pack("<4Q", total & (1 << 64) - 1, total >> 64, size, len(name)) + name + struct.pack(f"<{len(shape)}Q", *shape)
    return hashlib.sha256(text).digest()[:16].hex()
