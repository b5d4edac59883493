"""Tensors in files, one by one: safetensors (whole or in shards), and what torch.save writes, which is read as data.

Both kinds come to the same: a Tensor says where its bytes lie, and reading one touches no others, so that memory holds
one tensor at a time. A `.pth` is a zip of a pickle and of one uncompressed file per storage. A pickle is a program; the
one here can call nothing but `_rebuild_tensor_v2` and the like, which are replaced by functions of this file that note
shapes and offsets, and anything else that it asks for is refused.
"""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from sora_jax.errors import InputError

DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
STORAGES = {"FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16"}
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
HEADER = 100_000_000  # bytes of the longest header that safetensors allows


class Tensor(NamedTuple):
    """A tensor in a file: where it begins, in bytes, and its strides, in elements (None: it lies in order)."""

    path: Path
    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None


def read(tensor: Tensor) -> np.ndarray:
    """The tensor's values, in memory. Raises InputError when the file ends before it does."""
    strides = tensor.strides
    count = int(np.prod(tensor.shape))
    span = count if strides is None or not count else 1 + sum((n - 1) * s for n, s in zip(tensor.shape, strides))
    flat = np.fromfile(tensor.path, tensor.dtype, span, offset=tensor.offset)
    if len(flat) != span:
        raise InputError(f"{tensor.path} is damaged or cut short: copy it again")
    if strides is None or not count:
        return flat.reshape(tensor.shape)
    return np.lib.stride_tricks.as_strided(flat, tensor.shape, [s * flat.itemsize for s in strides], writeable=False)


def tensors(paths: Sequence[Path]) -> dict[str, Tensor]:
    """All tensors of a checkpoint's files by name, none of them read.

    Raises InputError: a file that is damaged, holds anything but float32, float16 and bfloat16 tensors, or repeats a
    name of another.
    """
    found: dict[str, Tensor] = {}
    for path in paths:
        inside = safetensors(path) if path.suffix == ".safetensors" else torch(path)
        for name in found.keys() & inside.keys():
            raise InputError(f"{found[name].path} and {path} both hold {name}: give the files of one checkpoint")
        found |= inside
    return found


def checkpoints(source: Path) -> list[list[Path]]:
    """The checkpoints in a folder, or the one that a file is: for each, its files. Shards that an index lists are one.

    Raises InputError when there is no such file or folder, or a shard that an index lists is missing.
    """
    if source.is_file():
        return [shards(source)] if source.name.endswith(".index.json") else [[source]]
    if not source.is_dir():
        raise InputError(f"there is no file or folder {source}")
    found, taken = [], set()
    for path in sorted(source.rglob("*.index.json")):
        found.append(shards(path))
        taken |= set(found[-1])
    for path in sorted(source.rglob("*")):
        if path.suffix in SUFFIXES and path not in taken and path.is_file():
            found.append([path])
    return found


def shards(index: Path) -> list[Path]:
    """The files that an index of shards lists. Raises InputError when it lists none, or one is missing."""
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        paths = [index.parent / name for name in names]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{index} is not an index of shards") from None
    for path in paths:
        if not path.is_file():
            raise InputError(f"{index} lists {path.name}, which is not there: copy it too")
    return paths


# ------------------------------------------------------------------------------------------------ safetensors


def safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file: 8 bytes of length, a JSON header, bytes. Raises InputError as `tensors`."""
    broken = InputError(f"{path} is damaged or cut short: copy it again")
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(HEADER, size - 8):
            raise broken
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            facts = [(name, e["dtype"], tuple(e["shape"]), *e["data_offsets"]) for name, e in header.items()]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise broken from None
    found = {}
    for name, dtype, shape, begin, end in facts:
        if dtype not in DTYPES:
            raise InputError(f"{path}: {name} is stored as {dtype}; only {', '.join(DTYPES)} can be read")
        if end - begin != int(np.prod(shape)) * DTYPES[dtype].itemsize or not 0 <= begin <= end <= size - 8 - length:
            raise broken
        found[name] = Tensor(path, 8 + length + begin, DTYPES[dtype], shape)
    return found


def about(path: Path) -> dict[str, str]:
    """What the header of a safetensors file says of itself (`__metadata__`); the file must have been read before."""
    with open(path, "rb") as file:
        return json.loads(file.read(int.from_bytes(file.read(8), "little"))).get("__metadata__") or {}


class Writer:
    """A safetensors file whose tensors, or slices of them, are written in any order: as large as it will be from the
    beginning, its header first. To be used in a `with`."""

    def __init__(
        self,
        path: Path,
        entries: Mapping[str, tuple[np.dtype, tuple[int, ...]]],
        about: Mapping[str, str] | None = None,
    ):
        codes = {dtype: code for code, dtype in DTYPES.items()}
        header, at = {}, 0
        # as the format asks: no holes, and what needs the widest alignment first
        for name, (dtype, shape) in sorted(entries.items(), key=lambda e: (-e[1][0].itemsize, e[0])):
            end = at + int(np.prod(shape)) * dtype.itemsize
            header[name] = {"dtype": codes[dtype], "shape": list(shape), "data_offsets": [at, end]}
            at = end
        whole = {"__metadata__": about, **header} if about else header
        text = json.dumps(whole, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        start = 8 + len(text)
        self.places = {n: Tensor(path, start + e["data_offsets"][0], *entries[n]) for n, e in header.items()}
        self.file = open(path, "wb")  # noqa: SIM115 (closed by __exit__)
        self.file.write(len(text).to_bytes(8, "little") + text)
        self.file.truncate(start + at)

    def write(self, name: str, values: np.ndarray, index: int | None = None) -> None:
        """Puts a whole tensor in its place, or the `index`-th slice of its first dimension."""
        at = self.places[name]
        shape = at.shape if index is None else at.shape[1:]
        assert values.shape == shape, (name, values.shape, shape)
        values = np.ascontiguousarray(values, at.dtype)
        self.file.seek(at.offset + (index or 0) * values.nbytes)
        values.tofile(self.file) if values.nbytes else None

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_) -> None:
        self.file.close()


# ------------------------------------------------------------------------------------------------ torch.save


class _Storage(NamedTuple):
    """A storage's file inside the archive; in the pickle it stands for the storage itself."""

    dtype: np.dtype
    offset: int
    count: int


class _Loader(pickle.Unpickler):
    """The pickle of a state dict and of nothing else: names of tensors, and Tensors without their values."""

    def __init__(self, file, path: Path, archive: zipfile.ZipFile, folder: str):
        super().__init__(file)
        self.path, self.archive, self.folder = path, archive, folder
        self.known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): self.tensor,
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
            **{("torch", name): code for name, code in STORAGES.items()},
        }

    def find_class(self, module: str, name: str):
        if (module, name) not in self.known:
            raise InputError(
                f"{self.path} holds {module}.{name}, which is no plain tensor of float32, float16 or bfloat16: "
                "it is not run; save the state dict alone"
            )
        return self.known[module, name]

    def persistent_load(self, pid) -> _Storage:
        kind, code, key, _, count = pid
        info = self.archive.getinfo(f"{self.folder}/data/{key}")
        if kind != "storage" or code not in DTYPES or info.compress_type != zipfile.ZIP_STORED:
            raise InputError(f"{self.path} was not written by torch.save")
        with open(self.path, "rb") as file:  # a local header's name and extra field have their own lengths
            file.seek(info.header_offset + 26)
            name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
        begin = info.header_offset + 30 + name + extra
        if count * DTYPES[code].itemsize > info.file_size:
            raise InputError(f"{self.path} is damaged or cut short: copy it again")
        return _Storage(DTYPES[code], begin, count)

    def tensor(self, storage: _Storage, offset: int, shape: tuple, strides: tuple, *_) -> Tensor:
        span = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) if np.prod(shape) else 0
        if min((offset, *shape, *strides)) < 0 or offset + span > storage.count:
            raise InputError(f"{self.path} is damaged or cut short: copy it again")
        begin = storage.offset + offset * storage.dtype.itemsize
        dense = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
        return Tensor(self.path, begin, storage.dtype, tuple(shape), None if strides == dense else tuple(strides))


def torch(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict that torch.save wrote; nothing in the pickle is executed.

    Raises InputError: no such file, or one that holds anything else (see `tensors`).
    """
    try:
        with zipfile.ZipFile(path) as archive:
            [pickled] = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            folder = os.path.dirname(pickled)
            if f"{folder}/byteorder" in archive.namelist() and archive.read(f"{folder}/byteorder") != b"little":
                raise InputError(f"{path} was written on a big-endian machine: save it again on another")
            with archive.open(pickled) as file:
                state = _Loader(file, path, archive, folder).load()
    except InputError:
        raise
    except Exception as error:  # whatever bytes that mean nothing can make of a zip and a pickle
        raise InputError(
            f"{path} is not a checkpoint that torch.save wrote ({error or type(error).__name__})"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise InputError(f"{path} holds more than names and tensors: save the state dict alone")
    return dict(state)
