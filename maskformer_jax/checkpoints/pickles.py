"""Pickled weights as numpy arrays; nothing that the file names is executed.

Files are pickles, or what torch.save writes around pickles: a zip file with the bytes of the tensors in members of
their own, or before version 1.6 a stream with these bytes at its end.
"""

import io
import zipfile
from typing import Any

from maskformer_jax.checkpoints.pickle_machine import Builder, Machine, Steps, checked_key
from maskformer_jax.errors import UserError

TORCH_MAGIC = 0x1950A86A20F9469CFC6C
# Arrays in foreign byte or element order are copied, and one range of bytes may serve many of them.
COPIES_PER_BYTE = 4


def load(data: bytes, origin: str) -> Any:
    """The object in a pickle, or in a file of torch.save in its zip format or in its format before version 1.6.

    Args:
        data: the whole file.
        origin: the file, for messages.

    Returns:
        Dicts, lists, tuples, numbers and text as in the file. Tensors and arrays become numpy arrays in native byte
        order, contiguous, and possibly read-only; anything else (a torch.device, a dtype) becomes inert data.

    Raises:
        UserError: if the file asks for anything but data, or is damaged. Nothing was executed.
    """
    try:
        return _load_zip(data, origin) if data[:2] == b"PK" else _load_stream(data, origin)
    except UserError:
        raise
    except Exception as error:
        # Damaged bytes raise errors of many types in pickletools, zipfile and numpy.
        raise UserError(
            f"{origin}: truncated or damaged ({type(error).__name__}: {str(error)[:200]}); expected weights as "
            "pickle or torch.save writes them. Download it again."
        ) from None


def _load_zip(data: bytes, origin: str) -> Any:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = archive.namelist()
        folder = _folder(names, origin)
        members = _members(archive, len(data))
    tree = Machine(io.BytesIO(members[f"{folder}data.pkl"]), origin, Steps(len(data))).run()
    start = f"{folder}data/"
    storages = {name.removeprefix(start): raw for name, raw in members.items() if name.startswith(start)}
    order = ">" if members.get(f"{folder}byteorder") == b"big" else "<"
    return Builder(storages, order, COPIES_PER_BYTE * len(data)).build(tree)


def _folder(names: list[str], origin: str) -> str:
    """Where torch.save has put everything in a zip file, with a slash; raises UserError for other zip files."""
    pickles = [name for name in names if name.rpartition("/")[2] == "data.pkl"]
    folder = pickles[0].removesuffix("data.pkl") if len(pickles) == 1 else ""
    if any(name.startswith(f"{folder}code/") for name in names):
        raise UserError(
            f"{origin}: a program of TorchScript. Load it with torch.jit.load, and save its state_dict with torch.save."
        )
    if len(pickles) != 1:
        if names and all(name.endswith(".npy") for name in names):
            kind = "arrays of numpy (.npz)"
        elif any(name.endswith(("serialized_exported_program.json", "archive_format")) for name in names):
            kind = "a program of torch.export"
        else:
            kind = f"a zip file with {len(pickles)} members named data.pkl; torch.save writes one"
        raise UserError(
            f"{origin}: {kind}. It holds {sorted(names)[:5]}. If it is an archive of weight files, extract them and "
            "give the path of one; otherwise save the state_dict of its model with torch.save."
        )
    return folder


def _members(archive: zipfile.ZipFile, size: int) -> dict[str, bytes]:
    """The files in a zip file of that size, which together must not be larger."""
    entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise zipfile.BadZipFile("compressed members, which torch.save does not write")
    if sum(entry.file_size for entry in entries) > size:
        raise zipfile.BadZipFile("its members are larger than the file")
    return {entry.filename: archive.read(entry) for entry in entries}


def _load_stream(data: bytes, origin: str) -> Any:
    stream, steps = io.BytesIO(data), Steps(len(data))
    tree, storages = Machine(stream, origin, steps).run(), {}
    if type(tree) is int and tree == TORCH_MAGIC:
        tree, storages = _read_legacy(stream, origin, steps)
    return Builder(storages, "<", COPIES_PER_BYTE * len(data)).build(tree)


def _read_legacy(stream: io.BytesIO, origin: str, steps: Steps) -> tuple[Any, dict[str, bytes]]:
    """The rest of a file of torch before 1.6, after its magic number: the object, and the storages by key."""
    for _ in ("protocol version", "system"):
        Machine(stream, origin, steps).run()
    machine, storages = Machine(stream, origin, steps), {}
    tree = machine.run()
    for key in Machine(stream, origin, steps).run():
        length = int.from_bytes(stream.read(8), "little")
        storages[key] = stream.read(length * machine.storages[checked_key(key)].dtype.itemsize)
    return tree, storages
