"""A tensor of torch's over memory that is not torch's, by DLPack: unlike
__cuda_array_interface__ that needs no NumPy, and says which device it is.
"""

from __future__ import annotations

import atexit
import ctypes
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_int, c_int64, c_uint8, c_uint16, c_uint64, c_void_p
from typing import Any, Dict, Tuple

__all__ = ["CPU", "CUDA", "bytes_over"]

CPU, CUDA = 1, 2  # kinds of devices

_UNSIGNED = 1
_NAME = b"dltensor"  # outlives all capsules
_Deleter: Any = CFUNCTYPE(None, c_void_p)


class _Device(ctypes.Structure):
    _fields_ = [("kind", c_int), ("id", c_int)]


class _Type(ctypes.Structure):
    _fields_ = [("code", c_uint8), ("bits", c_uint8), ("lanes", c_uint16)]


class _Tensor(ctypes.Structure):
    """DLTensor."""

    _fields_ = [("data", c_void_p), ("device", _Device), ("dimensions", c_int), ("type", _Type), ("shape", POINTER(c_int64)), ("strides", POINTER(c_int64)),
                ("byte_offset", c_uint64)]


class _Managed(ctypes.Structure):
    """DLManagedTensor."""

    _fields_ = [("tensor", _Tensor), ("context", c_void_p), ("deleter", _Deleter)]


_held: Dict[int, Tuple[_Managed, Any]] = {}  # what tensors are over, and who owns it, by address


def bytes_over(owner: Any, address: int, size: int, device: Tuple[int, int]) -> Any:
    """Return a tensor of bytes over memory of a device (its kind and number). The
    owner is kept until the last tensor over it is gone."""
    import torch.utils.dlpack

    shape = (c_int64 * 1)(size)
    managed = _Managed(_Tensor(address, _Device(*device), 1, _Type(_UNSIGNED, 8, 1), shape, None, 0), None, _let_go)
    at = ctypes.addressof(managed)
    _held[at] = managed, owner
    try:
        return torch.utils.dlpack.from_dlpack(_capsule(at, _NAME, None))
    except BaseException:
        _held.pop(at, None)
        raise


_let_go = _Deleter(lambda at: _held.pop(at, None))


@atexit.register
def _stay() -> None:
    """Tensors that outlive the interpreter call nothing in it."""
    for managed, _ in _held.values():
        managed.deleter = _Deleter()
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(managed))


_capsule: Any = ctypes.pythonapi.PyCapsule_New
_capsule.restype, _capsule.argtypes = ctypes.py_object, (c_void_p, c_char_p, c_void_p)
