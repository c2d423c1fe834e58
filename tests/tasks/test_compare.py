"""`evaluate compare`: differences of two evaluations, intervals by what is paired, and what does not compare."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import stdtrit

from gentk.metrics.intervals import paired_difference
from gentk.metrics.kernel import kid, overlapping_error
from gentk.tasks.evaluate import _comparing
from gentk.tasks.evaluate._recording import Recorded, Values
from tests.tasks.test_distribution import images, png
from tests.tasks.test_sample_evaluate import done, info, refused


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def noisy(x: torch.Tensor, amount: int, seed: int) -> torch.Tensor:
    noise = torch.randint(-amount, amount + 1, x.shape, generator=torch.Generator().manual_seed(seed))
    return (x.int() + noise).clip(0, 255).to(torch.uint8)


@pytest.fixture
def scored() -> tuple[np.ndarray, np.ndarray]:
    """PSNR of two restorations that share most of their error: their scores move together."""
    truth = images(60, shape=(1, 12, 12))
    png(Path("truth"), truth)
    common = noisy(truth, 60, 1)
    for name, amount in (("a", 1), ("b", 12)):
        png(Path(name), noisy(common, amount, 2))
        done("evaluate", "psnr", "--samples", name, "--reference", "truth", "--out", f"run-{name}")
    return tuple(np.load(f"run-{name}/values.npz")["psnr"] for name in "ab")  # type: ignore[return-value]


def test_scores_are_paired_by_sample(scored: tuple[np.ndarray, np.ndarray]) -> None:
    result = done("evaluate", "compare", "run-a", "run-b", "--out", "cmp")
    metrics = info(Path("cmp"))["metrics"]
    a, b = scored
    assert metrics["psnr_difference"] == pytest.approx(a.mean() - b.mean(), rel=1e-12)
    want = paired_difference(torch.from_numpy(a), torch.from_numpy(b))
    assert (metrics["psnr_low"], metrics["psnr_high"]) == pytest.approx((want.low, want.high), rel=1e-12)
    width = metrics["psnr_high"] - metrics["psnr_low"]
    # the bootstrap's width is that of the differences: 2 x 1.96 standard errors, to the quantiles' own noise
    assert width == pytest.approx(3.92 * (a - b).std(ddof=1) / math.sqrt(60), rel=0.15)
    apart = 3.92 * math.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 60)
    assert width < 0.7 * apart, "the control: intervals that are not paired are wider"
    assert "paired samples" in result.stdout
    assert (Path("cmp") / "samples" / "differences.png").is_file()
    other = done("evaluate", "compare", "run-a/result.json", "run-b", "--out", "again")
    assert other.stdout.splitlines()[0] == result.stdout.splitlines()[0]


@pytest.mark.usefixtures("scored")
def test_what_does_not_compare() -> None:
    png(Path("few"), images(5, shape=(1, 12, 12)))
    done("evaluate", "psnr", "--samples", "few", "--reference", "few", "--out", "run-few")
    refused(2, "n is 60 in one and 5 in the other", "evaluate", "compare", "run-a", "run-few")
    done("evaluate", "ssim", "--samples", "a", "--reference", "truth", "--out", "run-ssim")
    refused(2, "no figure in common", "evaluate", "compare", "run-a", "run-ssim")
    refused(2, "takes two runs, not 1", "evaluate", "compare", "run-a")
    refused(2, "unexpected `run-b`", "evaluate", "psnr", "run-b")
    refused(3, "none: not a finished evaluation", "evaluate", "compare", "run-a", "none")
    text = Path("run-b/result.json").read_text()
    for wrong in ("{", "[]", text.replace('"values"', '"worth"')):
        Path("run-b/result.json").write_text(wrong)
        refused(1, "not the result of an evaluation", "evaluate", "compare", "run-a", "run-b")


def test_another_protocol_is_refused_by_name() -> None:
    """The same figure name with features of other facts: `fid` by two resizes must not be subtracted."""
    for name, resize in (("x", "bilinear"), ("y", "bicubic")):
        Path(name).mkdir()
        result = {
            "figures": {"fid": 3.0},
            "n": 10,
            "comparable": {"features": {"resize": resize}, "n": 10},
            "values": {},
        }
        Path(name, "result.json").write_text(json.dumps(result))
        np.savez(Path(name, "values.npz"))
    refused(2, "features.resize is bilinear in one and bicubic in the other", "evaluate", "compare", "x", "y")


def of(unit: str, values: list[float], figure: float, shared: float = 0.0, **more: float) -> Recorded:
    result = {"figures": {"f": figure} | more, "n": 10, "comparable": {}}
    kept = {"f": Values(unit, torch.tensor(values, dtype=torch.float64), shared)} if values else {}  # type: ignore[arg-type]
    return Recorded(Path("x"), result, kept)


def test_blocks_are_paired_and_few() -> None:
    """A common shift of every block cancels; the reach is Student's t with one degree of freedom less than blocks."""
    a, b = [1.0, 5.0, 9.0, 2.0], [0.5, 4.0, 8.5, 1.0]
    found, how = _comparing._difference("f", of("block", a, 4.0), of("block", b, 3.0), None)  # type: ignore[arg-type]
    error = np.std(np.subtract(a, b), ddof=1) / 2
    assert found is not None
    assert found.value == 1.0
    assert found.high - found.value == pytest.approx(float(stdtrit(3, 0.975)) * error, rel=1e-12)
    assert how == "paired blocks"
    assert error < 0.2 * math.hypot(np.std(a, ddof=1), np.std(b, ddof=1)) / 2, "the control: not paired"


def test_subsets_share_samples() -> None:
    gen = torch.Generator().manual_seed(0)
    real = torch.randn(400, 4, dtype=torch.float64, generator=gen)
    first, second = (kid(real, real + shift, subsets=20, size=100) for shift in (0.5, 0.4))
    assert first.shared == 0.25
    kept = [of("subset", list(each.values), each.mean, each.shared) for each in (first, second)]
    found, _ = _comparing._difference("f", *kept, None)  # type: ignore[arg-type]
    assert found is not None
    differences = torch.tensor(first.values) - torch.tensor(second.values)
    want = 1.959964 * overlapping_error(differences.double(), 0.25)
    assert found.high - found.value == pytest.approx(want, rel=1e-4)
    naive = 1.96 * float(differences.std()) / math.sqrt(20)
    assert want > 2.5 * naive, "the control: sqrt((1/20 + 1/3) / (1/20)) is 2.77"


def test_figures_without_values() -> None:
    found, how = _comparing._difference("f", of("", [], 2.0, f_error=0.3), of("", [], 1.0, f_error=0.4), None)  # type: ignore[arg-type]
    assert how == "not paired"
    assert found is not None
    assert found.high - found.value == pytest.approx(1.959964 * 0.5, rel=1e-6)
    assert _comparing._difference("f", of("", [], 2.0), of("", [], 1.0), None) == (None, "")  # type: ignore[arg-type]
