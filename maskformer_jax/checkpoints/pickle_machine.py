"""A pickle machine that builds data and calls nothing.

A pickle is a program for a small machine, which can name functions and call them. The machine here builds lists,
tuples and dicts. It records a call, and only of names that files of weights need; every other name is refused. The
arrays are made afterwards from these records, as views of bytes that exist.

Python's own Unpickler with a find_class is not safe enough: it calls what other modules have registered by number,
lets BUILD set attributes, and overflows memory or the stack on small files.
"""

import dataclasses
import io
import math
import pickletools
from typing import Any, NamedTuple, NoReturn

import ml_dtypes
import numpy as np

from maskformer_jax.errors import UserError

# Instructions of a file: each takes up to some hundred bytes and some microseconds. A tensor has about thirty, so that
# files of weights are far below.
FREE_STEPS = 1_000_000
BYTES_PER_STEP = 64
# Cost of a copied name and value, in bytes: less than four times their size in the file.
ITEM_BYTES = 8

INTEGERS = [f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)]
NUMPY_DTYPES = {code: np.dtype(code) for code in ("b1", *INTEGERS, "f2", "f4", "f8")}
NUMPY_DTYPES["ml_dtypes.bfloat16"] = np.dtype(ml_dtypes.bfloat16)
TORCH_DTYPES = {f"torch.{dtype.name}": dtype for dtype in NUMPY_DTYPES.values()}
STORAGE_DTYPES = {
    "torch.BFloat16Storage": TORCH_DTYPES["torch.bfloat16"],
    "torch.BoolStorage": TORCH_DTYPES["torch.bool"],
    "torch.ByteStorage": TORCH_DTYPES["torch.uint8"],
    "torch.CharStorage": TORCH_DTYPES["torch.int8"],
    "torch.DoubleStorage": TORCH_DTYPES["torch.float64"],
    "torch.FloatStorage": TORCH_DTYPES["torch.float32"],
    "torch.HalfStorage": TORCH_DTYPES["torch.float16"],
    "torch.IntStorage": TORCH_DTYPES["torch.int32"],
    "torch.LongStorage": TORCH_DTYPES["torch.int64"],
    "torch.ShortStorage": TORCH_DTYPES["torch.int16"],
    "torch.storage.UntypedStorage": TORCH_DTYPES["torch.uint8"],
}
# Types of keys in a file. Not tuples: Python hashes nested tuples by recursion, without a limit, until the stack
# overflows.
KEYS = (str, bytes, int, float, bool, type(None))
# What training code stores next to weights: objects of these types are passed over.
SETTINGS = [
    "argparse.Namespace",
    "jsonargparse._namespace.Namespace",
    "jsonargparse.namespace.Namespace",
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.nodes.AnyNode",
    "pathlib.PosixPath",
    "pathlib.PurePosixPath",
    "pathlib.WindowsPath",
    "pathlib._local.PosixPath",
    "pathlib._local.WindowsPath",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "typing.Any",
]
UNREAD_DTYPES = ("torch.float8", "torch.float4", "torch.complex", "torch.q", "torch.Q", "torch.Complex", "torch.bits")
FACTORIES = [f"{module}.{kind}" for module in ("builtins", "__builtin__") for kind in ("dict", "float", "int", "list")]


@dataclasses.dataclass(frozen=True)
class Name:
    """A function or class that the file names, which is never looked up."""

    name: str


@dataclasses.dataclass(eq=False)
class Call:
    """A call that the file asks for, with the items and the state that it sets on the result."""

    name: str
    args: tuple
    items: dict = dataclasses.field(default_factory=dict)
    state: Any = None


class Storage(NamedTuple):
    """The bytes of some tensors: their key in the file, and how the file describes them."""

    key: str
    dtype: np.dtype
    length: int


class Steps:
    """How many instructions a file may have, in proportion to its size.

    Args:
        size: of the file in bytes.
    """

    def __init__(self, size: int):
        self.left = FREE_STEPS + size // BYTES_PER_STEP

    def take(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise ValueError("more instructions than weights of this size need")


class Machine:
    """Runs the next pickle of a stream, and calls nothing.

    Args:
        stream: its position is behind the pickle after `run`.
        origin: the file, for messages.
        steps: what is left of the instructions that the file may have.
    """

    def __init__(self, stream: io.BytesIO, origin: str, steps: Steps):
        self.stream, self.origin, self._steps = stream, origin, steps
        self.storages: dict[str, Storage] = {}
        self._stack: list[Any] = []  # values above the last mark
        self._below: list[list[Any]] = []  # stacks below the marks
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        for opcode, argument, _ in pickletools.genops(self.stream):
            self._steps.take()
            self._step(opcode.name, argument)
        return self._stack.pop()

    def _step(self, instruction: str, argument: Any) -> None:
        """Runs one instruction with its argument."""
        stack = self._stack
        match instruction:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "INT" | "BININT" | "BININT1" | "BININT2" | "LONG1" | "LONG4" | "BINFLOAT":
                stack.append(argument)
            case "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8" | "BYTEARRAY8" | "BINSTRING" | "SHORT_BINSTRING":
                stack.append(argument)
            case "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8":
                stack.append(argument)
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(instruction == "NEWTRUE")
            case "MARK":
                self._below.append(stack)
                self._stack = []
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(self._pop(int(instruction[-1]))))
            case "TUPLE":
                self._to_mark().append(tuple(stack))
            case "EMPTY_LIST":
                stack.append([])
            case "APPEND":
                self._extend(self._pop(1))
            case "APPENDS":
                self._to_mark()
                self._extend(stack)
            case "EMPTY_DICT":
                stack.append({})
            case "SETITEM":
                self._set_items(self._pop(2))
            case "SETITEMS":
                self._to_mark()
                self._set_items(stack)
            case "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self._memo[argument])
            case "GLOBAL":
                stack.append(self._named(argument.replace(" ", ".")))
            case "STACK_GLOBAL":
                stack.append(self._named(".".join(self._pop(2))))
            case "REDUCE":
                stack.append(self._called(*self._pop(2)))
            case "NEWOBJ":
                stack.append(self._settings(*self._pop(2)))
            case "BUILD":
                (state,) = self._pop(1)
                stack[-1].state = state
            case "BINPERSID":
                stack.append(self._storage(*stack.pop()))
            case _:
                self._refuse(f"the pickle instruction {instruction}" + (f" {argument!r:.100}" if argument else ""))

    def _pop(self, count: int) -> list[Any]:
        if len(self._stack) < count:
            raise IndexError("an instruction without operands")
        taken = self._stack[-count:]
        del self._stack[-count:]
        return taken

    def _to_mark(self) -> list[Any]:
        """Returns to the stack below the last mark."""
        self._stack = self._below.pop()
        return self._stack

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not list:
            raise TypeError("items for something that is not a list")
        target.extend(items)

    def _set_items(self, pairs: list[Any]) -> None:
        target = self._stack[-1]
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            (target if type(target) is dict else target.items)[checked_key(key)] = value

    def _named(self, name: str) -> Name:
        if name not in NAMES:
            shown = ascii(name)[1:-1][:100]
            if name.startswith(UNREAD_DTYPES):
                raise UserError(
                    f"{self.origin}: has tensors of {shown}; expected plain numbers such as float32, float16 and "
                    "bfloat16. Convert them with tensor.float() and save them again."
                )
            # Nothing holds what comes yet.
            whole = not any(isinstance(value, dict | Call) for stack in (*self._below, self._stack) for value in stack)
            self._refuse(shown, "It may be a whole model, as torch.save(model) writes. " if whole else "")
        return Name(name)

    def _settings(self, kind: Any, args: Any) -> Call:
        """A new object of one of SETTINGS; nothing else is made in this way."""
        if type(kind) is not Name or kind.name not in SETTINGS:
            self._refuse("the pickle instruction NEWOBJ")
        return self._called(kind, args)

    def _called(self, function: Any, args: Any) -> Call:
        if type(function) is not Name or type(args) is not tuple:
            raise TypeError("a call of something that is not a function")
        return Call(function.name, args)

    def _storage(self, kind: Any, storage_type: Any, key: Any, _: Any, length: Any, view: Any = None) -> Storage:
        if kind != "storage" or type(key) is not str or view is not None:
            raise ValueError("a reference to something that is not a storage")
        self.storages[key] = Storage(key, STORAGE_DTYPES[storage_type.name], *_sizes((length,)))
        return self.storages[key]

    def _refuse(self, what: str, guess: str = "") -> NoReturn:
        raise UserError(
            f"{self.origin}: refused: the file wants to use {what}, which a file of weights does not need. "
            f"Nothing was executed. {guess}If you trust its source, load it with torch, in the code that it is of, and "
            "save its state_dict alone: torch.save(model.state_dict(), FILE)."
        )


class Builder:
    """Makes the arrays that a file describes, none larger than the bytes in the file.

    Args:
        storages: the bytes of the tensors, by key.
        order: the byte order of the storages.
        allowance: the number of bytes that may be copied in total.
    """

    def __init__(self, storages: dict[str, bytes], order: str, allowance: int):
        self.storages, self.order, self.allowance = storages, order, allowance
        self._done: dict[int, Any] = {}

    def build(self, value: Any) -> Any:
        """`value` with plain containers, and with results in place of calls; each object is built once."""
        if id(value) not in self._done:
            self._done[id(value)] = self._build(value)
        return self._done[id(value)]

    def _build(self, value: Any) -> Any:
        if isinstance(value, Call):
            return CALLS[value.name](self, value)
        if isinstance(value, dict):
            return {key: self.build(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            items = [self.build(item) for item in value]
            return items if isinstance(value, list) else tuple(items)
        return value.name if isinstance(value, Name) else value

    def mapping(self, call: Call) -> dict:
        """An OrderedDict (without arguments or of pairs) or a Counter (of a dict), and the items that are set later."""
        given = self.build(call.args[0]) if call.args else {}
        self._spend(ITEM_BYTES * len(given))
        return dict(given) | {key: self.build(item) for key, item in call.items.items()}

    def default_mapping(self, call: Call) -> dict:
        return {key: self.build(item) for key, item in call.items.items()}

    def unread(self, call: Call) -> str:
        """The name of one of SETTINGS in place of the object, whose parts may point back to it."""
        return call.name

    def first(self, call: Call) -> Any:
        """The first argument: the tensor of a Parameter, the numbers of a torch.Size, the text of a device or dtype."""
        return self.build(call.args[0])

    def no_bytes(self, call: Call) -> bytes:
        """Empty bytes, in the form that Python 3 writes for Python 2."""
        if call.args:
            raise ValueError("bytes of something")
        return b""

    def encoded(self, call: Call) -> bytes:
        """Bytes, in the form that Python 3 writes for Python 2: encoded text."""
        text, encoding = call.args
        if encoding not in ("latin1", "latin-1"):
            raise ValueError("text to encode that is not bytes")
        self._spend(len(text))
        return text.encode("latin1")

    def reconstructed(self, call: Call) -> np.ndarray:
        *_, shape, dtype, fortran, raw = call.state
        return self._array(raw, dtype, shape, "F" if fortran else "C")

    def from_buffer(self, call: Call) -> np.ndarray:
        return self._array(*call.args)

    def scalar(self, call: Call) -> np.ndarray:
        dtype, raw = call.args
        return self._array(raw, dtype, (), "C")

    def _array(self, raw: Any, described: Any, shape: Any, order: str) -> np.ndarray:
        dtype, byte_order = _numpy_dtype(described)
        raw = self.build(raw)
        if isinstance(raw, str):  # written by Python 2
            self._spend(len(raw))
            raw = raw.encode("latin1")
        if len(raw) != math.prod(_sizes(shape)) * dtype.itemsize:
            raise ValueError(f"{len(raw)} bytes for an array of shape {shape}")
        return self._native(np.ndarray(shape, _integers_like(dtype, byte_order), raw, order=order), dtype)

    def tensor(self, call: Call) -> np.ndarray:
        storage, offset, shape, strides, *more = call.args
        if any(more[2:]):
            raise ValueError("a tensor that is the negative or conjugate of its storage")
        return self._tensor(storage, offset, self.build(shape), strides, storage.dtype)

    def tensor_with_dtype(self, call: Call) -> np.ndarray:
        storage, offset, shape, strides, _, _, dtype, *_ = call.args
        return self._tensor(storage, offset, self.build(shape), strides, TORCH_DTYPES[dtype.name])

    def _tensor(self, storage: Any, offset: Any, shape: Any, strides: Any, dtype: np.dtype) -> np.ndarray:
        raw, size = self.storages[storage.key], dtype.itemsize
        if len(raw) != storage.length * storage.dtype.itemsize:
            raise ValueError(f"{len(raw)} bytes in storage {storage.key} of {storage.length} numbers")
        start, *steps = [step * size for step in _sizes((offset, *strides))]
        if 0 in _sizes(shape):
            return np.empty(shape, dtype)
        if start + sum((n - 1) * step for n, step in zip(shape, steps, strict=True)) + size > len(raw):
            raise ValueError(f"a tensor of shape {shape} goes beyond its storage")
        return self._native(np.ndarray(shape, _integers_like(dtype, self.order), raw, start, steps), dtype)

    def _native(self, words: np.ndarray, dtype: np.dtype) -> np.ndarray:
        if not (words.dtype.isnative and words.flags.c_contiguous):
            self._spend(words.nbytes)
        return words.astype(words.dtype.newbyteorder("="), order="C", copy=False).view(dtype)

    def _spend(self, size: int) -> None:
        self.allowance -= size
        if self.allowance < 0:
            raise ValueError("what it describes is many times larger than the file")


CALLS = {
    "__builtin__.bytes": Builder.no_bytes,
    "_codecs.encode": Builder.encoded,
    "collections.Counter": Builder.mapping,
    "collections.OrderedDict": Builder.mapping,
    "collections.defaultdict": Builder.default_mapping,
    "numpy._core.multiarray._reconstruct": Builder.reconstructed,
    "numpy._core.multiarray.scalar": Builder.scalar,
    "numpy._core.numeric._frombuffer": Builder.from_buffer,
    "numpy.core.multiarray._reconstruct": Builder.reconstructed,
    "numpy.core.multiarray.scalar": Builder.scalar,
    "numpy.core.numeric._frombuffer": Builder.from_buffer,
    "numpy.dtype": Builder.first,
    "torch.Size": Builder.first,
    "torch._utils._rebuild_parameter": Builder.first,
    "torch._utils._rebuild_tensor": Builder.tensor,
    "torch._utils._rebuild_tensor_v2": Builder.tensor,
    "torch._utils._rebuild_tensor_v3": Builder.tensor_with_dtype,
    "torch.device": Builder.first,
}
CALLS |= dict.fromkeys(SETTINGS, Builder.unread)
NAMES = {*CALLS, *STORAGE_DTYPES, *TORCH_DTYPES, *FACTORIES, "ml_dtypes.bfloat16", "numpy.ndarray"}


def _numpy_dtype(call: Any) -> tuple[np.dtype, str]:
    """The dtype and the byte order in a file's description of a dtype."""
    code = call.args[0].name if isinstance(call.args[0], Name) else checked_key(call.args[0])
    if call.name != "numpy.dtype" or code not in NUMPY_DTYPES:
        raise ValueError(f"an array of dtype {code!r:.40}, and only numbers are read")
    return NUMPY_DTYPES[code], call.state[1] if call.state else "="


def checked_key(key: Any) -> Any:
    """`key`; raises TypeError if it is not safe to look up."""
    if type(key) not in KEYS:
        raise TypeError(f"a {type(key).__name__} as key")
    return key


def _integers_like(dtype: np.dtype, order: str) -> np.dtype:
    """Unsigned integers of the size of `dtype`: numpy cannot swap the bytes of bfloat16."""
    return np.dtype(f"u{dtype.itemsize}").newbyteorder(order)


def _sizes(numbers: Any) -> tuple[int, ...]:
    """`numbers`; raises ValueError if they cannot be sizes, strides or offsets."""
    # numpy allows at most 64 dimensions; without a limit, the product of many large sizes takes very long.
    if type(numbers) is not tuple or len(numbers) > 99:
        raise ValueError("sizes that no array has")
    if any(type(number) is not int or not 0 <= number < 2**63 for number in numbers):
        raise ValueError("sizes that are not integers from 0 up")
    return numbers
