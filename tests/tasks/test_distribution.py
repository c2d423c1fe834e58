"""Measures in the features of image networks: sources, the one pass, its resumption, figures, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from gentk.errors import GentkError, MissingAsset, RecipeError
from gentk.metrics.frechet import Moments, frechet
from gentk.recipe.schema import Data
from gentk.tasks.evaluate import _distribution, _features, _sources
from tests.tasks.test_sample_evaluate import done, info, refused
from tests.tasks.toys import CPU, VE, write_teacher

needs_data = pytest.mark.skipif("GENTK_DATA" not in os.environ, reason="needs the data of $GENTK_DATA")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def images(n: int, seed: int = 0, shape: tuple[int, ...] = (1, 8, 8)) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, *shape), np.uint8))


def png(folder: Path, x: Tensor) -> Path:
    folder.mkdir()
    for k, one in enumerate(x.permute(0, 2, 3, 1).numpy()):
        Image.fromarray(one[..., 0] if one.shape[-1] == 1 else one).save(folder / f"{k:05d}.png")
    return folder


# --- sources ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 4, 6)])
@pytest.mark.parametrize("kind", ["npz", "compressed", "safetensors", "folder"])
def test_every_source_gives_the_same_images_from_every_start(kind: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    x = images(23, shape=shape)
    match kind:
        case "npz":
            np.savez(tmp_path / "s.npz", samples=x.numpy(), labels=np.zeros(23))
            source = _sources.of_npz(tmp_path / "s.npz")
        case "compressed":
            np.savez_compressed(tmp_path / "s.npz", samples=x.numpy())
            source = _sources.of_npz(tmp_path / "s.npz")
        case "safetensors":
            save_file({"samples": x}, tmp_path / "s.safetensors")
            source = _sources.of_safetensors(tmp_path / "s.safetensors")
        case "folder":
            source = _sources.of_folder(png(tmp_path / "p", x))
    assert (source.n, source.shape) == (23, shape)
    for start, size in ((0, 23), (0, 5), (7, 4), (22, 9)):
        parts = list(source.batches(start, size))
        assert max(map(len, parts)) <= size
        assert torch.equal(torch.cat(parts), x[start:])
    assert torch.equal(source.first(9).all(), x[:9])
    assert torch.equal(torch.cat(list(source.first(9).batches(4, 2))), x[4:9])
    with pytest.raises(RecipeError, match="24 samples are asked for"):
        source.first(24)


def test_a_model_is_drawn_in_parts(tmp_path: Path) -> None:
    path = write_teacher(tmp_path / "u.safetensors", process=VE, classes=2, name="unet", width=8, multipliers=(1,))
    source = _sources.of_model(str(path), CPU, n=7, steps=3, seed=1)
    whole = source.all()
    assert whole.dtype == torch.uint8
    assert whole.shape == (7, 1, 8, 8)
    parts = torch.cat(list(source.batches(2, 2)))
    assert (parts.int() - whole[2:].int()).abs().max() <= 1  # rounding differs with the batch
    assert source.facts == {"sampler": "heun", "nfe": 5, "seed": 1}


@pytest.mark.parametrize("damage", ["cut", "other", "text", "objects", "floats", "empty", "fortran"])
def test_npz_files_that_cannot_be_read_are_named(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    arrays = {
        "other": {"x": np.zeros((2, 1, 8, 8), np.uint8)},
        "text": {"samples": np.array(["a"])},
        "objects": {"samples": np.array([{}], dtype=object)},
        "floats": {"samples": np.zeros((2, 1, 8, 8), np.float32)},
        "empty": {"samples": np.zeros((0, 1, 8, 8), np.uint8)},
        "fortran": {"samples": np.asfortranarray(np.zeros((2, 1, 8, 8), np.uint8))},
    }
    np.savez(path, **arrays.get(damage, {"samples": images(50).numpy()}))
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(GentkError, match=r"s\.npz: "):
        _sources.of_npz(path).all()


def test_a_folder_of_mixed_sizes_or_none(tmp_path: Path) -> None:
    folder = png(tmp_path / "p", images(3))
    Image.new("L", (9, 8)).save(folder / "zz.png")
    with pytest.raises(RecipeError, match=r"zz\.png: 9 x 8 pixels"):
        _sources.of_folder(folder)
    (tmp_path / "none").mkdir()
    with pytest.raises(RecipeError, match="holds no pictures"):
        _sources.of_folder(tmp_path / "none")
    (folder / "zz.png").write_bytes(b"\x89PNG")
    with pytest.raises(GentkError, match=r"zz\.png"):
        _sources.of_folder(folder)


def test_a_sample_run_leads_to_its_file(tmp_path: Path) -> None:
    assert _raises(tmp_path)
    (tmp_path / "png").mkdir()
    assert _sources.located(tmp_path) == tmp_path / "png"
    (tmp_path / "samples.npz").touch()
    assert _sources.located(tmp_path) == tmp_path / "samples.npz"


def _raises(path: Path) -> bool:
    with pytest.raises(MissingAsset, match=r"without samples\.npz"):
        _sources.located(path)
    return True


# --- the pass ---------------------------------------------------------------------------------------------------------


def rows(x: Tensor) -> Tensor:
    """A toy extractor with exact answers: the mean of every row of pixels."""
    return x.double().mean((1, 3))


def source_of(x: Tensor, seen: list[int] | None = None) -> _sources.Source:
    def batches(start: int, size: int):  # type: ignore[no-untyped-def]
        for i in range(start, len(x), size):
            if seen is not None:
                seen.append(i)
            yield x[i : i + size]

    return _sources.Source("toy", len(x), tuple(x.shape[1:]), batches)


def test_features_are_resumed_and_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_features, "_SAVED_EVERY", 10)
    x, path, seen = images(47), tmp_path / "f" / "x.f64", []

    def broken(part: Tensor) -> Tensor:
        if len(seen) == 6:
            raise KeyboardInterrupt
        return rows(part)

    with pytest.raises(KeyboardInterrupt):
        _features.extract(source_of(x, seen), broken, path, {"a": 1}, batch=5)
    seen.clear()
    got = _features.extract(source_of(x, seen), rows, path, {"a": 1}, batch=5)
    assert seen == [20, 25, 30, 35, 40, 45]  # marked every 10
    assert torch.equal(got, rows(x))
    seen.clear()
    assert torch.equal(_features.extract(source_of(x, seen), rows, path, {"a": 1}, batch=5), rows(x))
    assert seen == []
    again = _features.extract(source_of(x + 1, seen), rows, path, {"a": 2}, batch=50)
    assert torch.equal(again, rows(x + 1))  # made from something else: made again
    path.write_bytes(b"short")
    assert torch.equal(_features.extract(source_of(x), rows, path, {"a": 2}, batch=50), rows(x))


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    """1 000 and 20 000 pictures of an .npz: the peak grows by far less than the 61 MB of the images."""
    for n in (1000, 20_000):
        np.savez(tmp_path / f"{n}.npz", samples=np.zeros((n, 3, 32, 32), np.uint8))
    code = f"""
import resource
from pathlib import Path
from gentk.tasks.evaluate import _sources
def peak(n):
    for part in _sources.of_npz(Path({str(tmp_path)!r}) / f"{{n}}.npz").batches(0, 500): pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(peak(1000), peak(20000))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    small, large = map(int, run.stdout.split())
    assert large - small < 20_000  # kB


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    space = _distribution.Space("toy", rows, "fd_toy", "_toy", {"extractor": "row means"})
    monkeypatch.setattr(_distribution, "_space", lambda recipe, where: space)


def moments_of(x: Tensor) -> Moments:
    return Moments().update(rows(x))


@pytest.mark.usefixtures("toy")
def test_figures_of_a_folder_against_digits(tmp_path: Path) -> None:
    from gentk import data

    x = images(300)
    png(tmp_path / "p", x)
    words = ("evaluate", "fd-mnist-cnn", "--samples", "p", "--set", "reference.name=digits", "--out", "run")
    more = ("--set", "method.also=[prdc, kid, infinity]", "--set", "method.subset=50")
    result = done(*words, *more)
    real = data.load(Data(name="digits"), "train").x
    metrics = info(Path("run"))["metrics"]
    assert metrics["fd_toy"] == pytest.approx(frechet(moments_of(real), moments_of(x)), rel=1e-9)
    assert (metrics["n"], metrics["n_reference"]) == (300, len(real))
    assert {"kid_toy", "precision_toy", "recall_toy", "density_toy", "coverage_toy", "fd_toy_infinity"} <= set(metrics)
    assert f"N = 300 against {len(real)}" in result.stdout
    assert "biased upwards" in result.stdout
    facts = json.loads(Path("run/result.json").read_text())
    assert facts["comparable"]["features"] == {"extractor": "row means"}
    assert facts["inputs"].keys() == {"p"}
    assert not Path("run/features").exists()
    assert done(*words, *more).stdout == result.stdout  # finished: from the folder


@pytest.mark.usefixtures("toy")
def test_several_draws_are_of_different_samples(tmp_path: Path) -> None:
    """Mean and spread of three parts, none of a sample twice; the figure of all together, biased less, is another."""
    from gentk import data

    x = images(90)
    png(tmp_path / "p", x)
    words = ("evaluate", "fd-mnist-cnn", "--samples", "p", "--set", "reference.name=digits", "--set", "method.blocks=0")
    result = done(*words, "--set", "method.draws=3", "--out", "run")
    real = moments_of(data.load(Data(name="digits"), "train").x)
    parts = [frechet(real, moments_of(part)) for part in torch.split(x, 30)]
    metrics = info(Path("run"))["metrics"]
    assert metrics["fd_toy"] == pytest.approx(np.mean(parts), rel=1e-9)
    assert metrics["fd_toy_spread"] == pytest.approx(np.std(parts, ddof=1), rel=1e-9)
    assert metrics["n"] == 30
    assert metrics["fd_toy"] != pytest.approx(frechet(real, moments_of(x)), rel=1e-3)
    drawn = json.loads(Path("run/result.json").read_text())["draws"]
    assert [each["fd_toy"] for each in drawn] == pytest.approx(parts, rel=1e-9)
    assert "(draws: " in result.stdout
    assert "N = 30 against" in result.stdout
    refused(2, "has 90", *words, "--set", "method.draws=3", "--set", "method.n=31")
    refused(2, "too few for 46 draws", *words, "--set", "method.draws=46")


@pytest.mark.usefixtures("toy")
def test_the_report_has_pictures_and_figures(tmp_path: Path) -> None:
    png(tmp_path / "p", images(60))
    words = ("evaluate", "fd-mnist-cnn", "--samples", "p", "--set", "reference.name=digits", "--out", "run")
    done(*words, "--set", "method.also=[infinity]")
    assert {path.name for path in Path("run/samples").iterdir()} == {"samples.png", "fd_toy_infinity.png"}
    page = Path("run/report.html").read_text()
    assert page.count("data:image/png") == 2
    assert "fd_toy_infinity" in page


@pytest.mark.usefixtures("toy")
def test_the_same_images_are_at_distance_0(tmp_path: Path) -> None:
    words = ("--set", "reference.name=digits", "--samples", "data:digits:train", "--out", "run")
    done("evaluate", "fd-mnist-cnn", *words)
    assert info(Path("run"))["metrics"]["fd_toy"] < 1e-9


@pytest.mark.usefixtures("toy")
def test_a_stopped_measurement_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez("s.npz", samples=images(60).numpy())
    monkeypatch.setattr(_features, "_SAVED_EVERY", 1)
    words = ("evaluate", "fd-mnist-cnn", "--samples", "s.npz", "--set", "reference.name=digits", "--out", "run")
    words += ("--set", "method.batch=20")
    calls = []

    def slow(x: Tensor) -> Tensor:
        calls.append(len(x))
        if len(calls) == 5:  # two looks at one image before the pass, then its third batch
            os.kill(os.getpid(), signal.SIGTERM)
        return rows(x)

    space = _distribution.Space("toy", slow, "fd_toy", "_toy", {"extractor": "row means"})
    monkeypatch.setattr(_distribution, "_space", lambda recipe, where: space)
    refused(75, "stopped", *words)
    assert json.loads(Path("run/features/samples.json").read_text())["done"] == 40
    calls[:] = [0] * 9
    done(*words)
    assert calls[11] == 20  # the last batch of the samples alone
    assert info(Path("run"))["metrics"]["n"] == 60


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--samples", "data:digits"), "names no split"),
        (("--samples", "data:digits:all"), "names no split"),
        (("--samples", "data:digits:test", "--set", "method.n=100000"), "are asked for"),
        (("--samples", "data:digits:test", "--set", "method.also=[kid]"), "method.subset"),
    ],
)
def test_what_cannot_be_measured(words: tuple[str, ...], said: str) -> None:
    refused(2, said, "evaluate", "fd-mnist-cnn", "--set", "reference.name=digits", *words)


# --- real data --------------------------------------------------------------------------------------------------------


@needs_data
@pytest.mark.parametrize(
    ("metric", "data", "whole"), [("fd-mnist-cnn", "mnist", 0.396), ("fd-fashion-mlp", "fashion-mnist", 0.712)]
)
def test_the_yardstick_of_the_test_set(metric: str, data: str, whole: float) -> None:
    """To the last digit that the data's README states."""
    done("evaluate", metric, "--set", "method.blocks=0", "--out", "run")
    figure = info(Path("run"))["metrics"][metric.replace("-", "_")]
    assert round(figure, 3) == whole


@needs_data
def test_images_of_another_size_are_refused() -> None:
    refused(2, "takes RGB images of 32 x 32", "evaluate", "fd-resnet20", "--samples", "data:mnist:test")


def test_weights_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GENTK_DATA", raising=False)
    refused(3, "GENTK_DATA", "evaluate", "fd-resnet20", "--dry-run")
