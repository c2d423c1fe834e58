"""`gentk doctor`: what is here, what is missing, and the remedy."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal

import typer

from gentk import __version__
from gentk.cli import console
from gentk.errors import GentkError

_ROOM = 2**30  # bytes: a laptop run with its checkpoints and pictures, and some to spare
_COMPILERS = ("g++", "c++", "clang++")
_SETS = {
    "mnist": ("mnist", "MNIST"),
    "fashion-mnist": ("fashion_mnist", "fashion-mnist", "FashionMNIST"),
    "cifar10": ("cifar10", "cifar-10-batches-py", "cifar-10-batches-bin"),
}


@dataclass(frozen=True)
class Check:
    """One thing looked at. `absent` is something optional; `broken` is something that gentk needs."""

    check: str
    state: Literal["ok", "absent", "broken"]
    found: str
    remedy: str = ""


@console.guard()
def doctor(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Check this machine and this installation; exit 1 where something that gentk needs is broken."""
    checks = [*_base(), *_torch(), *_packages(), *_data(), *_models(), *_place()]
    healthy = not any(check.state == "broken" for check in checks)
    if json:
        console.as_json({"ok": healthy, "checks": [asdict(check) for check in checks]})
    else:
        rows = [[check.state, check.check, check.found, check.remedy] for check in checks]
        console.table(["state", "check", "found", "remedy"], rows)
    if not healthy:
        raise typer.Exit(1)


def _base() -> Iterator[Check]:
    old = sys.version_info < (3, 11)
    yield Check(
        "python",
        "broken" if old else "ok",
        f"{platform.python_version()}, {sys.executable}",
        "install Python 3.11 or newer" if old else "",
    )
    yield Check("platform", "ok", f"{platform.platform()}, {os.cpu_count()} cores")
    yield Check("gentk", "ok", f"{__version__}, {Path(__file__).resolve().parent.parent}")


def _torch() -> Iterator[Check]:
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a library that torch loads is absent
        yield Check("torch", "broken", str(error), "pip install torch, see pytorch.org for your driver")
        return
    yield Check("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads")
    with warnings.catch_warnings(record=True) as told:  # an old driver is told as a warning
        warnings.simplefilter("always")
        cuda = torch.cuda.is_available()
    if cuda:
        for index in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(index)
            yield Check(f"cuda:{index}", "ok", f"{card.name}, {card.total_memory / 2**30:.0f} GiB")
        native, device = torch.cuda.is_bf16_supported(including_emulation=False), "cuda"
    else:
        why = "; ".join(str(each.message).partition("\n")[0] for each in told) or "no device; runs use the CPU"
        yield Check("cuda", "absent", why)
        native, device = _cpu_has_bf16(), "cpu"
    how = "native" if native else "emulated, slower than fp32"
    yield Check("bf16", "ok" if native else "absent", f"{device}: {how}")
    compiler = next(filter(None, map(shutil.which, filter(None, (os.environ.get("CXX"), *_COMPILERS)))), None)
    remedy = "for train.compile: install g++ (apt-get install g++)"
    yield Check("compiler", "ok" if compiler else "absent", compiler or "no C++ compiler", "" if compiler else remedy)


def _cpu_has_bf16() -> bool:
    try:
        return bool(re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", Path("/proc/cpuinfo").read_text("utf-8")))
    except OSError:  # not Linux
        return False


def _packages() -> Iterator[Check]:
    """The packages that gentk's own metadata asks for, per extra."""
    try:
        wanted = metadata.requires("gentk") or []
    except metadata.PackageNotFoundError:
        yield Check("packages", "absent", "gentk is not installed: its list of packages is unknown", "pip install -e .")
        return
    groups: dict[str, list[str]] = {}
    for line in wanted:
        requirement, _, marker = line.partition(";")
        name = re.match(r"[\w.-]+", requirement)
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", marker)
        if name and name[0] != "gentk":  # an extra that is the sum of others names gentk itself
            groups.setdefault(extra[1] if extra else "", []).append(name[0])
    for group, names in sorted(groups.items()):
        missing = [name for name in names if not _installed(name)]
        found = f"missing: {', '.join(missing)}" if missing else ", ".join(names)
        if group:
            remedy = f"pip install gentk[{group}]" if missing else ""
            yield Check(f"extra {group}", "absent" if missing else "ok", found, remedy)
        else:
            yield Check("packages", "broken" if missing else "ok", found, "pip install gentk" if missing else "")


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _data() -> Iterator[Check]:
    named = os.environ.get("GENTK_DATA")
    if not named:
        remedy = "for mnist, fashion-mnist, cifar10: set GENTK_DATA to the folder that holds them"
        yield Check("GENTK_DATA", "absent", "not set; digits and points need no files", remedy)
        return
    root = Path(named).expanduser()
    if not root.is_dir():
        yield Check("GENTK_DATA", "broken", f"{root}: no such folder", "correct it, or unset it")
        return
    sets = [name for name, folders in _SETS.items() if any((root / folder).is_dir() for folder in folders)]
    remedy = "" if sets else f"it should hold folders such as {', '.join(folders[0] for folders in _SETS.values())}"
    yield Check("GENTK_DATA", "ok" if sets else "absent", f"{root}: {', '.join(sets) or 'no data set found'}", remedy)


def _models() -> Iterator[Check]:
    from gentk.recipe import stamp, store

    shipped = store.models()
    faults = []
    for path in shipped.values():
        try:
            stamp.read_header(path)
        except (GentkError, OSError) as error:
            faults.append(str(error))
    if faults:
        yield Check("models", "broken", "; ".join(faults), "install gentk again")
    elif not shipped:
        yield Check("models", "broken", f"none in {store.assets()}", "install gentk again")
    else:
        yield Check("models", "ok", ", ".join(shipped))


def _place() -> Iterator[Check]:
    try:
        free = shutil.disk_usage(".").free
        with tempfile.TemporaryFile(dir="."):
            pass
    except OSError as error:
        yield Check("here", "broken", f"cannot write: {error.strerror}", "go to a folder of yours, or use --out")
        return
    tight = free < _ROOM
    found = f"{Path.cwd()}: writable, {free / 2**30:.1f} GiB free"
    yield Check("here", "broken" if tight else "ok", found, "make room, or use --out on another disk" if tight else "")
