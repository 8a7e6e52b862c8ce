"""Pickled weights into numpy arrays, with nothing executed that the file names.

A pickle is a program for a small machine, which can name functions and call them. The machine here builds lists,
tuples and dicts; a call it only writes down, and only of names that files of weights need: every other name is
refused. The arrays are made afterwards, from what was written down, as views of bytes that exist.

Python's own Unpickler with a find_class does not do: it calls what other modules have registered by number, lets
BUILD set attributes, and overflows memory or stack on small files.
"""

import dataclasses
import io
import math
import pickletools
import zipfile
from typing import Any, NamedTuple, NoReturn

import ml_dtypes
import numpy as np

from maskformer_jax.errors import UserError

TORCH_MAGIC = 0x1950A86A20F9469CFC6C
# Arrays in foreign byte or element order are copied, and one stretch of bytes may serve many of them.
COPIES_PER_BYTE = 4
# What a copied name and value count for: less than four times what they take in the file.
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
# What a file may use as key. Python hashes nested tuples by recursion without a limit, until the stack overflows.
KEYS = (str, bytes, int, float, bool, type(None))
FACTORIES = [f"{module}.{kind}" for module in ("builtins", "__builtin__") for kind in ("dict", "float", "int", "list")]


def load(data: bytes, origin: str) -> Any:
    """The object in a pickle, or in a file of torch.save, of the present zip format or the one before 1.6.

    Args:
        data: the whole file.
        origin: what to call the file in errors.

    Returns:
        Dicts, lists, tuples, numbers and text as in the file; tensors and arrays as numpy arrays, native and
        contiguous, perhaps read-only; of anything else (a torch.device, a dtype), something inert.

    Raises:
        UserError: the file asks for anything but data, or is damaged. Nothing was executed.
    """
    try:
        return _load_zip(data, origin) if data[:2] == b"PK" else _load_stream(data, origin)
    except UserError:
        raise
    except Exception as error:
        # Damaged bytes fail in every way that pickletools, zipfile and numpy have.
        raise UserError(
            f"{origin}: truncated or damaged ({type(error).__name__}: {str(error)[:200]}); expected weights as "
            "pickle or torch.save writes them. Download it again."
        ) from error


def _load_zip(data: bytes, origin: str) -> Any:
    members = _members(data)
    pickles = [name for name in members if name.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1:
        raise UserError(
            f"{origin}: a zip file with {len(pickles)} members named data.pkl; torch.save writes one. "
            "If weights were packed into it, unpack them and give their path."
        )
    folder = pickles[0].removesuffix("data.pkl")
    tree = _Machine(io.BytesIO(members[pickles[0]]), origin).run()
    start = f"{folder}data/"
    storages = {name.removeprefix(start): raw for name, raw in members.items() if name.startswith(start)}
    order = ">" if members.get(f"{folder}byteorder") == b"big" else "<"
    return _Builder(storages, order, COPIES_PER_BYTE * len(data)).build(tree)


def _members(data: bytes) -> dict[str, bytes]:
    """The files in a zip file that is not larger inside than outside."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise zipfile.BadZipFile("compressed members, which torch.save does not write")
        if sum(entry.file_size for entry in entries) > len(data):
            raise zipfile.BadZipFile("its members are larger than the file")
        return {entry.filename: archive.read(entry) for entry in entries}


def _load_stream(data: bytes, origin: str) -> Any:
    stream = io.BytesIO(data)
    tree, storages = _Machine(stream, origin).run(), {}
    if type(tree) is int and tree == TORCH_MAGIC:
        tree, storages = _read_legacy(stream, origin)
    return _Builder(storages, "<", COPIES_PER_BYTE * len(data)).build(tree)


def _read_legacy(stream: io.BytesIO, origin: str) -> tuple[Any, dict[str, bytes]]:
    """What torch wrote before 1.6 behind its magic number: the object, and the storages by key."""
    for _ in ("protocol version", "system"):
        _Machine(stream, origin).run()
    machine, storages = _Machine(stream, origin), {}
    tree = machine.run()
    for key in _Machine(stream, origin).run():
        length = int.from_bytes(stream.read(8), "little")
        storages[key] = stream.read(length * machine.storages[_key(key)].dtype.itemsize)
    return tree, storages


@dataclasses.dataclass(frozen=True)
class _Name:
    """A function or class that the file names."""

    name: str


@dataclasses.dataclass(eq=False)
class _Call:
    """A call that the file wants, with the items and the state that it would give to the result."""

    name: str
    args: tuple
    items: dict = dataclasses.field(default_factory=dict)
    state: Any = None


class _Storage(NamedTuple):
    """The bytes of some tensors: where they are, and what the file says of them."""

    key: str
    dtype: np.dtype
    length: int


class _Machine:
    """Runs the next pickle of a stream, and calls nothing.

    Args:
        stream: stands behind the pickle when that has run.
        origin: what to call the file in errors.
    """

    def __init__(self, stream: io.BytesIO, origin: str):
        self.stream, self.origin = stream, origin
        self.storages: dict[str, _Storage] = {}
        self._stack: list[Any] = []  # what lies above the last mark
        self._below: list[list[Any]] = []  # the stacks under the marks
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        for opcode, argument, _ in pickletools.genops(self.stream):
            self._step(opcode.name, argument)
        return self._stack.pop()

    def _step(self, instruction: str, argument: Any) -> None:
        """Runs an instruction with what it brings along."""
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
        """Goes back to the stack under the last mark."""
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
            (target if type(target) is dict else target.items)[_key(key)] = value

    def _named(self, name: str) -> _Name:
        if name not in NAMES:
            self._refuse(ascii(name)[1:-1][:100])
        return _Name(name)

    def _called(self, function: Any, args: Any) -> _Call:
        if type(function) is not _Name or type(args) is not tuple:
            raise TypeError("a call of something that is not a function")
        return _Call(function.name, args)

    def _storage(self, kind: Any, storage_type: Any, key: Any, _: Any, length: Any, view: Any = None) -> _Storage:
        if kind != "storage" or type(key) is not str or view is not None:
            raise ValueError("a reference to something that is not a storage")
        self.storages[key] = _Storage(key, STORAGE_DTYPES[storage_type.name], *_sizes((length,)))
        return self.storages[key]

    def _refuse(self, what: str) -> NoReturn:
        raise UserError(
            f"{self.origin}: refused: the file wants to use {what}, which a file of weights has no need for. "
            "Nothing was executed. If you trust its source, load it with torch and save its tensors as safetensors."
        )


class _Builder:
    """Makes the arrays that a file describes, none larger than the bytes there are.

    Args:
        storages: the bytes of the tensors, by key.
        order: the byte order of the storages.
        allowance: how many bytes may be copied in all.
    """

    def __init__(self, storages: dict[str, bytes], order: str, allowance: int):
        self.storages, self.order, self.allowance = storages, order, allowance
        self._done: dict[int, Any] = {}

    def build(self, value: Any) -> Any:
        """`value` with plain containers, and results for the calls in it; each object once."""
        if id(value) not in self._done:
            self._done[id(value)] = self._build(value)
        return self._done[id(value)]

    def _build(self, value: Any) -> Any:
        if isinstance(value, _Call):
            return CALLS[value.name](self, value)
        if isinstance(value, dict):
            return {key: self.build(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            items = [self.build(item) for item in value]
            return items if isinstance(value, list) else tuple(items)
        return value.name if isinstance(value, _Name) else value

    def mapping(self, call: _Call) -> dict:
        """OrderedDict, of nothing or pairs, and Counter, of a dict; then their items."""
        given = self.build(call.args[0]) if call.args else {}
        self._spend(ITEM_BYTES * len(given))
        return dict(given) | {key: self.build(item) for key, item in call.items.items()}

    def default_mapping(self, call: _Call) -> dict:
        return {key: self.build(item) for key, item in call.items.items()}

    def first(self, call: _Call) -> Any:
        """What a call wraps: a tensor in a Parameter, numbers in a torch.Size, text in a torch.device or a dtype."""
        return self.build(call.args[0])

    def no_bytes(self, call: _Call) -> bytes:
        """No bytes at all, which Python 3 writes so for Python 2."""
        if call.args:
            raise ValueError("bytes of something")
        return b""

    def encoded(self, call: _Call) -> bytes:
        """Bytes, which Python 2 can only read as text."""
        text, encoding = call.args
        if encoding not in ("latin1", "latin-1"):
            raise ValueError("text to encode that is not bytes")
        self._spend(len(text))
        return text.encode("latin1")

    def reconstructed(self, call: _Call) -> np.ndarray:
        *_, shape, dtype, fortran, raw = call.state
        return self._array(raw, dtype, shape, "F" if fortran else "C")

    def from_buffer(self, call: _Call) -> np.ndarray:
        return self._array(*call.args)

    def scalar(self, call: _Call) -> np.ndarray:
        dtype, raw = call.args
        return self._array(raw, dtype, (), "C")

    def _array(self, raw: Any, described: Any, shape: Any, order: str) -> np.ndarray:
        dtype, byte_order = _numpy_dtype(described)
        raw = self.build(raw)
        if isinstance(raw, str):  # of Python 2
            self._spend(len(raw))
            raw = raw.encode("latin1")
        if len(raw) != math.prod(_sizes(shape)) * dtype.itemsize:
            raise ValueError(f"{len(raw)} bytes for an array of shape {shape}")
        return self._native(np.ndarray(shape, _words(dtype, byte_order), raw, order=order), dtype)

    def tensor(self, call: _Call) -> np.ndarray:
        storage, offset, shape, strides, *more = call.args
        if any(more[2:]):
            raise ValueError("a tensor that is the negative or conjugate of its storage")
        return self._tensor(storage, offset, self.build(shape), strides, storage.dtype)

    def tensor_with_dtype(self, call: _Call) -> np.ndarray:
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
        return self._native(np.ndarray(shape, _words(dtype, self.order), raw, start, steps), dtype)

    def _native(self, words: np.ndarray, dtype: np.dtype) -> np.ndarray:
        if not (words.dtype.isnative and words.flags.c_contiguous):
            self._spend(words.nbytes)
        return words.astype(words.dtype.newbyteorder("="), order="C", copy=False).view(dtype)

    def _spend(self, size: int) -> None:
        self.allowance -= size
        if self.allowance < 0:
            raise ValueError("what it describes is many times larger than the file")


CALLS = {
    "__builtin__.bytes": _Builder.no_bytes,
    "_codecs.encode": _Builder.encoded,
    "collections.Counter": _Builder.mapping,
    "collections.OrderedDict": _Builder.mapping,
    "collections.defaultdict": _Builder.default_mapping,
    "numpy._core.multiarray._reconstruct": _Builder.reconstructed,
    "numpy._core.multiarray.scalar": _Builder.scalar,
    "numpy._core.numeric._frombuffer": _Builder.from_buffer,
    "numpy.core.multiarray._reconstruct": _Builder.reconstructed,
    "numpy.core.multiarray.scalar": _Builder.scalar,
    "numpy.core.numeric._frombuffer": _Builder.from_buffer,
    "numpy.dtype": _Builder.first,
    "torch.Size": _Builder.first,
    "torch._utils._rebuild_parameter": _Builder.first,
    "torch._utils._rebuild_tensor": _Builder.tensor,
    "torch._utils._rebuild_tensor_v2": _Builder.tensor,
    "torch._utils._rebuild_tensor_v3": _Builder.tensor_with_dtype,
    "torch.device": _Builder.first,
}
NAMES = {*CALLS, *STORAGE_DTYPES, *TORCH_DTYPES, *FACTORIES, "ml_dtypes.bfloat16", "numpy.ndarray"}


def _numpy_dtype(call: Any) -> tuple[np.dtype, str]:
    """The dtype and the byte order that a file describes."""
    code = call.args[0].name if isinstance(call.args[0], _Name) else _key(call.args[0])
    if call.name != "numpy.dtype" or code not in NUMPY_DTYPES:
        raise ValueError(f"an array of dtype {code!r:.40}, where only numbers are read")
    return NUMPY_DTYPES[code], call.state[1] if call.state else "="


def _key(key: Any) -> Any:
    """`key` if it is safe to look up; a TypeError if not."""
    if type(key) not in KEYS:
        raise TypeError(f"a {type(key).__name__} as key")
    return key


def _words(dtype: np.dtype, order: str) -> np.dtype:
    """Whole numbers as wide as `dtype`: numpy cannot swap the bytes of bfloat16."""
    return np.dtype(f"u{dtype.itemsize}").newbyteorder(order)


def _sizes(numbers: Any) -> tuple[int, ...]:
    """`numbers` if they may be sizes, strides or offsets; a ValueError if not."""
    # numpy has 64 dimensions at most; without a limit, the product of many large sizes would take for ever.
    if type(numbers) is not tuple or len(numbers) > 99:
        raise ValueError("sizes that no array has")
    if any(type(number) is not int or not 0 <= number < 2**63 for number in numbers):
        raise ValueError("sizes that are not whole numbers from zero on")
    return numbers
