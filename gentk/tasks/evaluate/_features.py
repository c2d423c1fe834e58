"""Features of a source on disk: extracted once for all metrics, resumed after a stop, never all in memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gentk.engine import dist, ranks
from gentk.tasks.evaluate._sources import Source

Extract = Callable[[Tensor], Tensor]
_SAVED_EVERY = 1000  # samples between two marks of how far it is


def extract(
    source: Source,
    extractor: Extract,
    path: Path,
    made_from: dict[str, Any],
    *,
    batch: int,
    each: Callable[[int], None] | None = None,
) -> Tensor:
    """Features (N, F) float64 of every sample, as a tensor that lies in the file `path`, paged in where it is read.

    `extractor`: samples (B, ...) -> (B, F). `made_from` says what the file depends on; one that was made from something
    else is made again, one that was begun is finished. `each(i)` is called when i samples are done. Of several
    processes each extracts its share of the batches, and only rank 0 is given the features.
    """
    group = dist.current()
    if group.size == 1:
        return _extract(source, extractor, path, made_from, batch, each)
    count = -(-source.n // batch)
    edges = [min(source.n, batch * (count * r // group.size)) for r in range(group.size)] + [source.n]
    shares = [(a, b, path.with_name(f"{path.stem}-{a:08d}{path.suffix}")) for a, b in pairwise(edges) if a < b]
    for a, b, file in shares:
        if edges[group.rank] == a and edges[group.rank + 1] == b:
            _extract(_share(source, a, b), extractor, file, made_from | {"rows": [a, b]}, batch, each)
    group.wait()
    if not group.first:
        return torch.empty(0)
    whole: np.memmap[Any, Any] | None = None
    for a, b, file in shares:
        done, width = _progress(file.with_suffix(".json"), file, _stamp(made_from | {"rows": [a, b]}), b - a)
        ranks.gathered(file, width if done == b - a else None)
        if whole is None:
            whole = np.memmap(path, np.float64, "w+", shape=(source.n, width))
        whole[a:b] = np.memmap(file, np.float64, "r", shape=(b - a, width))
    assert whole is not None
    return torch.from_numpy(whole)


def _share(source: Source, start: int, end: int) -> Source:
    """Samples `start` to `end` as a source of their own."""
    upto = source.first(end)
    return Source(source.name, end - start, source.shape, lambda at, size: upto.batches(start + at, size), source.facts)


def _stamp(made_from: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(made_from, sort_keys=True, default=str).encode()).hexdigest()


def _extract(
    source: Source,
    extractor: Extract,
    path: Path,
    made_from: dict[str, Any],
    batch: int,
    each: Callable[[int], None] | None,
) -> Tensor:
    stamp = _stamp(made_from)
    mark = path.with_suffix(".json")
    done, width = _progress(mark, path, stamp, source.n)
    file: np.memmap[Any, Any] | None = None
    if width:
        file = np.memmap(path, np.float64, "r+", shape=(source.n, width))
    saved = done
    for part in source.batches(done, batch) if done < source.n else ():
        features = extractor(part).numpy()
        if file is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            width = features.shape[1]
            file = np.memmap(path, np.float64, "w+", shape=(source.n, width))
        file[done : done + len(features)] = features
        done += len(features)
        if done - saved >= _SAVED_EVERY or done == source.n:
            file.flush()  # the features first, then the mark that counts them
            mark.write_text(json.dumps({"made_from": stamp, "done": done, "width": width, "n": source.n}))
            saved = done
        if each:
            each(done)
    assert file is not None
    return torch.from_numpy(file)


def _progress(mark: Path, path: Path, stamp: str, n: int) -> tuple[int, int]:
    """(samples done, width of the features) of a file that was begun for the same purpose; (0, 0) else."""
    try:
        known = json.loads(mark.read_text("utf-8"))
        done, width = int(known["done"]), int(known["width"])
        same = (known["made_from"], known["n"], path.stat().st_size) == (stamp, n, n * width * 8)
        return (done, width) if same else (0, 0)
    except (OSError, ValueError, KeyError, TypeError):
        return 0, 0
