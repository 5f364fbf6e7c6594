"""libcuda, through ctypes: what it takes to map the arena of a GPU, and to launch
a kernel, in the context that torch uses."""

from __future__ import annotations

import ctypes
import os
import threading
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from types import TracebackType
from typing import Any, Dict, List, Optional, Tuple, Type

from esperd import _torch_gpu
from esperd.errors import ConfigMismatch, EsperdError

__all__ = ["Access", "Gpu", "IpcHandle", "Location", "gpu", "gpu_with", "uuid_of_torch"]

LIBRARY = "libcuda.so.1"

_VERSION_MIN = 11000  # the first that reads esperd.ptx, and has all of _SYMBOLS
_PROCESSORS = 16  # CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT
_JIT_ERROR_LOG, _JIT_ERROR_SIZE = 5, 6
_JIT_LOG_BYTES = 8192


class Location(ctypes.Structure):
    """CUmemLocation."""

    _fields_ = [("kind", c_int), ("id", c_int)]


class Access(ctypes.Structure):
    """CUmemAccessDesc."""

    _fields_ = [("location", Location), ("flags", c_int)]


class IpcHandle(ctypes.Structure):
    """CUipcMemHandle: bytes, since c_char would end at the first NUL."""

    _fields_ = [("bytes", ctypes.c_ubyte * 64)]


_SYMBOLS: Dict[str, Tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuDriverGetVersion": (POINTER(c_int),),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
    "cuGetErrorString": (c_int, POINTER(c_char_p)),
    "cuDeviceGetCount": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetUuid": (ctypes.c_ubyte * 16, c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuCtxPushCurrent_v2": (c_void_p,),
    "cuCtxPopCurrent_v2": (POINTER(c_void_p),),
    "cuCtxSynchronize": (),
    "cuMemAddressReserve": (POINTER(c_uint64), c_size_t, c_size_t, c_uint64, c_uint64),
    "cuMemAddressFree": (c_uint64, c_size_t),
    "cuMemImportFromShareableHandle": (POINTER(c_uint64), c_void_p, c_int),
    "cuMemMap": (c_uint64, c_size_t, c_size_t, c_uint64, c_uint64),
    "cuMemUnmap": (c_uint64, c_size_t),
    "cuMemSetAccess": (c_uint64, c_size_t, POINTER(Access), c_size_t),
    "cuMemRelease": (c_uint64,),
    "cuIpcOpenMemHandle_v2": (POINTER(c_uint64), IpcHandle, c_uint),
    "cuIpcCloseMemHandle": (c_uint64,),
    "cuModuleLoadDataEx": (POINTER(c_void_p), c_char_p, c_uint, POINTER(c_int), POINTER(c_void_p)),
    "cuModuleGetFunction": (POINTER(c_void_p), c_void_p, c_char_p),
    "cuLaunchKernel": (c_void_p, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_void_p, POINTER(c_void_p), c_void_p),
}


class _Driver:
    """The library. One that lacks a function is too old: that is found before it
    is called."""

    def __init__(self, path: str) -> None:
        try:
            lib = ctypes.CDLL(path)
        except OSError as error:
            raise EsperdError(f"CUDA: cannot open {path}: {error}; install NVIDIA's driver, or start esperd with --device host") from error
        missing = [name for name in _SYMBOLS if not hasattr(lib, name)]
        if missing:
            raise EsperdError(f"CUDA: {path} lacks {', '.join(missing)}: expected a driver of CUDA 11.0 or newer; upgrade it, or start esperd with --device host")
        self._functions: Dict[str, Any] = {}
        for name, types in _SYMBOLS.items():
            f = getattr(lib, name)
            f.argtypes, f.restype = types, c_int
            self._functions[name] = f
        self.call("cuInit", 0)
        version = c_int()
        self.call("cuDriverGetVersion", ctypes.byref(version))
        if version.value < _VERSION_MIN:
            raise EsperdError(f"CUDA: the driver is of CUDA {version.value // 1000}.{version.value % 1000 // 10}: expected 11.0 or newer; upgrade it, or start esperd with --device host")

    def call(self, name: str, *arguments: Any) -> None:
        code = self._functions[name](*arguments)
        if code != 0:
            raise EsperdError(f"CUDA: {name}: {self._text('cuGetErrorName', code)} ({code}): {self._text('cuGetErrorString', code)}")

    def _text(self, name: str, code: int) -> str:
        text = c_char_p()
        self._functions[name](code, ctypes.byref(text))
        return (text.value or b"an error that this driver has no name for").decode("utf-8", "replace")


class Gpu:
    """One GPU of this process. ``with gpu:`` makes torch's context, which is the
    GPU's primary one, current on the calling thread."""

    def __init__(self, driver: _Driver, ordinal: int) -> None:
        self.ordinal, self._driver = ordinal, driver
        device, uuid, processors = c_int(), (ctypes.c_ubyte * 16)(), c_int()
        self.call("cuDeviceGet", ctypes.byref(device), ordinal)
        self.device = device.value
        self.call("cuDeviceGetUuid", uuid, self.device)
        self.call("cuDeviceGetAttribute", ctypes.byref(processors), _PROCESSORS, self.device)
        h = bytes(uuid).hex()
        self.uuid = f"GPU-{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"
        self.processors = max(1, processors.value)
        self._lock = threading.RLock()  # collecting garbage in it may end an arena, which takes it again
        self._context: Optional[c_void_p] = None
        self._module: Optional[c_void_p] = None
        self._kernels: Dict[str, c_void_p] = {}

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of libcuda, and raise what it answers."""
        self._driver.call(name, *arguments)

    def __enter__(self) -> "Gpu":
        with self._lock:
            if self._context is None:
                context = c_void_p()
                self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self.device)
                self._context = context
        self.call("cuCtxPushCurrent_v2", self._context)
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]) -> None:
        try:
            self.call("cuCtxPopCurrent_v2", ctypes.byref(c_void_p()))
        except EsperdError:
            if error is None:  # else that one says more
                raise

    def kernel(self, name: str) -> c_void_p:
        """Return one of esperd's kernels, which the driver compiles when the first
        is asked for. Called in ``with gpu:``."""
        with self._lock:
            if name not in self._kernels:
                if self._module is None:
                    self._module = self._compiled()
                kernel = c_void_p()
                self.call("cuModuleGetFunction", ctypes.byref(kernel), self._module, name.encode())
                self._kernels[name] = kernel
            return self._kernels[name]

    def _compiled(self) -> c_void_p:
        with open(os.path.join(os.path.dirname(__file__), "esperd.ptx"), "rb") as f:
            ptx = f.read()
        module, log = c_void_p(), ctypes.create_string_buffer(_JIT_LOG_BYTES)
        options = (c_int * 2)(_JIT_ERROR_LOG, _JIT_ERROR_SIZE)
        values = (c_void_p * 2)(ctypes.addressof(log), _JIT_LOG_BYTES - 1)  # the second is the number itself
        try:
            self.call("cuModuleLoadDataEx", ctypes.byref(module), ptx, len(options), options, values)
        except EsperdError as error:
            raise EsperdError(f"{error}: compiling esperd's kernels: {log.value.decode('utf-8', 'replace')}") from error
        return module


_lock = threading.Lock()
_driver: Optional[_Driver] = None
_gpus: Dict[int, Gpu] = {}


def gpu(ordinal: int) -> Gpu:
    """Return a GPU, by the number that torch has for it in this process."""
    global _driver
    with _lock:
        if _driver is None:
            _driver = _Driver(LIBRARY)
        if ordinal not in _gpus:
            _gpus[ordinal] = Gpu(_driver, ordinal)
        return _gpus[ordinal]


def uuid_of_torch() -> str:
    """Return the UUID of the GPU that torch uses now, empty if there is none."""
    ordinal = _torch_gpu.current()
    return "" if ordinal is None else gpu(ordinal).uuid


def gpu_with(uuid: str) -> Gpu:
    """Return the GPU of a UUID: esperd may have another number for it."""
    gpu(0)
    assert _driver is not None
    count = c_int()
    seen: List[str] = []
    _driver.call("cuDeviceGetCount", ctypes.byref(count))
    for ordinal in range(count.value):
        found = gpu(ordinal)
        if found.uuid.lower() == uuid.lower():
            return found
        seen.append(found.uuid)
    raise ConfigMismatch(f"the arena is on GPU {uuid}: expected one of {', '.join(seen)}, which this process sees (CUDA_VISIBLE_DEVICES?); call torch.cuda.set_device() before esperd.connect(), and start esperd with --device auto")
