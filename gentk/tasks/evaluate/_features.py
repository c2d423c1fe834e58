"""Features of a source on disk: extracted once for all metrics, resumed after a stop, never all in memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

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
    else is made again, one that was begun is finished. `each(i)` is called when i samples are done.
    """
    stamp = hashlib.sha256(json.dumps(made_from, sort_keys=True, default=str).encode()).hexdigest()
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
