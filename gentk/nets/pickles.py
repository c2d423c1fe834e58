"""Pickles of models read as data: nothing that a file holds or names is ever run.

    written by                       container          read here
    NVlabs/edm and its descendants   plain pickle       objects as records; the Python source inside them is dropped
    torch.save since torch 1.6       zip with data.pkl  the same reader; tensors are mapped from the file, not copied
    torch.save before                several pickles    torch.load(weights_only=True)

What a file may name stands in `_TABLE`; `gentk.nets.inert` does the reading. numpy's scalars, for which `weights_only`
refuses whole training checkpoints, become Python numbers without numpy.
"""

from __future__ import annotations

import math
import pickle
import struct
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from gentk.errors import GentkError, MissingAsset
from gentk.nets.inert import Bounded, Damaged, Entry, Record, Refused, run, what

_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of torch's old format
_MOST_MODULES = 100_000  # a model has a few thousand; shared or circular references could stand for any number
_LOOKS = {b"<": "a web page", b"version https://git-lfs": "a Git LFS pointer"}  # neither begins a pickle
_AGAIN = "fetch the file again, and compare its sha256 with its publisher's"


def read(path: Path) -> Any:
    """What the pickle or torch file holds: dicts, lists, numbers, strings, tensors on the CPU and `Record`s.

    Raises MissingAsset where there is no file; GentkError, naming the file, for a global that no model needs (and which
    it was), a file that is broken off or damaged, and what is no pickle.
    """
    if not path.is_file():
        raise MissingAsset(f"{path}: no such file", hint="give the path of a file, a URL, a hub id or a known name")
    try:
        return _content(path)
    except Refused as error:
        raise GentkError(
            f"{path}: {error}: refused; nothing of the file was run",
            hint="no model's file needs that: do not trust this one, nor load it by other means",
        ) from error
    except EOFError as error:
        raise GentkError(f"{path}: broken off", hint=_AGAIN) from error
    except OSError as error:
        raise GentkError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # a file can be wrong in more ways than there are classes for
        kind = "" if isinstance(error, Damaged) else "damaged, or no file of a model: "
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise GentkError(f"{path}: {kind}{why}", hint=_AGAIN) from error


def _content(path: Path) -> Any:
    with path.open("rb") as file:
        head = file.read(64)
        file.seek(0)
        if head[:2] == b"PK":
            return _zip(path, file)
        if not head:
            raise Damaged("the file is empty")
        if kind := next((kind for mark, kind in _LOOKS.items() if head.lstrip().startswith(mark)), None):
            raise Damaged(f"not a model but {kind}: it begins with {head[:24]!r}")
        found = run(Bounded(file, path.stat().st_size), _TABLE)
    return _weights_only(path) if found == _MAGIC else found


def state_dict(module: Any) -> dict[str, Tensor]:
    """The tensors of a module's record by the names that `Module.state_dict` gives them.

    Raises GentkError for what is no module's record, or one that holds itself.
    """
    found: dict[str, Tensor] = {}
    waiting = [("", module)]
    for _ in range(_MOST_MODULES):
        if not waiting:
            return found
        prefix, record = waiting.pop()
        parts = _parts(record)
        if parts is None:
            raise GentkError(f"`{prefix.rstrip('.') or 'the model'}` is no network but {what(record)}")
        modules, tensors = parts
        found |= {f"{prefix}{name}": tensor for name, tensor in tensors.items() if isinstance(tensor, Tensor)}
        children = [(f"{prefix}{name}.", child) for name, child in modules.items() if child is not None]
        waiting += reversed(children[:_MOST_MODULES])
    raise GentkError(f"more than {_MOST_MODULES:,} modules: one that holds itself, or a trap")


def _parts(record: Any) -> tuple[dict[Any, Any], dict[Any, Any]] | None:
    """Modules and tensors by name of a module's record; None for anything else."""
    state = record.state if isinstance(record, Record) else None
    if not isinstance(state, dict):
        return None
    modules, parameters, buffers = (state.get(name, {}) for name in ("_modules", "_parameters", "_buffers"))
    passing = state.get("_non_persistent_buffers_set", set())
    if not all(isinstance(each, dict) for each in (modules, parameters, buffers)) or not isinstance(passing, set):
        return None
    return modules, parameters | {name: buffer for name, buffer in buffers.items() if name not in passing}


def _persistent(meta: Any) -> Record:
    """An object of a class that NVlabs' persistence decorates; its `module_src` is dropped, never compiled."""
    if not isinstance(meta, dict) or meta.get("type") != "class" or not isinstance(meta.get("class_name"), str):
        raise Damaged("an object without type and class name")
    return Record(meta["class_name"], meta.get("state"))


def _storage(content: Any) -> Tensor:
    """The flat tensor of a storage inside the pickle. torch's own function would run a second pickle here."""
    if not isinstance(content, bytes):
        raise Damaged("a tensor's content is not bytes")
    found = _weights_only(BytesIO(content))
    if isinstance(found, torch.storage.TypedStorage):
        return torch.empty(0, dtype=found.dtype).set_(found._untyped_storage)
    raise Damaged(f"a tensor's content is {what(found)}")


def _tensor(flat: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    """A view of a storage, no larger than it. `requires_grad`, hooks and metadata are dropped."""
    if not isinstance(flat, Tensor) or not isinstance(size, tuple) or not isinstance(stride, tuple):
        raise Damaged("a tensor without storage or shape")
    if len(size) != len(stride) or not all(isinstance(n, int) and n >= 0 for n in (offset, *size, *stride)):
        raise Damaged(f"a tensor of shape {size} and strides {stride}")
    count = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if count else 0
    if count > flat.numel() or last >= max(1, flat.numel()):
        raise Damaged(f"a tensor of shape {size} where its storage has {flat.numel()} elements")
    return flat.as_strided(
        size, stride, flat.storage_offset() + offset
    )  # the offset counts from the whole file's start


def _parameter(data: Any, *_: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise Damaged(f"a parameter is {what(data)}")
    return data


def _encoded(text: Any, encoding: Any) -> bytes:
    """Bytes as old protocols spell them."""
    if not isinstance(text, str) or encoding != "latin1":
        raise Refused(f"asks for the codec {encoding!r}")
    return text.encode("latin1")


_NUMBERS = {"f8": "d", "f4": "f", "f2": "e", "b1": "?"}
_NUMBERS |= {"i8": "q", "i4": "i", "i2": "h", "i1": "b", "u8": "Q", "u4": "I", "u2": "H", "u1": "B"}


def _dtype(code: Any, *_: Any) -> Record:
    """A dtype by its code, `f8`; the byte order comes as its state."""
    if code not in _NUMBERS:
        raise Damaged(f"a number of numpy's type {code!r}")
    return Record(code)


def _scalar(dtype: Any, content: Any) -> Any:
    """A number of numpy's as Python's."""
    if not isinstance(dtype, Record) or not isinstance(content, bytes):
        raise Damaged("a number without type or content")
    order = dtype.state[1] if isinstance(dtype.state, tuple) and len(dtype.state) > 1 else "<"
    return struct.unpack((">" if order == ">" else "<") + _NUMBERS[dtype.name], content)[0]


_STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def _container(name: str) -> Entry:
    return Entry(lambda *_: Record(name))


_TABLE: dict[tuple[str, str], Any] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): Entry(_persistent),
    ("collections", "OrderedDict"): Entry(lambda *items: dict(*items)),
    ("dnnlib.util", "EasyDict"): Entry(lambda *items: dict(*items)),
    ("builtins", "set"): Entry(lambda *items: set(*items)),
    ("__builtin__", "set"): Entry(lambda *items: set(*items)),
    ("_codecs", "encode"): Entry(_encoded),
    ("torch", "Size"): Entry(lambda *sizes: tuple(*sizes)),
    ("torch._utils", "_rebuild_tensor_v2"): Entry(_tensor),
    ("torch._utils", "_rebuild_parameter"): Entry(_parameter),
    ("torch.storage", "_load_from_bytes"): Entry(_storage),
    ("numpy", "dtype"): Entry(_dtype),
    **{(f"numpy.{core}.multiarray", "scalar"): Entry(_scalar) for core in ("core", "_core")},
    **{("torch.nn.modules.container", name): _container(name) for name in ("ModuleDict", "ModuleList", "Sequential")},
    **{("torch", name): dtype for name, dtype in _STORAGES.items()},
    **{("torch", str(dtype).removeprefix("torch.")): str(dtype) for dtype in _STORAGES.values()},
}


def _zip(path: Path, file: IO[bytes]) -> Any:
    """The content of a torch file in zip form; its tensors are the file's own bytes, mapped into memory."""
    with zipfile.ZipFile(file) as archive:
        roots = [name.removesuffix("data.pkl") for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise Damaged(f"a zip with {len(roots)} files data.pkl where torch.save writes one")
        (root,) = roots
        if any(each.compress_type != zipfile.ZIP_STORED for each in archive.infolist()):
            raise Damaged("a compressed zip; torch.save writes none")
        if (order := root + "byteorder") in archive.namelist() and archive.read(order) != b"little":
            raise Damaged("its numbers have the other byte order")
        if damaged := archive.testzip():
            raise Damaged(f"`{damaged}` in it is damaged")
        pickled = archive.read(root + "data.pkl")
        storages = _mapped(path, file, {each.filename: each for each in archive.infolist()}, root)
        return run(Bounded(BytesIO(pickled), len(pickled)), _TABLE, storages)


def _mapped(path: Path, file: IO[bytes], entries: dict[str, zipfile.ZipInfo], root: str) -> Callable[[Any], Tensor]:
    """(id of a storage) -> its flat tensor, a part of the file at `path`."""
    content = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)

    def storage(pid: Any) -> Tensor:
        match pid:
            case ("storage", torch.dtype() as dtype, str(key), _, int(count)) if count >= 0:
                entry = entries[f"{root}data/{key}"]
            case _:
                raise Damaged("a tensor's storage is not described as torch does")
        file.seek(entry.header_offset + 26)  # the lengths of name and extra field, which the content follows
        start = entry.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))
        length = count * dtype.itemsize
        if entry.file_size < length or len(content) < start + length:
            raise Damaged(f"`{entry.filename}` in it is too short")
        flat = content[start : start + length]
        return (flat.clone() if start % dtype.itemsize else flat).view(dtype)

    return storage


def _weights_only(source: Path | BytesIO) -> Any:
    """torch's own careful reading; what it refuses is told by the one line of its essay that says what."""
    try:
        return torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = [line.strip() for line in str(error).splitlines() if "GLOBAL" in line or "Unsupported" in line]
        if named:
            raise Refused(f"torch.load: {named[0]}") from error
        raise Damaged(f"torch.load: {str(error).splitlines()[0]}") from error
