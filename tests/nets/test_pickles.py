"""The reader of pickles: what models' files hold comes out exact, and nothing that any file holds is ever run."""

from __future__ import annotations

import builtins
import copyreg
import importlib
import io
import os
import pickle
import struct
import sys
import time
import tracemalloc
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gentk.errors import GentkError, MissingAsset
from gentk.nets import inert, pickles
from tests.nets import edm_files


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.pkl"


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A file that hostile payloads make."""
    return tmp_path / "canary"


def state() -> dict[str, Tensor]:
    gen = torch.Generator().manual_seed(1)
    shapes = {"map_layer0.weight": (4, 3), "enc.8x8_conv.bias": (5,), "enc.8x8_down.conv0.weight": (2,)}
    found = {f"model.{name}": torch.randn(shape, generator=gen) for name, shape in shapes.items()}
    return found | {"model.enc.8x8_down.conv0.resample_filter": torch.full((1, 1, 2, 2), 0.25)}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_network_in_nvlabs_layout(path: Path, protocol: int) -> None:
    ema = edm_files.network(state(), kwargs={"img_resolution": 8, "model_type": "SongUNet"}, sigma_data=0.5)
    before = set(sys.modules)
    edm_files.write(path, {"ema": ema, "loss_fn": edm_files.Persistent("EDMLoss", {}), "augment_pipe": None}, protocol)
    content = pickles.read(path)
    assert list(content) == ["ema", "loss_fn", "augment_pipe"]
    assert content["ema"].name == "EDMPrecond"
    assert content["ema"].get("_init_kwargs") == {"img_resolution": 8, "model_type": "SongUNet"}
    assert content["ema"].get("sigma_data") == 0.5
    found = pickles.state_dict(content["ema"])
    assert {k: v.tolist() for k, v in found.items()} == {k: v.tolist() for k, v in state().items()}
    assert not any(each.requires_grad for each in found.values())
    assert not {"torch_utils", "dnnlib"} & (set(sys.modules) - before)


def test_the_bomb_is_one() -> None:
    """The source in those files would end the process, were it run."""
    pid = os.fork()
    if not pid:
        exec(edm_files.BOMB)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 86


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("container", ["pickle", "zip", "legacy"])
def test_tensors_of_every_kind(path: Path, dtype: torch.dtype, container: str) -> None:
    base = torch.arange(24).reshape(4, 6).to(dtype)
    kept = {"whole": base, "view": base[1:3, ::2], "turned": base.T, "one": torch.tensor(3).to(dtype), "none": base[:0]}
    if container == "pickle":
        path.write_bytes(pickle.dumps(OrderedDict(kept)))
    else:
        torch.save(OrderedDict(kept), path, _use_new_zipfile_serialization=container == "zip")
    assert same(pickles.read(path), kept)


def test_numbers_of_numpy_without_numpy(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training checkpoint holds a learning rate of numpy's, for which torch refuses the whole of it."""
    kinds = (np.float64, np.float32, np.float16, np.int64, np.int8, np.uint16, np.bool_)
    numbers = {kind.__name__: kind(1.5 if issubclass(kind, np.floating) else 1) for kind in kinds}
    numbers["big"] = np.array(2.5, ">f8")[()]
    content = {"lr": numbers, "model": {"module.w": torch.ones(2)}, "step": 7}
    for protocol in (2, 4):
        path.write_bytes(pickle.dumps(numbers, protocol))
        assert pickles.read(path) == {k: v.item() for k, v in numbers.items()}
    torch.save(content, path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    monkeypatch.setitem(sys.modules, "numpy", None)  # not to be imported
    found = pickles.read(path)
    assert found["lr"] == {k: v.item() for k, v in numbers.items()}
    assert all(type(v) in (float, int, bool) for v in found["lr"].values())
    assert found["model"]["module.w"].tolist() == [1, 1]


def test_numbers_by_the_name_that_numpy_1_gives(path: Path) -> None:
    path.write_bytes(pickle.dumps(np.float64(0.1), 2).replace(b"cnumpy._core.", b"cnumpy.core."))
    assert b"numpy.core.multiarray" in path.read_bytes()
    assert pickles.read(path) == 0.1


def test_a_zip_is_mapped_and_not_copied(path: Path) -> None:
    torch.save({"a": torch.zeros(1_000_000), "b": [torch.ones(2_000_000)]}, path)
    tracemalloc.start()
    found = pickles.read(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3_000_000  # of 12
    assert found["b"][0].sum() == 2_000_000


class Call:
    """Pickles to a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __call__(self) -> None:
        """Only what can be called is pickled in the place of a function."""

    def __reduce__(self) -> Any:
        return self.call


def touch(place: Path) -> str:
    return f"open({str(place)!r}, 'w').close()"


CALLS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "system": (lambda c: Call(os.system, f"touch {c}"), "posix.system"),
    "exec": (lambda c: Call(exec, touch(c)), "builtins.exec"),
    "eval": (lambda c: Call(eval, touch(c)), "builtins.eval"),
    "open": (lambda c: Call(open, str(c), "w"), "io.open"),
    "import": (lambda c: Call(__import__, "antigravity"), "builtins.__import__"),
    "getattr": (
        lambda c: Call(Call(getattr, Call(importlib.import_module, "os"), "system"), f"touch {c}"),
        "builtins.getattr",
    ),
    "chain": (lambda c: Call(list, Call(map, exec, [touch(c)])), "builtins.list"),
    "torch.load": (lambda c: Call(torch.load, str(c)), "torch.serialization.load"),
    "hub": (lambda c: Call(torch.hub.load, "a/b", "c"), "torch.hub.load"),
    "module": (lambda c: nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
    "array": (lambda c: np.zeros(3), "numpy._core."),
    "inside": (lambda c: {"a": [({1: (Call(os.system, f"touch {c}"),)},)]}, "posix.system"),
    "record": (lambda c: edm_files.Persistent("X", {"_modules": Call(exec, touch(c))}), "builtins.exec"),
    "kind": (lambda c: edm_files.Persistent(Call(eval, touch(c)), {}), "builtins.eval"),
    "default": (lambda c: __import__("collections").defaultdict(list), "collections.defaultdict"),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
def test_calls_are_refused(name: str, protocol: int, path: Path, canary: Path) -> None:
    make, wanted = CALLS[name]
    edm_files.write(path, make(canary), protocol)
    with pytest.raises(GentkError) as refusal:
        pickles.read(path)
    wanted = wanted.replace("builtins", "__builtin__") if protocol < 3 else wanted
    said = str(refusal.value)
    assert said.startswith(f"{path}: ")
    assert "asks for `" in said
    if protocol > 3 and name not in ("getattr", "chain"):  # those name several, of which one comes first
        assert f"asks for `{wanted}" in said
        assert said.endswith("`: refused; nothing of the file was run")
    assert not canary.exists()


@pytest.mark.parametrize("name", ["system", "exec", "eval", "inside"])
def test_the_canary_sings(name: str, canary: Path) -> None:
    """The same payloads, loaded as `pickle` does, run."""
    pickle.loads(pickle.dumps(CALLS[name][0](canary)))
    assert canary.exists()


def hostile(code: bytes, canary: Path, at: bytes = b"CANARY") -> bytes:
    return code.replace(at, str(canary).encode())


REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
PROGRAMS: dict[str, tuple[bytes, str]] = {
    "protocol 0": (b"cos\nsystem\n(S'touch CANARY'\ntR.", "asks for `os.system`"),
    "INST": (b"(S'touch CANARY'\nios\nsystem\n.", "asks for `os.system`"),
    "INST of ours": (b"(icollections\nOrderedDict\n.", "protocol 0"),
    "OBJ": (b"(cos\nsystem\nS'touch CANARY'\no.", "asks for `os.system`"),
    "OBJ of ours": (b"(ccollections\nOrderedDict\no.", "instruction OBJ"),
    "STACK_GLOBAL by memo": (b"\x80\x04\x8c\x06system\x94\x8c\x02os\x94h\x01h\x00\x93.", "asks for `os.system`"),
    "dotted": (b"\x80\x04\x8c\x05torch\x8c\x0cSize.__new__\x93.", "asks for `torch.Size.__new__`"),
    "dotted module": (b"\x80\x04\x8c\x05torch\x8c\x0bhub.os.open\x93.", "asks for `torch.hub.os.open`"),
    "no string": (b"\x80\x04K\x01]\x93.", "asks for `1.[]`"),
    "BUILD on a function": (REBUILD + b"}S'_call'\nS'x'\nsb.", "set attributes on a entry"),
    "BUILD with slots": (REBUILD + b"N}S'_call'\nS'x'\ns\x86b.", "set attributes on a entry"),
    "BUILD on a list": (b"]}S'append'\nS'x'\nsb.", "set attributes on a list"),
    "BUILD on a dtype": (b"ctorch\nFloatStorage\n}b.", "set attributes on a dtype"),
    "REDUCE a string": (b"S'os'\n)R.", "asks to call a str"),
    "REDUCE a record": (b"ctorch.nn.modules.container\nModuleList\n)\x81)R.", "asks to call a ModuleList"),
    "REDUCE without a tuple": (b"ccollections\nOrderedDict\n]R.", "asks to call"),
    "NEWOBJ of a number": (b"K\x01)\x81.", "asks to call a int"),
    "NEWOBJ_EX": (b"\x80\x04ccollections\nOrderedDict\n)}\x92.", "instruction NEWOBJ_EX"),
    "APPENDS to a record": (b"ctorch.nn.modules.container\nModuleList\n)\x81(K\x01e.", "asks to fill a ModuleList"),
    "PERSID": (b"Pos\n.", "instruction PERSID"),
    "BINPERSID": (b"K\x01Q.", "instruction BINPERSID"),
    "EXT1": (b"\x80\x02\x82\x7b)R.", "instruction EXT1"),
    "NEXT_BUFFER": (b"\x80\x05\x97.", "instruction NEXT_BUFFER"),
    "BYTEARRAY8": (b"\x80\x05\x96\x01\0\0\0\0\0\0\0x.", "instruction BYTEARRAY8"),
    "codec": (b"c_codecs\nencode\n(S'x'\nS'rot13'\ntR.", "codec 'rot13'"),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_are_refused(name: str, path: Path, canary: Path) -> None:
    if name == "EXT1":  # as some package may have registered it
        copyreg.add_extension("builtins", "list", 0x7B)
    code, text = PROGRAMS[name]
    path.write_bytes(hostile(code, canary))
    try:
        with pytest.raises(GentkError, match="refused; nothing of the file was run") as refusal:
            pickles.read(path)
    finally:
        if name == "EXT1":
            copyreg.remove_extension("builtins", "list", 0x7B)
    assert str(refusal.value).startswith(f"{path}: ")
    assert text in str(refusal.value)
    assert not canary.exists()


def test_nothing_can_be_set_on_what_a_global_stands_for() -> None:
    for entry in pickles._TABLE.values():
        if isinstance(entry, inert.Entry):
            with pytest.raises(inert.Refused):
                entry._call = print
            with pytest.raises(inert.Refused):
                entry.other = 1  # type: ignore[attr-defined]
            assert not hasattr(entry, "__dict__")
    assert not hasattr(inert.Record("x"), "__dict__")


class Bytes:
    """Pickles to the call that holds a tensor's content."""

    def __init__(self, content: Any) -> None:
        self.content = content

    def __reduce__(self) -> Any:
        return torch.storage._load_from_bytes, (self.content,)  # type: ignore[attr-defined]


@pytest.mark.parametrize("form", ["legacy", "zip", "pickle"])
@pytest.mark.parametrize("name", ["system", "exec", "eval", "getattr", "inside", "module"])
def test_a_second_pickle_in_a_tensor_is_refused(form: str, name: str, path: Path, canary: Path) -> None:
    payload, held = CALLS[name][0](canary), io.BytesIO()
    if form == "pickle":
        held.write(pickle.dumps(payload))
    else:
        torch.save(payload, held, _use_new_zipfile_serialization=form == "zip")
    path.write_bytes(pickle.dumps({"ema": Bytes(held.getvalue())}))
    with pytest.raises(GentkError, match=str(path)) as refusal:
        pickles.read(path)
    if form != "pickle":
        assert "refused; nothing of the file was run" in str(refusal.value)
        assert "GLOBAL" in str(refusal.value) or "Unsupported" in str(refusal.value)
    assert not canary.exists()
    if name in ("system", "exec") and form != "pickle":  # by the stock function it runs
        pickle.loads(path.read_bytes())
        assert canary.exists()


@pytest.mark.parametrize("content", [torch.ones(2), {"a": 1}, 3])
def test_a_tensors_content_must_be_a_storage(content: Any, path: Path) -> None:
    held = io.BytesIO()
    torch.save(content, held)
    path.write_bytes(pickle.dumps(Bytes(held.getvalue())))
    with pytest.raises(GentkError, match=r"a tensor's content is a (tensor|dict|int)"):
        pickles.read(path)
    path.write_bytes(pickle.dumps(Bytes("text")))
    with pytest.raises(GentkError, match="content is not bytes"):
        pickles.read(path)


@pytest.mark.parametrize("form", ["legacy", "zip"])
@pytest.mark.parametrize("name", ["system", "exec", "getattr", "inside", "array"])
def test_torch_files_are_read_with_the_same_care(form: str, name: str, path: Path, canary: Path) -> None:
    torch.save({"model": CALLS[name][0](canary)}, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(GentkError, match="refused; nothing of the file was run") as refusal:
        pickles.read(path)
    assert str(refusal.value).startswith(f"{path}: ")
    assert not canary.exists()


class Tensors:
    """Pickles to a tensor's reconstruction with claims of one's own."""

    def __init__(self, *claims: Any) -> None:
        self.claims = claims

    def __reduce__(self) -> Any:
        return torch._utils._rebuild_tensor_v2, self.claims


@pytest.mark.parametrize(
    "claims",
    [
        (0, (10**9, 10**9), (0, 0)),
        (0, (5,), (1,)),
        (3, (2,), (1,)),
        (0, (2,), (9,)),
        (-1, (2,), (1,)),
        (0, (-2,), (1,)),
        (0, (2,), (1, 1)),
        (0, [2], (1,)),
        (0, (2.0,), (1,)),
        (2**62, (1,), (2**62,)),
    ],
)
def test_shapes_that_the_storage_does_not_bear(claims: tuple[Any, ...], path: Path) -> None:
    held = io.BytesIO()
    torch.save(torch.arange(4.0)._typed_storage(), held, _use_new_zipfile_serialization=False)
    path.write_bytes(pickle.dumps([Bytes(held.getvalue()), Tensors(Bytes(held.getvalue()), 1, (3,), (1,), True, {})]))
    assert pickles.read(path)[1].tolist() == [1, 2, 3]
    path.write_bytes(pickle.dumps(Tensors(Bytes(held.getvalue()), *claims, False, {})))
    with pytest.raises(GentkError, match=str(path)):
        pickles.read(path)


def claim(opcode: bytes, form: str, count: int) -> bytes:
    return b"\x80\x04" + opcode + struct.pack(form, count) + b"xx."


@pytest.mark.parametrize(
    "code",
    [
        claim(b"\x8e", "<Q", 2**40),
        claim(b"\x8e", "<Q", 2**63),
        claim(b"\x8d", "<Q", 2**62),
        claim(b"B", "<I", 2**32 - 1),
        claim(b"X", "<I", 2**32 - 1),
        claim(b"\x8b", "<i", 2**31 - 1),
        claim(b"\x8b", "<i", -1),
        b"\x80\x04I" + b"9" * 10_000 + b"\n.",
    ],
)
def test_huge_claims_cost_nothing(code: bytes, path: Path) -> None:
    path.write_bytes(code)
    tracemalloc.start()
    with pytest.raises(GentkError, match=r"broken off|damaged"):
        pickles.read(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


def test_a_place_in_the_memo_may_have_any_number(path: Path) -> None:
    """The unpickler in C sets aside as many places as the number says."""
    path.write_bytes(b"\x80\x02K\x07r\xff\xff\xff\xff0j\xff\xff\xff\xff.")
    tracemalloc.start()
    assert pickles.read(path) == 7
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_a_deep_nest_and_a_doubling_one(path: Path) -> None:
    path.write_bytes(b"\x80\x02N" + b"\x85" * 200_000 + b".")
    pickles.read(path)
    doubling = b"\x80\x02Nq\x00" + b"0h\x00h\x00\x86q\x00" * 200 + b"."
    path.write_bytes(doubling)
    start = time.perf_counter()
    pickles.read(path)
    assert time.perf_counter() - start < 2


def test_modules_without_end() -> None:
    loop = inert.Record("Loop", {"_modules": {}})
    loop.state["_modules"]["a"] = loop
    with pytest.raises(GentkError, match="holds itself"):
        pickles.state_dict(loop)
    leaf = inert.Record("Leaf", {"_modules": {}})
    for _ in range(60):
        leaf = inert.Record("Twice", {"_modules": {"a": leaf, "b": leaf}})
    with pytest.raises(GentkError, match="more than 100,000 modules"):
        pickles.state_dict(leaf)


PARTS = ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set")


@pytest.mark.parametrize(
    "record",
    [None, 3, {"_modules": {}}, inert.Record("X"), inert.Record("X", 3), *(inert.Record("X", {k: 3}) for k in PARTS)],
)
def test_what_is_no_network(record: Any) -> None:
    with pytest.raises(GentkError, match="`the model` is no network but a "):
        pickles.state_dict(record)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "the file is empty"),
        (b"<!DOCTYPE html><html>", "not a model but a web page: it begins with"),
        (b"version https://git-lfs.github.com/spec/v1\n", "not a model but a Git LFS pointer"),
        (b"\x00\x01", "no file of a model: at position 0, opcode b'.x00' unknown"),
        (b"PK\x03\x04rest", "damaged"),
        (b"\x80\x04", "damaged|broken off"),
        (b"\x80\x04N", "damaged|broken off"),
        (b"\x80\x04.", "damaged"),
        (b"\x80\x04\xff.", "damaged"),
        (b"\x80\x04e.", "damaged"),
        (b"\x80\x04\x86.", "do not fit together"),
        (b"\x80\x04h\x05.", "damaged"),
        (b"\x80\x04}(K\x01u.", "damaged"),
    ],
)
def test_what_is_no_pickle(content: bytes, text: str, path: Path) -> None:
    path.write_bytes(content)
    with pytest.raises(GentkError, match=text) as failure:
        pickles.read(path)
    assert str(failure.value).startswith(f"{path}: ")


def test_absent_and_unreadable(tmp_path: Path) -> None:
    with pytest.raises(MissingAsset, match="no such file"):
        pickles.read(tmp_path / "absent.pkl")
    with pytest.raises(MissingAsset, match="no such file"):
        pickles.read(tmp_path)


@pytest.mark.parametrize("container", ["pickle", "zip", "legacy"])
def test_a_file_cut_anywhere(container: str, path: Path) -> None:
    content = {"a": torch.ones(300), "b": {"c": torch.zeros(5)}}
    if container == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=container == "zip")
    whole = path.read_bytes()
    for end in range(0, len(whole) - 1, 37):
        path.write_bytes(whole[:end])
        with pytest.raises(GentkError, match=str(path)):
            pickles.read(path)


def rezip(path: Path, change: Callable[[str, bytes], tuple[str, bytes] | None], how: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path) as old:
        entries = [change(each.filename, old.read(each)) for each in old.infolist()]
    with zipfile.ZipFile(path, "w", how) as new:
        for entry in filter(None, entries):
            new.writestr(*entry)


def test_zips_that_are_none_of_torchs(path: Path) -> None:
    def fresh() -> None:
        torch.save({"a": torch.arange(8.0)}, path)

    def fails(text: str) -> None:
        with pytest.raises(GentkError, match=text) as failure:
            pickles.read(path)
        assert str(failure.value).startswith(f"{path}: ")

    fresh()
    rezip(path, lambda name, content: (name, content))  # no alignment any more
    assert pickles.read(path)["a"].tolist() == list(range(8))
    rezip(path, lambda name, content: (name, content), zipfile.ZIP_DEFLATED)
    fails("compressed")
    fresh()
    rezip(path, lambda name, content: None if name.endswith("data.pkl") else (name, content))
    fails("0 files data.pkl")
    fresh()
    rezip(path, lambda name, content: (name, b"big" if name.endswith("byteorder") else content))
    fails("byte order")
    fresh()
    rezip(path, lambda name, content: (name, content[:20] if name.endswith("data/0") else content))
    fails("too short")
    fresh()
    rezip(path, lambda name, content: None if name.endswith("data/0") else (name, content))
    fails("damaged")
    fresh()
    changed = bytearray(path.read_bytes())
    changed[changed.index(np.arange(8.0, dtype="<f4").tobytes())] ^= 1
    path.write_bytes(changed)
    fails("`model/data/0` in it is damaged")


def test_the_table_names_nothing_that_runs_code() -> None:
    """Every value is an Entry made here, a dtype or a string: never the function of the name."""
    for value in pickles._TABLE.values():
        assert isinstance(value, inert.Entry | torch.dtype | str)
    assert ("builtins", "getattr") not in pickles._TABLE
    assert not {name for module, name in pickles._TABLE if module == "builtins"} & (set(dir(builtins)) - {"set"})
