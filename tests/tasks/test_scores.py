"""Scores of single images, distances of points, and Inception's measures as commands, with figures that are known."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from gentk.metrics import protocols, registry, statistics
from gentk.metrics.frechet import Moments
from gentk.nets import inception
from gentk.tasks.evaluate import _distribution
from tests.tasks.test_distribution import images, png
from tests.tasks.test_sample_evaluate import done, info, refused

needs_data = pytest.mark.skipif("GENTK_DATA" not in os.environ, reason="needs the data of $GENTK_DATA")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# --- pairs and prompts ------------------------------------------------------------------------------------------------


def test_psnr_is_the_mean_over_images() -> None:
    """Errors of 10 and of 20 grey levels: 20 log10(255 / 10) and 20 log10(255 / 20), averaged in dB."""
    x = torch.full((4, 1, 12, 12), 100, dtype=torch.uint8)
    y = x.clone()
    y[:2] += 10
    y[2:] += 20
    png(Path("truth"), x)
    png(Path("restored"), y)
    result = done("evaluate", "psnr", "--samples", "restored", "--reference", "truth", "--out", "run")
    want = [20 * math.log10(255 / 10)] * 2 + [20 * math.log10(255 / 20)] * 2
    assert info(Path("run"))["metrics"]["psnr"] == pytest.approx(np.mean(want), rel=1e-12)
    np.testing.assert_allclose(np.load("run/values.npz")["psnr"], want, rtol=1e-12)
    assert result.stdout.startswith("psnr 25.12 [")
    assert "N = 4" in result.stdout
    pooled = 10 * math.log10(255**2 / ((10**2 + 20**2) / 2))
    assert abs(pooled - np.mean(want)) > 0.9  # the other convention is not to be told by accident


def test_equal_images_are_infinitely_good() -> None:
    png(Path("truth"), images(3, shape=(1, 12, 12)))
    done("evaluate", "psnr", "--samples", "truth", "--reference", "truth", "--out", "run")
    assert "3 of 3 are infinite" in Path("run/answer.txt").read_text()


def test_pairs_must_be_pairs() -> None:
    png(Path("truth"), images(3, shape=(1, 12, 12)))
    png(Path("few"), images(2, shape=(1, 12, 12)))
    png(Path("small"), images(3, shape=(1, 8, 8)))
    for name in ("few", "small"):
        refused(2, "pairs are made by order", "evaluate", "psnr", "--samples", name, "--reference", "truth")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.txt", "a cat\na dog\n"),
        ("p.csv", "id,prompt\n1,a cat\n2,a dog\n"),
        ("p.json", '[{"prompt": "a cat"}, {"prompt": "a dog"}]'),
        ("p.jsonl", '{"prompt": "a cat"}\n{"prompt": "a dog"}\n'),
    ],
)
def test_prompts_from_files(name: str, text: str) -> None:
    from gentk.tasks.evaluate import _scores
    from gentk.tasks.evaluate.clip import Config

    Path(name).write_text(text)
    assert _scores._prompts(Config(name="clip", prompts=name)) == ["a cat", "a dog"]
    assert _scores._prompts(Config(name="clip", prompts=name, per_prompt=2)) == ["a cat", "a cat", "a dog", "a dog"]


def test_prompts_that_cannot_be_used() -> None:
    png(Path("p"), images(3, shape=(3, 12, 12)))
    words = ("evaluate", "clip", "--samples", "p", "--prompts")
    refused(3, "no such file", *words, "none.txt")
    Path("bad.json").write_text('[{"text": "a"}]')
    refused(1, "cannot be read as prompts", *words, "bad.json")
    Path("two.txt").write_text("a\nb\n")
    refused(2, "two.txt: 2 prompts (with method.per_prompt) for 3 images", *words, "two.txt")
    Path("blank.txt").write_text("a\n\nb\n")
    refused(2, "blank.txt: line 2 is blank", *words, "blank.txt")
    Path("empty.txt").write_text("")
    refused(2, "empty.txt: empty", *words, "empty.txt")
    refused(2, "--prompts FILE", *words[:4])
    refused(2, "needs a reference", "evaluate", "psnr", "--samples", "p", "--set", "reference=null")


# --- points -----------------------------------------------------------------------------------------------------------


def test_points_that_are_the_same_and_points_that_are_shifted() -> None:
    """A shift by 1 in one coordinate: sliced W2^2 is its square over the dimension, exactly, for every sample."""
    from gentk import data
    from gentk.recipe.schema import Data

    x = data.load(Data(name="points:ring8", points=20_000), "train").x[:500].clone()
    x[:, 0] += 1
    np.savez("s.npz", samples=x.numpy())
    words = ("evaluate", "points", "--samples", "s.npz", "--set", "method.most=500", "--set", "split=train")
    done(*words, "--set", "method.directions=4000", "--out", "run")
    metrics = info(Path("run"))["metrics"]
    assert metrics["sliced_w2"] == pytest.approx(math.sqrt(0.5), rel=0.03)  # 4000 directions: 1 / sqrt(4000) = 1.6 %
    assert metrics["c2st"] > 0.8
    assert metrics["mmd"] > 5 * metrics["mmd_error"]
    assert metrics["ksd"] > 5 * metrics["ksd_error"]
    assert Path("run/samples/points.png").is_file()
    done("evaluate", "points", "--set", "method.most=1000", "--out", "same")
    metrics = info(Path("same"))["metrics"]
    assert abs(metrics["mmd"]) < 4 * metrics["mmd_error"]
    assert abs(metrics["ksd"]) < 4 * metrics["ksd_error"]
    assert 0.45 < metrics["c2st"] < 0.55


def test_points_and_images_are_not_mixed_up() -> None:
    refused(2, "compares points of one space", "evaluate", "points", "--reference", "digits")


# --- Inception --------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command with a network of the same interface: 6 features, 1008 logits, quick."""

    def extract(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        flat = x.double().flatten(1) / 255
        mix = torch.randn(flat.shape[1], 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        features = flat @ mix
        return features, torch.cat([features, features.new_zeros(len(x), 1002)], 1)

    def protocol(name: str, **_: object) -> protocols.Protocol:
        return protocols.Protocol(name, extract, {"extractor": "toy", "weights_sha256": "f" * 64})

    monkeypatch.setattr(_distribution.protocols, "protocol", protocol)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("protocol", "name"), [("edm", "fid"), ("clean", "fid_clean"), ("legacy-pytorch", "fid_legacy_pytorch")]
)
def test_protocols_have_names_of_their_own(protocol: str, name: str) -> None:
    png(Path("p"), images(40))
    words = ("--samples", "p", "--reference", "digits", "--set", f"method.features={protocol}", "--out", "run")
    done("evaluate", "fid", *words)
    metrics = info(Path("run"))["metrics"]
    assert [k for k in metrics if k.startswith("fid")] == [name]


@pytest.mark.usefixtures("small")
def test_one_pass_for_every_measure() -> None:
    png(Path("p"), images(60))
    also = ("--set", "method.also=[kid, is, prdc]", "--set", "method.subset=20", "--set", "method.blocks=3")
    done("evaluate", "fid", "--samples", "p", "--reference", "digits", *also, "--out", "run")
    metrics = info(Path("run"))["metrics"]
    assert {"fid", "fid_error", "kid", "kid_std", "is", "is_std", "precision", "coverage"} <= set(metrics)
    done("evaluate", "fid", "--samples", "p", "--reference", "digits", "--out", "alone")
    assert metrics["fid"] == pytest.approx(info(Path("alone"))["metrics"]["fid"], rel=1e-12)  # logits are not features
    done("evaluate", "is", "--samples", "p", "--set", "reference=null", "--out", "is")
    assert info(Path("is"))["metrics"]["is"] == pytest.approx(metrics["is"], rel=1e-12)


@pytest.mark.usefixtures("small")
def test_saved_statistics_serve_as_the_reference() -> None:
    from gentk import data
    from gentk.recipe.schema import Data

    png(Path("p"), images(60))
    done("evaluate", "fid", "--samples", "p", "--reference", "digits", "--out", "a")
    real = data.load(Data(name="digits"), "train").x
    features = _distribution.protocols.protocol("edm").features(real)
    moments = Moments().update(features)
    statistics.write(Path("edm.npz"), moments, protocol="edm", weights="f" * 64)
    done("evaluate", "fid", "--samples", "p", "--reference", "edm.npz", "--out", "b")
    assert info(Path("b"))["metrics"]["fid"] == pytest.approx(info(Path("a"))["metrics"]["fid"], rel=1e-9)
    np.savez("plain.npz", mu=moments.mean, sigma=moments.covariance)  # as EDM and pytorch-fid write them
    done("evaluate", "fid", "--samples", "p", "--reference", "plain.npz", "--out", "c")
    assert info(Path("c"))["metrics"]["fid"] == pytest.approx(info(Path("a"))["metrics"]["fid"], rel=1e-9)
    statistics.write(Path("clean.npz"), moments, protocol="clean", weights="f" * 64)
    refused(2, "statistics of protocol `clean`", "evaluate", "fid", "--samples", "p", "--reference", "clean.npz")
    refused(2, "needs the images", "evaluate", "kid", "--samples", "p", "--reference", "plain.npz")


def test_missing_weights_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENTK_CACHE", "cache")
    monkeypatch.setenv("GENTK_OFFLINE", "1")
    refused(3, registry.INCEPTION.url, "evaluate", "fid", "--samples", "data:digits:test", "--reference", "digits")
    refused(3, "no file none.pth", "evaluate", "fid", "--weights", "none.pth", "--samples", "data:digits:test")


def test_weights_of_another_checksum_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    Path("w.pth").write_bytes(b"not these")
    words = ("--samples", "data:digits:test", "--reference", "digits", "--weights", "w.pth")
    refused(1, "sha256", "evaluate", "fid", *words)
    assert inception.SIDE == 299


# --- the likelihood judge ---------------------------------------------------------------------------------------------


@needs_data
def test_bits_per_dimension_of_real_digits() -> None:
    """The data's README: 1.033 on the first 1000 test images; 100 of them have a standard error of 0.02."""
    done("evaluate", "nll", "--set", "method.n=100", "--out", "run")
    metrics = info(Path("run"))["metrics"]
    assert metrics["nll_low"] < metrics["nll"] < metrics["nll_high"]
    assert abs(metrics["nll"] - 1.033) < 4 * metrics["nll_std"] / 10
    assert "mnist_flow_vardeq" in json.loads(Path("run/result.json").read_text())["comparable"]["score"]["judge"]
