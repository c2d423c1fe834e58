"""Sampling, restoring, purifying and measuring by two processes: what one process gives, split between them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gentk.recipe import store
from gentk.tasks.evaluate._features import extract
from gentk.tasks.evaluate._sources import Source
from tests.engine import team


def both(task: str, name: str, folder: Path, *sets: str) -> tuple[Path, Path]:
    """The run folders of one process and of two."""
    for size in (1, 2):
        out = folder / str(size)
        members = team.Team(size, folder / f"said-{size}", lambda _, out=out: _command(task, name, out, sets)).wait()  # type: ignore[misc]
        assert [m.code for m in members] == [0] * size, [m.said for m in members]
        assert all(not m.said for m in members[1:]), "rank 0 alone speaks"
    info = json.loads((folder / "2" / "run.json").read_text())
    assert (info["status"], info["world_size"]) == ("done", 2)
    return folder / "1", folder / "2"


def _command(task: str, name: str, out: Path, sets: tuple[str, ...]) -> None:
    team.command(task, store.find(name), out, sets)


def test_sample_k_is_the_same(tmp_path: Path) -> None:
    one, two = both("sample", "sample/heun/edm-digits", tmp_path, "n=5", "batch=2", "nfe=5")
    first, second = (np.load(run / "samples.npz") for run in (one, two))
    assert first["samples"].shape == (5, 1, 8, 8)
    for key in first.files:
        np.testing.assert_array_equal(first[key], second[key])
    assert not (two / "parts").exists()


def test_a_sampler_that_is_not_split_runs_in_rank_0(tmp_path: Path) -> None:
    one, two = both("sample", "sample/ula/targets-banana", tmp_path, "n=8", "method.chains=4", "method.warmup=2")
    np.testing.assert_array_equal(np.load(one / "samples.npz")["samples"], np.load(two / "samples.npz")["samples"])


def test_restored_images_are_the_same(tmp_path: Path) -> None:
    one, two = both("restore", "restore/dps/digits", tmp_path, "n=4", "batch=1", "steps=3")
    results = [json.loads((run / "result.json").read_text())["figures"] for run in (one, two)]
    for figures in results:
        figures.pop("seconds_per_image")
    assert results[0] == results[1]
    names = [sorted(p.name for p in (run / "restored").iterdir()) for run in (one, two)]
    assert names[0] == names[1]
    assert len(names[0]) == 4
    for name in names[0]:
        assert (one / "restored" / name).read_bytes() == (two / "restored" / name).read_bytes()


def test_attacks_and_answers_are_the_same(tmp_path: Path) -> None:
    sets = ("scoring.images=6", "batch=2", "attack.name=pgd-eot", "attack.steps=2", "attack.eot=1")
    one, two = both("purify", "purify/one-shot/digits", tmp_path, *sets, "scoring.draws=2", "scoring.worst_of=2")
    results = [json.loads((run / "result.json").read_text()) for run in (one, two)]
    kept = [{k: r[k] for k in ("clean", "minimum", "undefended", "figures", "comparable")} for r in results]
    assert kept[0] == kept[1]
    for name in ("images.csv", "adversarial/pgd-eot.safetensors"):
        if name.endswith("csv"):
            assert (one / name).read_bytes() == (two / name).read_bytes()
        else:
            from safetensors.torch import load_file

            a, b = (load_file(run / name) for run in (one, two))
            assert all(a[k].equal(b[k]) for k in a)


def _source(n: int) -> Source:
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(0))

    def batches(start: int, size: int) -> Any:
        return (x[i : i + size] for i in range(start, n, size))

    return Source("points", n, (3,), batches)


@pytest.mark.parametrize("n", [1, 7, 20])
def test_features_are_the_same_in_the_same_batches(n: int, tmp_path: Path) -> None:
    """The extractor tells in which batch a sample stood."""

    def extractor(x: Tensor) -> Tensor:
        return torch.cat([x, x.mean(0).expand_as(x)], 1).double()

    found = extract(_source(n), extractor, tmp_path / "one" / "x.f64", {}, batch=3)

    def act(rank: int) -> None:
        from gentk.engine import dist

        with dist.joined({}, "cpu"):
            made = extract(_source(n), extractor, tmp_path / "two" / "x.f64", {}, batch=3)
            assert made.equal(found) if rank == 0 else not len(made)

    members = team.Team(2, tmp_path / "said", act).wait()
    assert [m.code for m in members] == [0, 0], [m.said for m in members]
