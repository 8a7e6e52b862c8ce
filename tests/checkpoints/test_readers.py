"""Weights of others: every format comes back bit for bit, and whatever is wrong with a file is a UserError."""

import argparse
import collections
import contextlib
import copyreg
import gzip
import hashlib
import io
import json
import os
import pathlib
import pickle
import random
import re
import struct
import subprocess
import sys
import time
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from maskformer_jax.checkpoints import known_files, pickle_machine, pickles, readers
from maskformer_jax.errors import UserError
from tests.conftest import ROOT

RNG = np.random.default_rng(0)
ARRAYS = {
    "conv.weight": RNG.normal(size=(2, 3, 2)).astype(np.float32),
    "conv.fortran": np.asfortranarray(RNG.normal(size=(3, 2))),
    "conv.foreign": RNG.normal(size=5).astype(">f4"),
    "conv.foreign_fortran": np.asfortranarray(RNG.integers(0, 99, (2, 3)).astype(">i8")),
    "conv.half": RNG.normal(size=4).astype(np.float16),
    "steps": np.array(7, np.int64),
    "flags": np.array([True, False, True]),
    "empty": np.zeros((0, 3), np.float32),
}
# A few bytes, for tests that read them hundreds of times.
FEW = {"fortran": np.asfortranarray(RNG.integers(0, 99, (2, 3)).astype(">i8")), "half": np.ones(2, np.float16)}
BFLOAT16 = {"b": np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16)}


def read_tensors(path):
    """The tensors of a file with their values, also those that are read only when they are used."""
    return {name: np.asarray(tensor) for name, tensor in readers.read_tensors(path).items()}


def write(folder, data, name="weights"):
    (folder / name).write_bytes(data)
    return str(folder / name)


def assert_same(found, expected):
    """The same names, shapes and bits, in native byte order."""
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert type(found[name]) is np.ndarray
        assert found[name].dtype == array.dtype.newbyteorder("="), name
        assert found[name].flags.c_contiguous
        assert found[name].shape == array.shape, name
        assert found[name].tobytes() == array.astype(found[name].dtype).tobytes(), name


# Pickles of numpy arrays.


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("container", ["", "model", "state_dict", "model_state_dict"])
def test_numpy_pickle(tmp_path, protocol, container):
    tree = {container: ARRAYS, "__author__": "others", "matching_heuristics": True} if container else ARRAYS
    assert_same(read_tensors(write(tmp_path, pickle.dumps(tree, protocol))), ARRAYS)


@pytest.mark.parametrize("protocol", [2, 5])
def test_numpy_pickle_of_bfloat16(tmp_path, protocol):
    assert_same(read_tensors(write(tmp_path, pickle.dumps(BFLOAT16, protocol))), BFLOAT16)


def test_a_tensor_may_have_the_name_of_a_container(tmp_path):
    tree = {"model": ARRAYS["steps"], "state_dict": ARRAYS["flags"]}
    assert_same(read_tensors(write(tmp_path, pickle.dumps(tree, 4))), tree)


def test_what_is_no_tensor_is_left_out(tmp_path):
    tree = {"a": ARRAYS["steps"], "epoch": 3, "lr": 0.1, "by": "me", "raw": b"x", "none": None, "yes": True}
    for protocol in (2, 5):
        found = read_tensors(write(tmp_path, pickle.dumps(tree, protocol)))
        assert_same(found, {"a": ARRAYS["steps"]})


@pytest.mark.parametrize("protocol", [2, 5])
def test_the_object_in_a_pickle(protocol):
    milestones = collections.Counter([3, 3, 5])
    defaults = collections.defaultdict(list, {"a": [1]})
    ordered = collections.OrderedDict([("x", 1), ("y", (ARRAYS["steps"], 2.5))])
    tree = {"milestones": milestones, "defaults": defaults, "ordered": ordered, "numpy": np.float32(2)}
    found = pickles.load(pickle.dumps(tree, protocol), "here")
    assert found["milestones"] == {3: 2, 5: 1}
    assert found["defaults"] == {"a": [1]}
    assert list(found["ordered"]) == ["x", "y"]
    assert_same({"t": found["ordered"]["y"][0]}, {"t": ARRAYS["steps"]})
    assert found["ordered"]["y"][1] == 2.5
    assert found["numpy"] == 2
    assert found["numpy"].dtype == np.float32


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"a": ARRAYS["steps"], "blobs": {"b": ARRAYS["steps"]}}, "'blobs' is a dict"),
        ({"a": ARRAYS["steps"], "list": [1]}, "'list' is a list"),
        ({3: ARRAYS["steps"]}, "a int is a ndarray"),
        ([ARRAYS["steps"]], "holds a list"),
        ({"epoch": 3}, "has no tensors"),
        ({"a": np.array(["text"])}, "dtype 'U4'"),
        ({"a": np.array([{}])}, "dtype 'O8'"),
        ({"a": np.array([1j])}, "dtype 'c16'"),
        ({"a": np.zeros(2, [("x", "f4")])}, "dtype 'V4'"),
    ],
)
def test_pickles_of_something_else(tmp_path, tree, message):
    with pytest.raises(UserError, match=message):
        read_tensors(write(tmp_path, pickle.dumps(tree, 4)))


@pytest.mark.parametrize("protocol", [2, 5])
def test_a_pickle_cut_anywhere(tmp_path, protocol):
    data = pickle.dumps({"model": FEW}, protocol)
    for cut in range(0, len(data), 3):
        path = write(tmp_path, data[:cut])
        with pytest.raises(UserError, match=path):
            read_tensors(path)


# Programs for the pickle machine, written by hand.


class Op(bytes):
    """Instructions that leave one object."""


def assemble(value):
    """The instructions that leave `value`."""
    if isinstance(value, Op):
        return value
    if isinstance(value, str):
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, bytes):
        return b"B" + struct.pack("<I", len(value)) + value
    if isinstance(value, tuple):
        return b"(" + b"".join(map(assemble, value)) + b"t"
    if isinstance(value, dict):
        return b"}(" + b"".join(assemble(part) for item in value.items() for part in item) + b"u"
    return pickle.dumps(value, 2)[2:-1]


def program(value):
    return b"\x80\x02" + assemble(value) + b"."


def named(module, name):
    return Op(f"c{module}\n{name}\n".encode())


def called(module, name, *args):
    return Op(named(module, name) + assemble(args) + b"R")


def with_state(value, state):
    return Op(assemble(value) + assemble(state) + b"b")


def bytes_of_python_2(raw):
    return Op(b"T" + struct.pack("<I", len(raw)) + raw)


def numpy_array(shape=(2,), code="f4", raw=bytes(8), order="<", fortran=False):
    dtype = with_state(called("numpy", "dtype", code, 0, 1), (3, order, None, None, None, -1, -1, 0))
    blank = called("numpy.core.multiarray", "_reconstruct", named("numpy", "ndarray"), (0,), bytes_of_python_2(b"b"))
    return with_state(blank, (1, shape, dtype, fortran, bytes_of_python_2(raw)))


def test_numpy_pickle_of_python_2(tmp_path):
    raw = np.array([[1.5, -2.5]], "f4")
    ordered = called("collections", "OrderedDict", [])
    pairs = Op(b"](](" + assemble("w") + numpy_array((1, 2), raw=raw.tobytes()) + b"ee")
    for tree in (Op(ordered + assemble("w") + numpy_array((1, 2), raw=raw.tobytes()) + b"s"), Op(b"")):
        tree = tree or called("collections", "OrderedDict", pairs)
        assert_same(read_tensors(write(tmp_path, program(tree))), {"w": raw})


@pytest.mark.parametrize(
    "array",
    [
        numpy_array(shape=(3,)),
        numpy_array(shape=(1,)),
        numpy_array(shape=(2**60, 2**60)),
        numpy_array(shape=(-2,)),
        numpy_array(shape=(-1, -2)),
        numpy_array(shape=(2.0,)),
        numpy_array(shape=(True, 2)),
        numpy_array(shape=(1,) * 99 + (2,)),
        numpy_array(shape=(0, 2**62, 2**62), raw=b""),
        numpy_array(shape=2),
        numpy_array(code="O8"),
        numpy_array(code="O"),
        numpy_array(code="f4,f4"),
        numpy_array(code=("f4",)),
        numpy_array(order="x"),
        numpy_array(order=3),
        with_state(numpy_array(), (1, 2)),
        with_state(numpy_array(), {"shape": (1,)}),
        with_state(numpy_array(), (1, (2,), "f4", False, "12345678")),
        with_state(numpy_array(), (1, (2,), named("numpy", "dtype"), False, "12345678")),
        called("numpy.core.multiarray", "_reconstruct"),
        called("numpy.core.multiarray", "scalar", "f4", "1234"),
        called("numpy.core.numeric", "_frombuffer", 1, 2, 3, 4, 5),
        called("_codecs", "encode", "abc", "rot13"),
        called("_codecs", "encode", 3, "latin1"),
        called("_codecs", "encode", "\u20ac", "latin1"),
        called("torch", "FloatStorage", 3),
        called("numpy", "ndarray", (2**40,)),
        called("builtins", "list", "abc"),
        Op(called("collections", "OrderedDict") + b")R"),
        Op(named("collections", "OrderedDict") + b"]R"),
        called("__builtin__", "bytes", 2**40),
        called("collections", "Counter", 3),
        Op(called("collections", "OrderedDict", []) + assemble("x") + b"a"),
        called("numpy.core.multiarray", "scalar", called("torch", "device", "f4"), "1234"),
        Op(b"\x96\x01" + bytes(8) + b"K\x01a"),
        Op(b"(K\x01\x87t"),
        Op(assemble("not a function") + b")R"),
        Op(assemble("not a reference") + b"Q"),
        Op(assemble("storage") + b"Q"),
    ],
)
def test_descriptions_that_make_no_sense(tmp_path, array):
    assert read_tensors(write(tmp_path, program({"a": numpy_array()})))["a"].shape == (2,)
    with pytest.raises(UserError, match="truncated or damaged"):
        read_tensors(write(tmp_path, program({"a": numpy_array(), "b": array})))


@pytest.mark.parametrize("shape", [(2**70,), (True, 2), (-1, -2), (2.0,), (float("nan"),)])
def test_sizes_are_whole_numbers(tmp_path, shape):
    with pytest.raises(UserError, match="sizes that are not integers from 0 up"):
        read_tensors(write(tmp_path, program({"a": numpy_array(shape=shape)})))


def test_sizes_are_few(tmp_path):
    with pytest.raises(UserError, match="sizes that no array has"):
        read_tensors(write(tmp_path, program({"a": numpy_array(shape=(2**60,) * 10_000)})))


# Files that want more than to be read.

COMMAND = "touch executed"
CODE = f"__import__('os').system({COMMAND!r})"
SYSTEM = called("os", "system", COMMAND)
STACK_GLOBAL = b"\x93" + assemble((COMMAND,)) + b"R."
OS_MODULE = called("builtins", "__import__", "os")
LAZY_EVAL = Op(named("builtins", "map") + named("builtins", "eval") + assemble([CODE]) + b"\x86\x81")


class Evil:
    def __reduce__(self):
        return os.system, (COMMAND,)


NESTED = {"model": {"w": ARRAYS["conv.weight"], "evil": Evil()}}
# The program, and the name that gives it away.
HOSTILE = {
    "reduce": (program(SYSTEM), "os.system"),
    "stack_global": (b"\x80\x04" + assemble("os") + assemble("system") + STACK_GLOBAL, "os.system"),
    "dotted": (b"\x80\x04" + assemble("os") + assemble("path.os.system") + STACK_GLOBAL, "os.path.os.system"),
    "eval": (program(called("builtins", "eval", CODE)), "builtins.eval"),
    "eval_of_python_2": (program(called("__builtin__", "eval", CODE)), "__builtin__.eval"),
    "exec": (program(called("builtins", "exec", CODE)), "builtins.exec"),
    "getattr": (
        program(Op(called("builtins", "getattr", OS_MODULE, "system") + assemble((COMMAND,)) + b"R")),
        "builtins.getattr",
    ),
    "import": (program(Op(OS_MODULE + SYSTEM + b"b")), "builtins.__import__"),
    "numpy_load": (program(called("numpy", "load", "evil.npy", None, True)), "numpy.load"),
    "inst": (b"\x80\x02(" + assemble(COMMAND) + b"ios\nsystem\n.", "the pickle instruction INST 'os system'"),
    "obj": (b"\x80\x02(" + named("os", "system") + assemble(COMMAND) + b"o.", "os.system"),
    "newobj": (program(Op(named("builtins", "bytes") + LAZY_EVAL + b"\x85\x81")), "builtins.bytes"),
    "newobj_ex": (program(Op(named("builtins", "bytes") + LAZY_EVAL + b"\x85}\x92")), "builtins.bytes"),
    "partial": (
        program(Op(called("functools", "partial", named("os", "system"), COMMAND) + b")R")),
        "functools.partial",
    ),
    "state": (program(with_state(called("collections", "OrderedDict"), {"x": SYSTEM})), "os.system"),
    "behind_weights": (program({"w": numpy_array(), "x": SYSTEM}), "os.system"),
    "nested_2": (pickle.dumps(NESTED, 2), "posix.system"),
    "nested_5": (pickle.dumps(NESTED, 5), "posix.system"),
    "legacy": (pickle.dumps(pickles.TORCH_MAGIC, 2) + pickle.dumps(1001, 2) + program(SYSTEM), "os.system"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_pickle_is_refused_and_not_executed(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    data, culprit = HOSTILE[kind]
    write(tmp_path, program(SYSTEM), "evil.npy")
    with pytest.raises(UserError, match=f"refused: the file wants to use {culprit}, .*Nothing was executed"):
        read_tensors(write(tmp_path, data))
    assert not (tmp_path / "executed").exists()
    # The file is hostile indeed: Python's own loader executes it.
    stream = io.BytesIO(data)
    with contextlib.suppress(Exception):
        for _ in range(3):
            pickle.load(stream)
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize("number", [b"\x82\xf0", b"\x83\xf0\x00", b"\x84\xf0\x00\x00\x00"])
def test_functions_that_are_registered_by_number_are_refused(tmp_path, monkeypatch, number):
    monkeypatch.chdir(tmp_path)
    data = b"\x80\x02" + number + assemble((COMMAND,)) + b"R."
    copyreg.add_extension("os", "system", 0xF0)
    try:
        # Python remembers the function, and does not ask for it by name again.
        pickle.loads(data)
        (tmp_path / "executed").unlink()
        with pytest.raises(UserError, match=r"refused: .* the pickle instruction EXT\d 240"):
            read_tensors(write(tmp_path, data))
        assert not (tmp_path / "executed").exists()
    finally:
        copyreg.remove_extension("os", "system", 0xF0)


@pytest.mark.parametrize("state", [{"name": "x"}, (None, {"name": "x", "__class__": "x"}), (None, {"__call__": "x"})])
@pytest.mark.parametrize(
    "target",
    [
        named("collections", "OrderedDict"),
        named("numpy", "dtype"),
        named("torch", "FloatStorage"),
        called("collections", "OrderedDict"),
        called("numpy", "dtype", "f4"),
        Op(assemble(("storage", named("torch", "FloatStorage"), "0", "cpu", 1)) + b"Q"),
        {},
        [],
        "text",
    ],
)
def test_state_changes_nothing_of_ours(tmp_path, target, state):
    def attributes():
        return {
            kind: dict(vars(kind))
            for kind in (pickle_machine.Call, pickle_machine.Name, pickle_machine.Storage, pickle_machine.Builder)
        }

    before, tables = attributes(), (dict(pickle_machine.CALLS), set(pickle_machine.NAMES))
    with contextlib.suppress(UserError):
        pickles.load(program(with_state(target, state)), "here")
    assert attributes() == before
    assert tables == (pickle_machine.CALLS, pickle_machine.NAMES)
    data = pickle.dumps(ARRAYS, 2)
    assert_same(read_tensors(write(tmp_path, data)), ARRAYS)


# Python cannot hash these: its stack overflows.
DEEP = Op(b")" + b"\x85" * 200_000)
LEGACY_START = pickle.dumps(pickles.TORCH_MAGIC, 2) + pickle.dumps(1001, 2) * 3
BOMBS = {
    "memo": b"\x80\x02}r\xff\xff\xff\x7f.",
    "bytearray": b"\x80\x05\x96" + struct.pack("<Q", 2**45) + b"abc.",
    "bytes": b"\x80\x05\x8e" + struct.pack("<Q", 2**63) + b"abc.",
    "frame": b"\x80\x05\x95" + struct.pack("<Q", 2**45) + b"}.",
    "deep_key": program(Op(b"}" + DEEP + b"Ns")),
    "deep_key_in_pairs": program(called("collections", "OrderedDict", Op(b"](]" + DEEP + b"aNae"))),
    "deep_dtype": program({"a": numpy_array(code=DEEP)}),
    "deep_storage": LEGACY_START + program(Op(b"]" + DEEP + b"a")),
    "deep_reference": program(Op(assemble(("storage", named("torch", "FloatStorage"), DEEP, "cpu", 1)) + b"Q")),
    "deep_calls": program(Op(named("collections", "OrderedDict") * 50_000 + b")" + b"R\x85" * 50_000)),
    "deep_lists": program({"a": Op(b"]" * 100_000 + b"a" * 99_999)}),
    "list_of_itself": program({"a": Op(b"]q\x00h\x00a")}),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_small_files_that_would_take_all_memory_or_the_stack(tmp_path, kind):
    with pytest.raises(UserError, match=r"truncated or damaged|has no tensors"):
        read_tensors(write(tmp_path, BOMBS[kind]))


def test_shared_lists_are_built_once():
    doubled = b"]" + b"".join(b"q%ch%c\x86" % (n, n) for n in range(60))
    found = pickles.load(b"\x80\x02" + doubled + b".", "here")
    assert found[0] is found[1]


def many_times(first, again):
    """Eighty objects that share one, the zeroth in the memo."""
    return {"first": first, **{str(n): again for n in range(80)}}


def array_of(raw, fortran):
    blank = called("numpy.core.multiarray", "_reconstruct")
    return with_state(blank, (1, (2, 4000), called("numpy", "dtype", "u1"), fortran, raw))


ZEROS, MEMO, AGAIN = bytes(8000), Op(b"q\x00"), Op(b"h\x00")
PAIRS = Op(b"]q\x00(" + b"](K\x01K\x02e" * 4000 + b"e")


@pytest.mark.parametrize(
    "tree",
    [
        many_times(array_of(Op(assemble(ZEROS) + MEMO), True), array_of(AGAIN, True)),
        many_times(array_of(Op(bytes_of_python_2(ZEROS) + MEMO), False), array_of(AGAIN, False)),
        many_times(
            called("_codecs", "encode", Op(bytes_of_python_2(ZEROS) + MEMO), "latin1"),
            called("_codecs", "encode", AGAIN, "latin1"),
        ),
        many_times(called("collections", "OrderedDict", PAIRS), called("collections", "OrderedDict", AGAIN)),
    ],
    ids=["arrays", "text", "bytes", "dicts"],
)
def test_copies_may_not_be_many_times_the_file(tmp_path, tree):
    with pytest.raises(UserError, match="many times larger than the file"):
        read_tensors(write(tmp_path, program(tree)))


# Files of torch.save, without torch.


def tensor(kind="FloatStorage", key="0", length=6, offset=0, shape=(2, 3), strides=(3, 1), more=()):
    storage = Op(assemble(("storage", named("torch", kind), key, "cpu", length)) + b"Q")
    return called("torch._utils", "_rebuild_tensor_v2", storage, offset, shape, strides, False, {}, *more)


def torch_zip(tree, storages, folder="archive", order=b"little", compression=zipfile.ZIP_STORED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        archive.writestr(f"{folder}/data.pkl", program(tree))
        archive.writestr(f"{folder}/byteorder", order)
        for key, raw in storages.items():
            archive.writestr(f"{folder}/data/{key}", raw)
        archive.writestr(f"{folder}/version", b"3\n")
    return stream.getvalue()


def torch_legacy(tree, storages):
    parts = [pickle.dumps(part, 2) for part in (pickles.TORCH_MAGIC, 1001, {"little_endian": True})]
    parts += [program(tree), pickle.dumps(list(storages), 2)]
    return b"".join(parts) + b"".join(struct.pack("<q", len(raw) // 4) + raw for raw in storages.values())


SIX = np.arange(6, dtype=np.float32)
SIX_RAW = {"0": SIX.tobytes()}


@pytest.mark.parametrize("save", [torch_zip, torch_legacy])
def test_torch_files_without_torch(tmp_path, save):
    columns, scalar = tensor(offset=1, shape=(2, 2), strides=(1, 3)), tensor(shape=(), strides=())
    empty = tensor(key="1", length=0, shape=(3, 0), strides=(1, 1))
    tree = {"model": {"a": tensor(), "b": columns, "c": scalar, "d": empty}}
    grid = SIX.reshape(2, 3)
    expected = {"a": grid, "b": np.ascontiguousarray(grid.T[1:]), "c": SIX[0].reshape(())}
    expected["d"] = np.zeros((3, 0), np.float32)
    assert_same(read_tensors(write(tmp_path, save(tree, SIX_RAW | {"1": b""}))), expected)


def test_torch_zip_of_a_big_endian_machine_under_another_folder(tmp_path):
    half = SIX.astype(ml_dtypes.bfloat16)
    raw = {"0": SIX.astype(">f4").tobytes(), "x": half.view(np.uint16).astype(">u2").tobytes()}
    tree = {"a": tensor(), "b": tensor("BFloat16Storage", "x", shape=(6,), strides=(1,))}
    data = torch_zip(tree, raw, folder="my model", order=b"big")
    assert_same(read_tensors(write(tmp_path, data)), {"a": SIX.reshape(2, 3), "b": half})


@pytest.mark.parametrize("save", [torch_zip, torch_legacy])
@pytest.mark.parametrize(
    "wrong",
    [
        {"offset": -1},
        {"offset": 2**70},
        {"offset": 0.5},
        {"offset": float("nan")},
        {"shape": (-1, 3)},
        {"shape": (2, 3, 1)},
        {"shape": (2.0, 3)},
        {"shape": (float("nan"), 3)},
        {"shape": (2**40, 2**40), "strides": (0, 0)},
        {"shape": "23"},
        {"shape": 6, "strides": 1},
        {"strides": (-3, 1), "offset": 3},
        {"strides": (2**62, 2**62)},
        {"shape": (0, 2**62, 2**62), "strides": (1, 1, 1)},
        {"length": 7},
        {"length": 5},
        {"length": -1},
        {"length": 2**64},
        {"length": float("nan")},
        {"kind": "DoubleStorage"},
        {"kind": "float32"},
        {"key": "1"},
        {"key": 0},
        {"key": "../0"},
    ],
    ids=str,
)
def test_tensors_that_do_not_fit_their_storage(tmp_path, save, wrong):
    with pytest.raises(UserError, match="truncated or damaged"):
        read_tensors(write(tmp_path, save({"a": tensor(**wrong)}, SIX_RAW)))


@pytest.mark.parametrize("wrong", [{"offset": 1}, {"shape": (3, 3)}, {"strides": (4, 1)}], ids=str)
def test_tensors_beyond_their_storage(tmp_path, wrong):
    with pytest.raises(UserError, match="goes beyond its storage"):
        read_tensors(write(tmp_path, torch_zip({"a": tensor(**wrong)}, SIX_RAW)))


def test_negative_views_are_not_read_as_positive(tmp_path):
    for metadata in ({"neg": True}, {"conj": True}):
        with pytest.raises(UserError, match="the negative or conjugate"):
            read_tensors(write(tmp_path, torch_zip({"a": tensor(more=(metadata,))}, SIX_RAW)))


@pytest.mark.parametrize(
    "identity",
    [
        ("module", named("torch", "FloatStorage"), "0", "cpu", 6),
        ("storage", named("torch", "FloatStorage"), "0", "cpu"),
        ("storage", "torch.FloatStorage", "0", "cpu", 6),
        ("storage", named("torch", "FloatStorage"), "0", "cpu", 6, ("view", 0, 3)),
        (),
    ],
)
def test_references_to_other_things_than_storages(tmp_path, identity):
    storage = Op(assemble(identity) + b"Q")
    tree = {"a": called("torch._utils", "_rebuild_tensor_v2", storage, 0, (2, 3), (3, 1), False, {})}
    with pytest.raises(UserError, match="truncated or damaged"):
        read_tensors(write(tmp_path, torch_zip(tree, SIX_RAW)))


def test_corrupt_zips(tmp_path):
    good = torch_zip({"a": tensor()}, SIX_RAW)
    place = good.index(SIX_RAW["0"])
    flipped = good[:place] + b"\xff" + good[place + 1 :]
    compressed = torch_zip({"a": tensor()}, SIX_RAW, compression=zipfile.ZIP_DEFLATED)
    # The directory at the end tells of a member of 4 GB.
    entry = good.index(b"PK\x01\x02")
    enormous = good[: entry + 20] + b"\xfe\xff\xff\xff" * 2 + good[entry + 28 :]
    bare = io.BytesIO()
    with zipfile.ZipFile(bare, "w") as archive:
        archive.writestr("weights.pth", b"x")
    for data, message in [
        (flipped, "Bad CRC"),
        (compressed, "compressed members"),
        (enormous, "larger than the file"),
        (bare.getvalue(), "0 members named data.pkl"),
        (torch_zip({"a": tensor()}, {}), "truncated or damaged .KeyError: '0'"),
    ]:
        with pytest.raises(UserError, match=message):
            read_tensors(write(tmp_path, data))


@pytest.mark.parametrize("save", [torch_zip, torch_legacy])
def test_a_torch_file_cut_anywhere(tmp_path, save):
    data = save({"a": tensor()}, SIX_RAW)
    for cut in range(0, len(data), 3):
        path = write(tmp_path, data[:cut])
        with pytest.raises(UserError, match=path):
            read_tensors(path)


def test_a_hostile_torch_zip_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"refused: the file wants to use os\.system"):
        read_tensors(write(tmp_path, torch_zip({"a": tensor(), "b": SYSTEM}, SIX_RAW)))
    assert not (tmp_path / "executed").exists()


# Files of torch.save, with torch.


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(params=[True, False], ids=["zip", "legacy"])
def torch_saved(request, tmp_path, torch):
    """Saves an object with torch, in the present format or the one before 1.6; returns the path."""

    def save(tree):
        torch.save(tree, tmp_path / "weights", _use_new_zipfile_serialization=request.param)
        return str(tmp_path / "weights")

    return save


def numpy_of(torch, value):
    value = value.detach().contiguous()
    return value.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if value.dtype == torch.bfloat16 else value.numpy()


def assert_same_as_torch(torch, found, expected):
    assert_same(found, {name: numpy_of(torch, value) for name, value in expected.items()})


def torch_state(torch):
    """Tensors of every dtype, views that share a storage, parameters, no elements and no dimensions."""
    torch.manual_seed(0)
    base = torch.randn(4, 6)
    kinds = ["float16", "bfloat16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool"]
    state = {f"dtype.{kind}": (torch.randn(3, 2) * 5).to(getattr(torch, kind)) for kind in [*kinds, "uint16", "uint64"]}
    return collections.OrderedDict(
        **state,
        base=base,
        transposed=base.t(),
        part=base[1:3, ::2],
        expanded=base[:, :1].expand(4, 3),
        permuted=torch.randn(2, 3, 4).permute(2, 0, 1).bfloat16(),
        scalar=torch.tensor(7),
        empty=torch.zeros(0, 3),
        empty_rows=torch.zeros(3, 0),
        parameter=torch.nn.Parameter(torch.randn(2, 2)),
    )


def test_torch_state(torch, torch_saved):
    state = torch_state(torch)
    assert_same_as_torch(torch, read_tensors(torch_saved(state)), state)


def test_torch_module_and_its_data_parallel_names(torch, torch_saved):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    state = module.state_dict()
    assert_same_as_torch(torch, read_tensors(torch_saved(state)), state)
    wrapped = {f"module.{name}": value for name, value in state.items()}
    assert_same_as_torch(torch, read_tensors(torch_saved({"state_dict": wrapped})), state)
    mixed = wrapped | {"other": torch.ones(2)}
    assert_same_as_torch(torch, read_tensors(torch_saved(mixed)), mixed)


def test_torch_training_checkpoint(torch, torch_saved):
    module = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(module.parameters(), lr=torch.tensor(1e-3))
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 2, 5])
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    scheduler.step()
    tree = {
        "model": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "iteration": 12,
        "device": torch.device("cuda", 0),
        "size": torch.Size([1, 2]),
        "dtype": torch.float32,
    }
    path = torch_saved(tree)
    assert_same_as_torch(torch, read_tensors(path), module.state_dict())
    with open(path, "rb") as file:
        whole = pickles.load(file.read(), path)
    assert whole["scheduler"]["milestones"] == {2: 2, 5: 1}
    assert whole["optimizer"]["param_groups"][0]["betas"] == (0.9, 0.999)
    moments = optimizer.state_dict()["state"][0]["exp_avg"]
    assert_same_as_torch(torch, {"m": whole["optimizer"]["state"][0]["exp_avg"]}, {"m": moments})
    assert whole["size"] == (1, 2)


def test_a_pickled_torch_module_is_refused(torch, torch_saved):
    with pytest.raises(UserError, match=r"refused: the file wants to use torch\.nn"):
        read_tensors(torch_saved({"model": torch.nn.Linear(3, 2)}))


# Safetensors and folders.

PLAIN = {name: array.astype(array.dtype.newbyteorder("="), order="C") for name, array in ARRAYS.items()}


def safetensors_bytes(tensors):
    header, raw = {}, b""
    for name, array in tensors.items():
        kind = "BF16" if array.dtype == ml_dtypes.bfloat16 else f"{array.dtype.kind.upper()}{array.dtype.itemsize * 8}"
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": [len(raw), len(raw) + array.nbytes]}
        raw += array.tobytes()
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + raw


def test_safetensors(tmp_path):
    found = read_tensors(write(tmp_path, safetensors.numpy.save(PLAIN)))
    assert_same({name: found[name] for name in PLAIN}, PLAIN)
    assert_same(read_tensors(write(tmp_path, safetensors_bytes(BFLOAT16))), BFLOAT16)


@pytest.mark.parametrize("start", [b"PK", b"\x80\x02"])
def test_safetensors_whose_length_looks_like_another_format(tmp_path, start):
    data = safetensors_bytes(BFLOAT16)
    text = data[8 : data.index(b"}}") + 2]
    length = int.from_bytes(start, "little")
    data = struct.pack("<Q", length) + text.ljust(length) + data[8 + len(text) :]
    assert data.startswith(start)
    assert_same(read_tensors(write(tmp_path, data)), BFLOAT16)


def test_a_pickle_that_looks_like_safetensors(tmp_path):
    data = program(Op(b"}(U\x03ab{" + numpy_array() + b"u"))
    assert data[8:9] == b"{"
    assert_same(read_tensors(write(tmp_path, data)), {"ab{": np.zeros(2, np.float32)})


def test_safetensors_cut_anywhere(tmp_path):
    data = safetensors_bytes({"module.a": SIX})
    assert_same(read_tensors(write(tmp_path, data)), {"a": SIX})
    for cut in range(0, len(data), 3):
        path = write(tmp_path, data[:cut])
        with pytest.raises(UserError, match="truncated or damaged safetensors" if cut > 8 else path):
            read_tensors(path)


def test_safetensors_of_a_dtype_that_numpy_lacks(tmp_path):
    text = b'{"a": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}'
    data = struct.pack("<Q", len(text)) + text + bytes(4)
    with pytest.raises(UserError, match="a is of dtype F8_E4M3"):
        read_tensors(write(tmp_path, data))


def write_index(folder, weight_map, name="model.safetensors.index.json"):
    return write(folder, json.dumps({"metadata": {}, "weight_map": weight_map}).encode(), name)


def test_sharded_folders(tmp_path):
    write(tmp_path, safetensors_bytes({"a": SIX, "c": SIX * 2}), "model-1.safetensors")
    write(tmp_path, safetensors_bytes(BFLOAT16), "model-2.safetensors")
    write_index(tmp_path, {"a": "model-1.safetensors", "b": "model-2.safetensors"})
    assert_same(read_tensors(str(tmp_path)), {"a": SIX, **BFLOAT16})
    write_index(tmp_path, {"a": "model-1.safetensors", "lost": "model-2.safetensors"})
    with pytest.raises(UserError, match=r"1 tensors are not where the index says: \['lost in model-2.safetensors'\]"):
        read_tensors(str(tmp_path))
    write_index(tmp_path, {"a": "model-1.safetensors", "b": "model-3.safetensors"})
    with pytest.raises(UserError, match=r"not next to it: \['model-3.safetensors'\]"):
        read_tensors(str(tmp_path))


def test_the_best_file_of_a_folder_is_read(tmp_path):
    order = ["pytorch_model.bin", "pytorch_model.bin.index.json", "model.safetensors", "model.safetensors.index.json"]
    write(tmp_path, torch_zip({"a": tensor()}, SIX_RAW), order[0])
    assert_same(read_tensors(str(tmp_path)), {"a": SIX.reshape(2, 3)})
    for number, name in enumerate(order[1:]):
        tensors = {"a": SIX * number}
        if name.endswith(".json"):
            write(tmp_path, safetensors_bytes(tensors), f"shard-{number}")
            write_index(tmp_path, {"a": f"shard-{number}"}, name)
        else:
            write(tmp_path, safetensors_bytes(tensors), name)
        assert_same(read_tensors(str(tmp_path)), tensors)


@pytest.mark.parametrize("shard", ["../x", "..", ".", "", "/etc/passwd", "a/b", "a\\b", "C:x", "x\n", 3, ["x"], None])
def test_an_index_may_only_name_files_beside_it(tmp_path, shard):
    folder = tmp_path / "folder"
    folder.mkdir()
    write(tmp_path, safetensors_bytes({"a": SIX}), "x")
    write_index(folder, {"a": shard})
    with pytest.raises(UserError, match="refused: it names the file"):
        read_tensors(str(folder))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}', "\udc80", "[" * 100_000, '{"weight_map": {}}'])
def test_an_index_that_is_none(tmp_path, text):
    write(tmp_path, text.encode(errors="surrogateescape"), "model.safetensors.index.json")
    with pytest.raises(
        UserError,
        match=r"index\.json(: not an index of weights| is not valid JSON| is nested| holds a list)|has no tensors",
    ):
        read_tensors(str(tmp_path))


def raw_safetensors(header, data=bytes(4)):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    "tensors",
    [
        {"a": {"shape": [1] * 100}},
        {"a": {"shape": [0, 2**62], "data_offsets": [0, 0]}, "b": {"shape": [1]}},
        {"a": {"shape": [2**62, 2**62]}},
        {"a": {"shape": [1]}, "b": {"shape": [1]}},
        {"a": {"shape": [-1]}},
        {"a": {"shape": [2]}},
    ],
    ids=["dimensions", "empty_and_huge", "huge", "overlapping", "negative", "too_short"],
)
def test_safetensors_that_no_array_is(tmp_path, tensors):
    header = {name: {"dtype": "F32", "data_offsets": [0, 4], **entry} for name, entry in tensors.items()}
    with pytest.raises(UserError, match=r"weights: (truncated or damaged safetensors|'a' has \d+ dimensions)"):
        read_tensors(write(tmp_path, raw_safetensors(header)))


def test_an_index_may_be_given_as_the_path(tmp_path):
    write(tmp_path, safetensors_bytes({"a": SIX}), "model-1.safetensors")
    index = write_index(tmp_path, {"a": "model-1.safetensors"})
    assert_same(read_tensors(index), {"a": SIX})


# Work that grows with the instructions of a pickle, not with its bytes.
@pytest.mark.parametrize("instructions", [b"]", b"(", b"K\x01", b")"])
def test_a_pickle_may_not_have_many_more_instructions_than_weights_need(tmp_path, instructions):
    data = b"\x80\x02" + instructions * (2 * pickle_machine.FREE_STEPS) + b"."
    start = time.monotonic()
    with pytest.raises(UserError, match="more instructions than weights of this size need"):
        read_tensors(write(tmp_path, data))
    assert time.monotonic() - start < 60


def test_weights_of_many_tensors_have_few_enough_instructions(tmp_path):
    many = {f"layers.{number}.weight": SIX for number in range(3000)}
    assert len(read_tensors(write(tmp_path, pickle.dumps({"model": many, "optimizer": [many] * 2}, 2)))) == 3000


def test_settings_of_training_code_are_passed_over(tmp_path):
    namespace = argparse.Namespace(lr=0.1, path=pathlib.PurePosixPath("/data"))
    namespace.itself = namespace
    tree = {"state_dict": {"a": SIX}, "hyper_parameters": namespace}
    for protocol in (2, 4):
        assert_same(read_tensors(write(tmp_path, pickle.dumps(tree, protocol))), {"a": SIX})


# What is no weight file.


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git-LFS pointer"),
        (b"\n<!DOCTYPE html>\n<html>", "web page"),
        (b"<html><head>", "web page"),
        (b"", "an empty file"),
        (b"\x7fELF12345678", r"12 bytes that begin with b'\\x7fELF12345678'"),
        (b"PK\x05\x06" + bytes(18), "22 bytes that begin"),
        (gzip.compress(b"weights", mtime=0), "compressed with gzip"),
        (bytes(257) + b"ustar\x0000", "a tar archive"),
        (b'\xef\xbb\xbf{"model_type": "maskformer"}', "a text, perhaps JSON"),
        (b"\x08\x0a\x12\x07pytorch", "an ONNX file"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    ],
)
def test_common_mistakes_are_named(tmp_path, data, message):
    path = write(tmp_path, data)
    with pytest.raises(UserError, match=f"{path}: .*{message}.*not a weight file that this package reads"):
        read_tensors(path)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (["a.npy", "b.npy"], r"arrays of numpy \(\.npz\)\. It holds \['a\.npy'"),
        (["model/data.pkl", "model/code/__torch__.py"], "a program of TorchScript"),
        (["m/archive_format", "m/models/model.json"], "a program of torch.export"),
        (["model.pth", "README"], "0 members named data.pkl.*extract them"),
    ],
)
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_other_zip_files_are_named(tmp_path, members, message, compression):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name in members:
            archive.writestr(name, b"")
    with pytest.raises(UserError, match=f"weights: .*{message}"):
        read_tensors(write(tmp_path, file.getvalue()))


def test_whole_models_are_told_to_save_their_state(tmp_path, torch, torch_saved):
    with pytest.raises(UserError, match=r"torch\.nn\.modules.*may be a whole model.*torch\.save\(model\.state_dict"):
        read_tensors(torch_saved(torch.nn.Linear(3, 2)))


def test_numbers_that_are_not_read_are_named(torch, torch_saved):
    for dtype in (torch.float8_e4m3fn, torch.complex64):
        with pytest.raises(UserError, match=r"tensors of torch\.(float8_e4m3fn|Complex).*tensor\.float\(\)"):
            read_tensors(torch_saved({"a": torch.ones(2).to(dtype)}))


def test_folders_of_other_tools_are_named(tmp_path):
    write(tmp_path, b"", ".metadata")
    write(tmp_path, b"", "__0_0.distcp")
    with pytest.raises(UserError, match=r"distributed checkpoint of torch.*dcp_to_torch"):
        read_tensors(str(tmp_path))
    below = tmp_path / "run" / "model"
    below.mkdir(parents=True)
    write(below, safetensors_bytes({"a": SIX}), "model.safetensors")
    with pytest.raises(UserError, match=rf"Weights are in {below}; give this path"):
        read_tensors(str(tmp_path / "run"))


def test_paths_without_weights(tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist"):
        read_tensors(str(tmp_path / "nowhere"))
    write(tmp_path, b"x", "config.json")
    with pytest.raises(UserError, match=r"none of \['model.safetensors.index.json'.*it holds \['config.json'\]"):
        read_tensors(str(tmp_path))
    (tmp_path / "pytorch_model.bin").mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        read_tensors(str(tmp_path))


# Damage of every kind.


def damaged(data, seed):
    """A few bytes changed, removed or put in."""
    chance = random.Random(seed)
    data = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(data))
        data[place : place + chance.randint(0, 2)] = chance.randbytes(chance.randint(0, 2))
    return bytes(data)


def fuzz(tmp_path, data):
    refused = 0
    for seed in range(150):
        try:
            found = read_tensors(write(tmp_path, damaged(data, seed)))
            assert all(isinstance(array, np.ndarray) for array in found.values())
        except UserError:
            refused += 1
    assert refused > 25


@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps({"model": FEW}, 2),
        pickle.dumps({"model": FEW}, 5),
        torch_zip({"a": tensor()}, SIX_RAW),
        torch_legacy({"a": tensor()}, SIX_RAW),
        safetensors_bytes({"a": SIX, "b": SIX}),
    ],
    ids=["numpy_2", "numpy_5", "torch_zip", "torch_legacy", "safetensors"],
)
def test_random_damage(tmp_path, data):
    fuzz(tmp_path, data)


def test_random_damage_to_files_of_torch(tmp_path, torch, torch_saved):
    state = dict(list(torch_state(torch).items())[-6:])
    with open(torch_saved({"model": state, "iteration": 3}), "rb") as file:
        fuzz(tmp_path, file.read())


def test_no_torch_is_needed_to_read(tmp_path):
    path = write(tmp_path, torch_zip({"a": tensor()}, SIX_RAW))
    block = "import sys; sys.modules['torch'] = None\n"
    read = f"from maskformer_jax.checkpoints.readers import read_tensors\nprint(read_tensors({path!r})['a'].shape)"
    done = subprocess.run([sys.executable, "-c", block + read], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout.strip() == "(2, 3)", done.stderr


def test_a_file_with_the_name_of_a_published_one_has_its_content(tmp_path, monkeypatch):
    name = "dinov2_vitl14_reg4_pretrain.pth"
    path = write(tmp_path, pickle.dumps({"weight": np.zeros(2, np.float32)}), name)
    with pytest.raises(UserError, match=r"is [0-9a-f]{64}, and that of the published file of this name 36e4deff"):
        read_tensors(path)
    found = hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()
    monkeypatch.setitem(known_files.SHA256, name, found)
    assert list(read_tensors(path)) == ["weight"]


def test_known_hashes_are_complete_and_documented():
    page = (ROOT / "docs" / "weights.md").read_text()
    for name, digest in known_files.SHA256.items():
        assert re.fullmatch(r"[0-9a-f]{64}", digest)
        stated = re.search(r"-([0-9a-f]{8})\.pth$", name)  # by the rule of torch.hub
        assert not stated or digest.startswith(stated[1])
        assert f"| `{name}` | `{digest}` |\n" in page
