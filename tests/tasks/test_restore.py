"""`gentk restore` as users run it: figures, files by name, stops, pictures left out, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gentk import data
from gentk.data.digits import read
from gentk.recipe.schema import Data
from gentk.restoring import ddnm
from gentk.tasks.restore import _restoring
from tests.tasks.test_sample_evaluate import done, info, refused
from tests.tasks.toys import VE, write_teacher

FEW = ("-n", 5, "--steps", 4, "--out")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def result(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(folder, "result.json").read_text())
    return found


def restored(folder: str) -> dict[str, bytes]:
    root = Path(folder, "restored")
    return {str(p.relative_to(root)): opened(p).tobytes() for p in sorted(root.rglob("*.png"))}


def opened(path: object) -> np.ndarray[Any, np.dtype[np.uint8]]:
    with Image.open(str(path)) as image:
        return np.asarray(image)


def digits(folder: str, n: int = 4) -> Path:
    """A folder of measured pictures: held-out digits."""
    x = read(Data(name="digits"), "test").x
    root = Path(folder)
    for i in range(n):
        path = root / ("more" if i == 3 else "") / f"digit {i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(x[i, 0].numpy() if isinstance(x, torch.Tensor) else x[i, 0]).save(path)
    return root


@pytest.mark.parametrize("method", ["dps", "pigdm", "ddnm", "diffpir"])
def test_every_restorer_and_what_it_leaves(method: str) -> None:
    few: tuple[object, ...] = (*FEW, "run")
    if method == "pigdm":  # few steps are too bold for draws
        few = ("--draws", 5, "-n", 3, "--steps", 18, "--out", "run")
    said = done("restore", method, *few)
    found, run = result("run"), info(Path("run"))
    figures = found["figures"]
    assert run["metrics"] == figures
    n, steps = (3, 18) if method == "pigdm" else (5, 4)
    assert list(restored("run")) == [f"{k:06d}.png" for k in range(n)]
    assert (figures["images"], figures["left_out"], figures["nfe"]) == (n, 0, steps)
    assert figures["backward_passes"] == {"dps": 4, "pigdm": 4 * 18, "ddnm": 0, "diffpir": 0}[method]
    assert figures["psnr"] > figures["psnr_measured"]
    assert found["restorer"]["draws_are"] == ("point" if method == "dps" else "approximate")
    page = Path("run/report.html").read_text()
    assert ("Point restoration" in page) == (method == "dps")
    assert "http" not in page.replace("https://arxiv.org", "").replace("http-equiv", "")
    assert Path("run/samples/panels.png").stat().st_size > 500
    assert not Path("run/parts").exists()
    if method == "pigdm":
        assert 0 < figures["coverage_90"] <= 1
        assert figures["z_rms"] > 0
        assert figures["psnr"] > figures["psnr_one_draw"]
        assert len(list(Path("run/std").glob("*.png"))) == 3
    assert done("restore", method, *few).stdout == said.stdout  # a finished run answers as it did


def test_noise_is_undone_by_the_priors_own_process() -> None:
    """It walks the levels below sigma only, its draws are the model's posterior, and other operators are refused."""
    done("restore", "reverse", "-n", 4, "--draws", 4, "--steps", 12, "--out", "run")
    found = result("run")
    figures = found["figures"]
    assert found["levels"][0] == 0.5
    assert found["levels"] == sorted(found["levels"], reverse=True)
    assert figures["nfe"] == len(found["levels"]) - 1 == 12
    assert figures["backward_passes"] == 0
    assert figures["psnr"] > max(figures["psnr_one_draw"], figures["psnr_measured"])
    assert found["restorer"]["draws_are"] == "exact"
    assert "own posterior, exact but for the size of the steps" in Path("run/report.html").read_text()
    few = ("restore", "reverse", "--steps", 12, "--out", "other")
    refused(2, "`reverse` undoes noise alone", *few, "--operator", "inpaint")
    refused(2, "sigma: 0: `reverse` with these settings needs noise", *few, "--sigma", 0)


def test_results_that_have_diverged_are_flagged() -> None:
    """A step that is far too long: the run says so in words and in a figure, and a sound one does not."""
    done("restore", "dps", *FEW, "wild", "--set", "method.scale=50.0")
    assert result("wild")["figures"]["wild"] > 0
    assert "they have diverged" in Path("wild/answer.txt").read_text()
    done("restore", "ddnm", *FEW, "sound")
    assert result("sound")["figures"]["wild"] == 0
    assert "diverged" not in Path("sound/answer.txt").read_text()


def test_figures_are_those_of_the_files() -> None:
    done("restore", "ddnm", *FEW, "run")
    x = data.load(Data(name="digits"), "test").x[:5]
    made = torch.tensor(np.stack([opened(f"run/restored/{k:06d}.png") for k in range(5)]))[:, None]
    error = (made.double() - x.double()).square().flatten(1).mean(1)
    assert result("run")["figures"]["psnr"] == pytest.approx(float((10 * (255**2 / error).log10()).mean()), abs=0.05)


def test_batches_do_not_matter_and_seeds_do() -> None:
    words = ("restore", "pigdm", "--draws", 2, *FEW)
    done(*words, "a")
    done(*words, "b", "--set", "batch=3")
    done(*words, "c", "--seed", 1)
    a, b, c = (restored(f) for f in "abc")
    near = [np.abs(np.frombuffer(a[k], np.uint8).astype(int) - np.frombuffer(b[k], np.uint8)).max() for k in a]
    assert max(near) <= 1  # kernels round differently in other batches
    assert a != c


def test_stopped_and_gone_on_is_undisturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("restore", "ddnm", "--set", "batch=2", *FEW)
    done(*words, "whole")
    calls, restore = [], ddnm.restore

    def killed(*a: Any, **own: Any) -> Any:
        calls.append(len(a[2]))
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return restore(*a, **own)

    monkeypatch.setattr(ddnm, "restore", killed)
    refused(75, "stopped by SIGTERM", *words, "part")
    assert len(list(Path("part/parts").glob("*.safetensors"))) == 2
    done(*words, "part")
    assert calls == [2, 2, 2, 1]
    assert restored("part") == restored("whole")


def test_a_folder_comes_out_by_its_names_and_an_unreadable_file_is_left_out() -> None:
    """Skipped, listed, exit 1 at the end with all others restored; mended, only it is left to do."""
    root = digits("in")
    (root / "broken.png").write_bytes(b"no picture")
    Image.new("L", (9, 9)).save(root / "large.png")
    Image.new("RGB", (8, 8), "red").save(root / "red.png")
    words = ("restore", "ddnm", "--input", "in", "--operator", "noise", "--sigma", 0.3, "--steps", 4, "--out", "run")
    refused(1, "3 picture(s) were left out, all others are restored", *words)
    names = ["digit 0.png", "digit 1.png", "digit 2.png", "more/digit 3.png"]
    assert list(restored("run")) == names
    found = result("run")
    assert set(found["left_out"]) == {"broken.png", "large.png", "red.png"}
    assert "cannot be read" in found["left_out"]["broken.png"]
    assert "9 x 9 pixels, 8 x 8 were measured" in found["left_out"]["large.png"]
    assert "a colour picture" in found["left_out"]["red.png"]
    assert "psnr" not in found["figures"]
    assert info(Path("run"))["status"] == "failed"
    assert "Left out: broken.png" in Path("run/report.html").read_text()
    before = restored("run")
    for name in ("broken.png", "large.png", "red.png"):
        (root / name).unlink()
    done(*words)
    assert restored("run") == before
    assert info(Path("run"))["status"] == "done"


def test_only_what_was_mended_is_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    root = digits("in", 3)
    (root / "digit 1.png").write_bytes(b"no picture")
    calls, restored_by = [], _restoring._restored
    monkeypatch.setattr(
        _restoring,
        "_restored",
        lambda plan, recipe, items, where: calls.append(len(items)) or restored_by(plan, recipe, items, where),
    )
    words = ("restore", "ddnm", "--input", "in", "--operator", "noise", "--sigma", 0.3, "--steps", 4, "--out", "run")
    refused(1, "1 picture(s) were left out", *words)
    digits("in", 3)
    done(*words)
    assert calls == [2, 1]


def test_a_smaller_measurement_comes_out_in_the_models_size() -> None:
    Path("in").mkdir()
    for i in range(2):
        Image.new("L", (4, 4), 100 + i).save(f"in/{i}.png")
    done("restore", "ddnm", "--input", "in", "--operator", "downsample", "--sigma", 0.0, "--steps", 4, "--out", "run")
    assert [opened(f"run/restored/{i}.png").shape for i in range(2)] == [(8, 8)] * 2
    means = opened("run/restored/0.png").astype(float).reshape(4, 2, 4, 2).mean((1, 3))
    assert np.abs(means - 100).max() <= 2  # bytes, and values cut at black
    assert "75 % are not measured" in Path("run/answer.txt").read_text()


def test_what_is_refused() -> None:
    digits("in", 2)
    Path("dark").mkdir()
    (Path("dark") / "a.png").write_bytes(b"no")
    Path("twice").mkdir()
    for name in ("a.png", "a.bmp"):
        Image.new("L", (8, 8)).save(Path("twice") / name)
    np.savez("none.npz", mask=np.zeros((8, 8)))
    points = write_teacher(Path("points.safetensors"), process=VE)
    labelled = write_teacher(Path("l.safetensors"), process=VE, name="unet", width=8, classes=3, label_dropout=0.0)
    noise = ("--operator", "noise")
    for code, words, said in (
        (2, ("dps", "--draws", 4), "is point restoration: the spread of its results is no uncertainty"),
        (2, ("pigdm", "--sigma", 0), "sigma: 0: `pigdm` with these settings needs noise"),
        (2, ("ddnm", "--operator", "impaint"), "did you mean `inpaint`"),
        (2, ("ddnm", "--operator", "blur", "--set", "operator.size=9"), "does not fit into images of 8 x 8"),
        (2, ("ddnm", "--operator", "grey"), "takes colour images"),
        (2, ("ddnm", "--set", "operator.mask=none.npz"), "not one pixel is kept"),
        (3, ("ddnm", "--set", "operator.mask=absent.npz"), "no such file"),
        (2, ("ddnm", "--model", points), "restored are images"),
        (2, ("ddnm", "--model", labelled), "has always seen its labels"),
        (2, ("ddnm", "--model", "sim-digits"), "here a denoiser or energy is needed"),
        (2, ("ddnm", "--input", "in"), "which pixels were kept is not known"),
        (2, ("ddnm", "--input", "nowhere", *noise), "no such folder"),
        (2, ("ddnm", "--input", "dark", *noise), "not one picture can be restored"),
        (2, ("ddnm", "--input", "twice", *noise), "two pictures are called a"),
        (2, ("ddnm", "-n", 100_000), "100000 images are asked for"),
        (2, ("ddnm", "--set", "sigma=null"), "sigma"),
    ):
        refused(code, said, "restore", *words, "--set", "steps=3", "--out", "run")
        assert not Path("run").exists() or not (Path("run") / "result.json").exists()


def test_sigma_has_no_default(write: Any) -> None:
    """A recipe without it is refused: a sigma that nobody gave is a wrong one (trap 3)."""
    text = "task: restore\nabout: none\nsize: smoke\ndata: {name: digits}\nmodel: edm-digits\noperator: {name: noise}\n"
    path = write("r.yaml", text + "method: {name: ddnm}\n")
    refused(2, "sigma: required, but missing", "restore", "--recipe", path)


def test_a_dry_run_says_what_it_would_do() -> None:
    said = done("restore", "dps", "-n", 5, "--dry-run", "--out", "run").stdout
    assert "5 images, 1 draw(s) of 100 evaluations each, by dps (point)" in said
    assert not Path("run").exists()
