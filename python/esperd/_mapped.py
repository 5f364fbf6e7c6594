"""An arena, mapped into this process: memory of the host, or of a GPU.

Tensors over it keep it alive, beyond esperd's end and this client's.
"""

from __future__ import annotations

import base64
import ctypes
import logging
import mmap
import os
import weakref
from ctypes import c_uint64, c_void_p
from typing import Any, Dict, Iterator, List, Optional, Tuple, Union

from esperd import _dlpack, _torch_gpu
from esperd._cuda import Access, Gpu, IpcHandle, Location, gpu_with
from esperd.errors import EsperdError, Refused

__all__ = ["CudaMemory", "HostMemory", "Mapped", "mapped"]

_AS_FD, _ON_DEVICE, _READ_WRITE = 1, 1, 3  # of cuda.h
_LAZY_PEER_ACCESS = 1  # the one flag that cuIpcOpenMemHandle takes

_log = logging.getLogger("esperd")

_Json = Dict[str, Any]


class HostMemory:
    """A file of memory, as large as the arena is."""

    lent = False

    def __init__(self, offer: _Json) -> None:
        self._size = int(offer["size"])
        self._map: Optional[mmap.mmap] = None

    def follow(self, chunks: List[_Json], files: Iterator[int]) -> None:
        """Map what came, and unmap what went. Every chunk is the same file."""
        for fd in files:
            if self._map is None:
                self._map = mmap.mmap(fd, self._size)

    def tensor(self) -> Any:
        """Return the arena as a tensor of bytes."""
        import torch

        assert self._map is not None, "follow comes first"
        return torch.frombuffer(self._map, dtype=torch.uint8)

    def wait(self) -> None:
        """Wait until this process does not write into it any more."""


class CudaMemory:
    """A range of a GPU's addresses, and esperd's memory behind parts of it: what
    the driver imports from file descriptors. It is given back when the last
    tensor over it is gone.

    Where the driver exports none, the arena is one allocation that esperd lends.
    """

    def __init__(self, offer: _Json) -> None:
        self._gpu = gpu_with(offer["uuid"])
        self._size = int(offer["size"])
        self.lent = any("ipc" in c for c in offer["chunks"])
        base = c_uint64()
        _torch_gpu.wait(self._gpu.ordinal)  # torch makes its context before anybody else does
        with self._gpu:
            if self.lent:
                handle = base64.b64decode(offer["chunks"][0]["ipc"])
                if len(handle) != ctypes.sizeof(IpcHandle):
                    raise EsperdError(f"the arena's handle has {len(handle)} bytes: expected {ctypes.sizeof(IpcHandle)}; is this another release's esperd?")
                self._gpu.call("cuIpcOpenMemHandle_v2", ctypes.byref(base), IpcHandle.from_buffer_copy(handle), _LAZY_PEER_ACCESS)
            else:
                self._gpu.call("cuMemAddressReserve", ctypes.byref(base), self._size, int(offer["granularity"]), 0, 0)
        self._base = base.value
        self._chunks: Dict[Tuple[int, int], int] = {}  # serial numbers, by offset and size
        # Not at the interpreter's end: the driver may have ended then.
        weakref.finalize(self, _give_back, self._gpu, self._base, self._size, self._chunks, self.lent, os.getpid()).atexit = False

    def follow(self, chunks: List[_Json], files: Iterator[int]) -> None:
        """Map what came, and unmap what went. What fails may be tried again."""
        if self.lent:
            return
        want = {(c["offset"], c["size"]): c["serial"] for c in chunks}
        gone = [at for at, serial in self._chunks.items() if want.get(at) != serial]
        if gone:
            self.wait()
        with self._gpu:
            for at in gone:
                self._gpu.call("cuMemUnmap", self._base + at[0], at[1])
                del self._chunks[at]
            for c, fd in zip(chunks, files):
                at = c["offset"], c["size"]
                if at not in self._chunks:
                    self._map(*at, fd)
                    self._chunks[at] = c["serial"]

    def _map(self, offset: int, size: int, fd: int) -> None:
        call, at, handle = self._gpu.call, self._base + offset, c_uint64()
        call("cuMemImportFromShareableHandle", ctypes.byref(handle), c_void_p(fd), _AS_FD)
        try:
            call("cuMemMap", at, size, 0, handle, 0)
        except EsperdError:
            call("cuMemRelease", handle)
            raise
        try:
            call("cuMemRelease", handle)  # it is the mapping that keeps the memory
            call("cuMemSetAccess", at, size, ctypes.byref(Access(Location(_ON_DEVICE, self._gpu.device), _READ_WRITE)), 1)
        except EsperdError:
            call("cuMemUnmap", at, size)
            raise

    def tensor(self) -> Any:
        """Return the arena as a tensor of bytes."""
        return _dlpack.bytes_over(self, self._base, self._size, _torch_gpu.dlpack_device(self._gpu.ordinal))

    def wait(self) -> None:
        """Wait until this process does not write into it any more."""
        _torch_gpu.wait(self._gpu.ordinal)


Mapped = Union[HostMemory, CudaMemory]


def mapped(offer: _Json) -> Mapped:
    """Return the addresses of an arena, behind which nothing is mapped yet."""
    if offer["kind"] == "host":
        return HostMemory(offer)
    if offer["kind"] == "cuda":
        return CudaMemory(offer)
    raise Refused(f"the arena is on a device of the kind {offer['kind']}: expected host or cuda, which this client maps; upgrade the client, or start esperd with --device host")


def _give_back(gpu: Gpu, base: int, size: int, chunks: Dict[Tuple[int, int], int], lent: bool, pid: int) -> None:
    """End a range that no tensor is over any more."""
    if os.getpid() != pid:
        return  # a forked child has none of it
    try:
        with gpu:
            gpu.call("cuCtxSynchronize")  # what was started on it before
            if lent:
                gpu.call("cuIpcCloseMemHandle", base)
                return
            for offset, n in chunks:
                gpu.call("cuMemUnmap", base + offset, n)
            gpu.call("cuMemAddressFree", base, size)
    except Exception as error:
        _log.debug("the arena's addresses are not given back: %s", error)
