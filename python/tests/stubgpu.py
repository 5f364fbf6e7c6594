"""A GPU for a machine without one: the stub of libcuda, whose memory is the
host's, and in the place of torch.cuda what a torch for the CPU makes of it.
"""

from __future__ import annotations

import ctypes
import os
import pathlib
import shutil
import subprocess
from typing import Any, Callable, Dict, Optional

from esperd import _cuda, _dlpack, _torch_gpu

SOURCE = pathlib.Path(__file__).resolve().parents[2] / "gpuexec/cuda/testdata/stub.c"
COMPILER = shutil.which("gcc")


def build(directory: str, *flags: str) -> str:
    """Compile the stub into a directory and return its path: LD_LIBRARY_PATH
    makes another process find it."""
    path = os.path.join(directory, "libcuda.so.1")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-Wno-unknown-pragmas", *flags, "-o", path, str(SOURCE)], check=True)
    return path


class StubGpu:
    """The stub in this process."""

    def __init__(self, path: str) -> None:
        self.path = path
        lib = ctypes.CDLL(path)
        self._set, self._fail, self._get, self.reset = lib.stub_set, lib.stub_fail, lib.stub_get, lib.stub_reset
        self._set.argtypes, self._get.argtypes, self._get.restype = (ctypes.c_char_p, ctypes.c_int64), (ctypes.c_char_p,), ctypes.c_int64
        self.current: Optional[int] = 0  # torch's GPU
        self.waits = 0
        self.stream = ctypes.c_void_p()
        lib.cuInit(0)
        context = ctypes.c_void_p()
        for call in (lambda: lib.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0), lambda: lib.cuCtxPushCurrent_v2(context),
                     lambda: lib.cuStreamCreate(ctypes.byref(self.stream), 1), lambda: lib.cuCtxPopCurrent_v2(ctypes.byref(context))):
            assert call() == 0

    def set(self, what: str, value: int) -> None:
        self._set(what.encode(), value)

    def fail(self, name: str, code: int, after: int = 0) -> None:
        self._fail(name.encode(), after, code)

    def get(self, what: str) -> int:
        return int(self._get(what.encode()))

    def replaced(self) -> Dict[str, Callable[..., Any]]:
        """Return what stands in for the functions of esperd._torch_gpu."""
        return {"current": lambda: self.current, "of": lambda tensor: 0, "device": lambda ordinal: "cpu", "stream": lambda ordinal: self.stream.value,
                "wait": self._wait, "dlpack_device": lambda ordinal: (_dlpack.CPU, 0)}

    def play(self) -> None:
        """Be this process's GPU, for good."""
        _cuda.LIBRARY = self.path
        for name, f in self.replaced().items():
            setattr(_torch_gpu, name, f)

    def _wait(self, ordinal: int) -> None:
        self.waits += 1
