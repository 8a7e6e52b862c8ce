"""Python functions inside compiled programs that JAX's compilation cache keeps.

JAX caches no program with a `jax.pure_callback`: the program holds the Python object. Here, on CPUs, it holds a name.
XLA's foreign function interface finds the name in a table of C functions, and `ctypes` makes C functions of Python's.
The structures below are the beginnings of those in `xla/ffi/api/c_api.h`, which is part of jaxlib; the interface
promises that their order changes only with its major version, which XLA checks when a function is registered.
"""

import ctypes
import functools
import math
import traceback
from collections.abc import Callable, Sequence

import jax
import numpy as np

HostFunction = Callable[..., Sequence[np.ndarray]]


def call_on_host(
    function: HostFunction, result: Sequence[jax.ShapeDtypeStruct], *operands: jax.Array
) -> Sequence[jax.Array]:
    """What a Python function computes on the host from arrays on a device, like `jax.pure_callback`.

    On CPUs, programs with it can be cached.

    Args:
        function: from numpy arrays, which it must neither change nor keep, to numpy arrays as `result` says; of a
            module, since its name is what a cached program knows of it.
        result: their shapes and dtypes.
        operands: of bool, int32 or float32, as the results.
    """

    def by_name(*operands: jax.Array) -> Sequence[jax.Array]:
        return jax.ffi.ffi_call(_registered(function), result)(*operands)

    def by_object(*operands: jax.Array) -> Sequence[jax.Array]:
        return jax.pure_callback(function, result, *operands)

    # Elsewhere the arrays are in the memory of the device, where only a C++ library could fetch them.
    return jax.lax.platform_dependent(*operands, cpu=by_name, default=by_object)


@functools.cache
def _registered(function: HostFunction) -> str:
    """Registers a function with XLA, and returns its name there."""

    def handle(frame: "ctypes._Pointer[_CallFrame]") -> int | None:
        """Returns a pointer to an error, or None."""
        call = frame.contents
        if call.extension and call.extension.contents.kind == _METADATA:
            _state_version(call)
            return None
        try:
            for buffer, array in zip(_arrays(call.results), function(*_arrays(call.operands)), strict=True):
                buffer[...] = array
        except Exception:
            return _error(call, traceback.format_exc())
        return None

    name = f"{function.__module__}.{function.__qualname__}"
    handler = _Handler(handle)
    _handlers.append(handler)
    jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(ctypes.cast(handler, ctypes.c_void_p)), platform="cpu")
    return name


_handlers = []  # XLA knows their addresses alone


class _Version(ctypes.Structure):
    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("extension", ctypes.c_void_p),
        ("major", ctypes.c_int),
        ("minor", ctypes.c_int),
    )


class _Api(ctypes.Structure):
    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("extension", ctypes.c_void_p),
        ("version", _Version),
        ("internal", ctypes.c_void_p),
        ("create_error", ctypes.c_void_p),
    )


class _ErrorArguments(ctypes.Structure):
    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("extension", ctypes.c_void_p),
        ("message", ctypes.c_char_p),
        ("code", ctypes.c_int),
    )


class _Metadata(ctypes.Structure):
    _fields_ = (("struct_size", ctypes.c_size_t), ("version", _Version))


class _Extension(ctypes.Structure):
    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("kind", ctypes.c_int),
        ("next", ctypes.c_void_p),
        ("metadata", ctypes.POINTER(_Metadata)),
    )


class _Buffer(ctypes.Structure):
    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("extension", ctypes.c_void_p),
        ("dtype", ctypes.c_int),
        ("data", ctypes.c_void_p),
        ("rank", ctypes.c_int64),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
    )


class _Buffers(ctypes.Structure):
    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("extension", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("kinds", ctypes.c_void_p),
        ("buffers", ctypes.POINTER(ctypes.POINTER(_Buffer))),
    )


class _CallFrame(ctypes.Structure):
    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("extension", ctypes.POINTER(_Extension)),
        ("api", ctypes.POINTER(_Api)),
        ("context", ctypes.c_void_p),
        ("stage", ctypes.c_int),
        ("operands", _Buffers),
        ("results", _Buffers),
    )


_Handler = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(_CallFrame))
_CreateError = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(_ErrorArguments))
# Constants of the interface.
_METADATA = 1
_INTERNAL_ERROR = 13
_DTYPES = {1: np.dtype(np.bool_), 4: np.dtype(np.int32), 11: np.dtype(np.float32)}


def _state_version(call: _CallFrame) -> None:
    """Answers, at registration, for which version of the interface the handler is made: any of major version 0."""
    version = call.extension.contents.metadata.contents.version
    # Before version 0.2, XLA did not tell its own.
    version.major, version.minor = 0, call.api.contents.version.minor if call.api else 1


def _arrays(buffers: _Buffers) -> list[np.ndarray]:
    """Views of the memory of buffers."""
    return [_array(buffers.buffers[index].contents) for index in range(buffers.count)]


def _array(buffer: _Buffer) -> np.ndarray:
    shape, dtype = buffer.shape[: buffer.rank], _DTYPES[buffer.dtype]
    memory = ctypes.c_char * (math.prod(shape) * dtype.itemsize)
    return np.ndarray(shape, dtype, memory.from_address(buffer.data or 0))  # empty arrays have no address


def _error(call: _CallFrame, message: str) -> int:
    """A pointer to an error, which then is XLA's."""
    arguments = _ErrorArguments(ctypes.sizeof(_ErrorArguments), None, message.encode(), _INTERNAL_ERROR)
    return _CreateError(call.api.contents.create_error)(ctypes.byref(arguments))
