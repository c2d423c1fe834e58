"""Where data files lie: `data.root`, else $GENTK_DATA, else the cache; absent ones come through torchvision.

The cache is `gentk/data` under $XDG_CACHE_HOME, else under `~/.cache`. A folder that is named but absent is an error,
not a reason to download: it is most often a typing mistake or a disk that is not mounted.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from gentk.errors import MissingAsset
from gentk.recipe.schema import Data

T = TypeVar("T")

_REMEDY = "name the folder that holds them by `--set data.root=FOLDER` or the environment variable GENTK_DATA"


def locate(section: Data, find: Callable[[Path], T | None], *, expected: str, torchvision: str) -> T:
    """What `find(folder)` returns for the root, else for the cache, else for the cache after a download.

    `torchvision` is the class in torchvision.datasets that downloads the set, `expected` the file names for the
    message. Raises MissingAsset that names the folders looked in, the files expected and the remedies.
    """
    root, cache = _root(section), _cache()
    folders = [root] if root == cache else [root, cache]
    for folder in folders:
        if (found := find(folder)) is not None:
            return found
    problem, remedy = _download(torchvision, cache)
    if (found := find(cache)) is not None:
        return found
    raise MissingAsset(
        f"{section.name}: no files in {' or '.join(map(str, folders))}; expected {expected}; {problem}",
        hint=_REMEDY + remedy,
    )


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "gentk" / "data"


def _root(section: Data) -> Path:
    for place, named in (("data.root", section.root), ("GENTK_DATA", os.environ.get("GENTK_DATA"))):
        if named:
            root = Path(named).expanduser()
            if not root.is_dir():
                raise MissingAsset(f"{place}: no folder {root} for the files of `{section.name}`", hint=_REMEDY)
            return root
    return _cache()


def _download(name: str, cache: Path) -> tuple[str, str]:
    """Fetch torchvision's data set `name` into `cache`; says what is wrong if it is not there now, and the remedy."""
    try:
        datasets = importlib.import_module("torchvision.datasets")
    except ImportError:
        return "torchvision, which could download them, is not installed", ", or `pip install gentk[eval]`"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        # Into a folder of its own first: a broken download, or a second process, leaves nothing half done.
        with tempfile.TemporaryDirectory(dir=cache, prefix=".fetch-") as fresh:
            with contextlib.redirect_stdout(sys.stderr):  # torchvision talks, and stdout is for answers
                getattr(datasets, name)(fresh, download=True)
            for folder in Path(fresh).iterdir():
                if folder.is_dir() and not (cache / folder.name).exists():
                    with contextlib.suppress(FileExistsError):
                        folder.rename(cache / folder.name)
    except (OSError, RuntimeError) as error:
        return f"the download through torchvision failed ({error})", ", or run once where there is a network"
    return "the download through torchvision did not bring them", ""
