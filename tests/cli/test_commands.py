"""The commands as a user runs them: train, distil, sample, measure; what they answer and how they end."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from gentk.cli.app import app
from tests.conftest import DENOISER, DISTILL

Write = Callable[[str, str], Path]


def gentk(*words: object) -> Result:
    return CliRunner().invoke(app, [str(w) for w in words])


def answer(*words: object) -> dict:  # type: ignore[type-arg]
    result = gentk(*words, "--json", "--quiet")
    assert result.exit_code == 0, result.stderr or result.exception
    return json.loads(result.stdout)


def failure(code: int, *words: object) -> str:
    """The error text of a command that must end with `code`, without a traceback."""
    result = gentk(*words)
    assert result.exit_code == code, (result.exit_code, result.stdout, result.stderr, result.exception)
    assert result.stderr.startswith("error: ") or "\nerror: " in result.stderr, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    return result.stderr


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run of the smallest denoiser."""
    folder = tmp_path_factory.mktemp("teacher")
    (folder / "recipe.yaml").write_text(DENOISER)
    answer("train", "--recipe", folder / "recipe.yaml", "--out", folder / "run")
    return folder / "run"


@pytest.fixture(scope="session")
def student(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generator distilled from it."""
    folder = tmp_path_factory.mktemp("student")
    (folder / "recipe.yaml").write_text(DISTILL.replace("TEACHER", str(teacher)))
    answer("distill", "--recipe", folder / "recipe.yaml", "--out", folder / "run")
    return folder / "run"


def test_a_run_folder_is_complete(teacher: Path, student: Path) -> None:
    for run, export in ((teacher, "denoiser"), (student, "generator")):
        assert {"run.json", "recipe.yaml", "metrics.jsonl", "log.txt", "report.html"} <= {p.name for p in run.iterdir()}
        assert (run / "export" / f"{export}.safetensors").is_file()
        info = json.loads((run / "run.json").read_text())
        assert info["status"] == "done"
        assert info["step"] == info["steps"]
    assert {p.name for p in (student / "samples").glob("teacher-student-*.png")} == {
        f"teacher-student-{s:08d}.png" for s in (0, 3, 6)
    }
    assert len(list((student / "samples").glob("teacher-fake-*.png"))) == 3


def test_the_best_student_is_kept_and_can_be_sampled(teacher: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(DISTILL.replace("TEACHER", str(teacher)))
    run = tmp_path / "run"
    answer("distill", "--recipe", tmp_path / "recipe.yaml", "--out", run, "--set", "measure.preview=64")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    seen = {line["step"]: line for line in lines if "eval/fd" in line}
    assert len(seen) == 3
    assert seen[0]["eval/fd_raw"] == seen[0]["eval/fd"], "before the first step the average is the network itself"
    assert seen[6]["eval/fd_raw"] != seen[6]["eval/fd"]
    best = min(seen, key=lambda step: seen[step]["eval/fd"])
    assert json.loads((run / "run.json").read_text())["best"] == {"step": best, "fd": seen[best]["eval/fd"]}
    answer("sample", "one-step", "--model", run / "best" / "generator.safetensors", "-n", 2, "--out", tmp_path / "b")


def test_distill_reports_the_figures_of_the_contract(student: Path) -> None:
    metrics = json.loads((student / "run.json").read_text())["metrics"]
    assert metrics["nfe_student"] == 1
    assert metrics["nfe_teacher"] == 7
    assert {
        "fd_student",
        "fd_teacher",
        "precision_student",
        "recall_student",
        "ms_per_sample_student",
    } <= metrics.keys()
    assert metrics["fd_ratio"] == pytest.approx(metrics["fd_student"] / metrics["fd_teacher"])


def test_the_recipe_of_a_run_reproduces_it_bit_for_bit(teacher: Path, tmp_path: Path) -> None:
    again = answer("train", "--recipe", teacher / "recipe.yaml", "--out", tmp_path / "again")
    name = "export/denoiser.safetensors"
    first, second = ((folder / name).read_bytes() for folder in (teacher, Path(again["run"])))
    # the headers differ in measured times; the tensors follow them
    length = [8 + int.from_bytes(b[:8], "little") for b in (first, second)]
    assert first[length[0] :] == second[length[1] :]


def test_another_seed_gives_another_model(teacher: Path, tmp_path: Path) -> None:
    again = answer("train", "--recipe", teacher / "recipe.yaml", "--out", tmp_path / "again", "--seed", 1)
    assert again["metrics"]["fd"] != json.loads((teacher / "run.json").read_text())["metrics"]["fd"]


def test_json_answer_and_finished_runs(teacher: Path) -> None:
    """Running a finished command again answers at once from the folder."""
    before = (teacher / "run.json").read_bytes()
    got = answer("train", "denoiser", "--recipe", teacher / "recipe.yaml", "--out", teacher)
    assert set(got) == {"task", "method", "recipe", "run", "status", "seconds", "metrics"}
    assert got["status"] == "done"
    assert (teacher / "run.json").read_bytes() == before


def test_stdout_is_the_run_folder_alone(teacher: Path) -> None:
    result = gentk("train", "--recipe", teacher / "recipe.yaml", "--out", teacher)
    assert result.stdout == f"{teacher}\n"


def test_fresh_keeps_the_old_folder_aside(write: Write, tmp_path: Path) -> None:
    recipe = write("r.yaml", DENOISER)
    for _ in range(3):
        answer("train", "--recipe", recipe, "--out", tmp_path / "run", "--fresh", "--set", "train.steps=4")
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["run", "run.old-1", "run.old-2"]
    assert json.loads((tmp_path / "run.old-1" / "run.json").read_text())["status"] == "done"


def test_sampling_does_not_depend_on_the_batch(teacher: Path, tmp_path: Path) -> None:
    outs = []
    for batch in (5, 64):
        got = answer(
            "sample",
            "heun",
            "--model",
            teacher,
            "-n",
            12,
            "--set",
            f"batch={batch}",
            "--nfe",
            7,
            "--out",
            tmp_path / str(batch),
        )
        outs.append(np.load(Path(got["run"]) / "samples.npz")["samples"])
    assert outs[0].shape == (12, 2)
    np.testing.assert_allclose(outs[0], outs[1], rtol=0, atol=1e-5)
    got = answer(
        "sample",
        "heun",
        "--model",
        teacher,
        "-n",
        4,
        "--set",
        "first=8",
        "--nfe",
        7,
        "--out",
        tmp_path / "tail",
    )
    np.testing.assert_allclose(np.load(Path(got["run"]) / "samples.npz")["samples"], outs[0][8:], rtol=0, atol=1e-5)


def test_sample_one_step_and_euler_and_measure_them(teacher: Path, student: Path, tmp_path: Path) -> None:
    one = answer("sample", "one-step", "--model", student, "-n", 50, "--out", tmp_path / "one")
    assert one["metrics"]["nfe"] == 1
    assert (tmp_path / "one" / "samples" / "grid.png").is_file()
    euler = answer("sample", "euler", "--model", teacher, "-n", 50, "--out", tmp_path / "euler", "--nfe", 6)
    assert euler["metrics"]["nfe"] == 6
    common = [
        "--set",
        "reference.name=points:ring8",
        "--set",
        "reference.points=300",
        "--set",
        "method.features=identity",
    ]
    stored = answer("evaluate", "fd", "--samples", tmp_path / "one", *common, "--out", tmp_path / "m1")
    assert stored["metrics"]["n"] == 50
    drawn = answer("evaluate", "fd", "--samples", student, *common, "--set", "method.n=50", "--out", tmp_path / "m2")
    assert drawn["metrics"]["nfe"] == 1
    assert drawn["metrics"]["fd"] == pytest.approx(stored["metrics"]["fd"], rel=1e-4)


def test_dry_run_says_the_plan_and_writes_nothing(write: Write, tmp_path: Path) -> None:
    result = gentk("train", "--recipe", write("r.yaml", DENOISER), "--out", tmp_path / "run", "--dry-run")
    assert result.exit_code == 0
    assert "parameters, averaged" in result.stdout
    assert "12 steps of 16: 192 images" in result.stdout
    assert not (tmp_path / "run").exists()


def test_a_subject_without_a_recipe_uses_the_default_and_says_so(teacher: Path, tmp_path: Path) -> None:
    words = ("--set", "measure=null", "--set", "train.steps=2", "--out", tmp_path / "run")
    result = gentk("distill", "sim", "--teacher", teacher, *words)
    assert result.exit_code == 0, result.stderr
    assert "distill/sim/edm-digits with teacher" in result.stderr
    assert f"teacher: {teacher}" in (tmp_path / "run" / "recipe.yaml").read_text()


def test_without_out_the_same_command_finds_its_folder(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = write("r.yaml", DENOISER)
    first = answer("train", "--recipe", recipe, "--set", "train.steps=2")
    second = answer("train", "--recipe", recipe, "--set", "train.steps=2")
    other = answer("train", "--recipe", recipe, "--set", "train.steps=3")
    assert first["run"] == second["run"] != other["run"]
    assert first["run"].startswith("runs/train-denoiser-points-ring8-")


# --- what can be wrong ------------------------------------------------------------------------------------------------


def test_all_faults_of_a_recipe_at_once(write: Write) -> None:
    text = (
        DENOISER.replace("label_dropout: 0.1", "label_drop: 0.1")
        .replace("lr: 1e-3", "lr: fast")
        .replace("steps: 12", "steps: 0")
    )
    said = failure(2, "train", "--recipe", write("r.yaml", text))
    assert "r.yaml:6: method.label_drop: unknown key; did you mean `label_dropout`?" in said
    assert "r.yaml:7: optim.lr" in said
    assert "r.yaml:9: train.steps" in said
    assert said.count("error: ") == 3


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("distill", "simm"), "did you mean `sim`?"),
        (("distill",), "which method?"),
        (("distill", "sim", "--teacher", "classifier-digits", "--set", "method.sigma_init=-1"), "method.sigma_init"),
        (("train", "--recipe", "train/denoiser/digit"), "did you mean"),
        (("train", "denoiser", "--data", "digit"), "did you mean `digits`?"),
        (("train", "denoiser", "--set", "train.stpes=3"), "did you mean `steps`?"),
        (("train", "denoiser", "--set", "train.steps"), "--set train.steps"),
        (("train", "denoiser", "--set", "train.accumulate=3"), "cannot be split into 3 equal parts"),
        (("train", "denoiser", "--device", "tpu"), "not one of auto, cpu, cuda"),
        (("train", "classifier", "--recipe", "train/denoiser/digits"), "is for `gentk train denoiser`"),
        (("train", "denoiser", "--set", "net.multipliers=[1,2,2,2,2]"), "divisible by 16"),
        (("train", "denoiser", "--set", "net={name: mlp}"), "`mlp` takes points"),
        (("train", "classifier", "--data", "points:ring8"), "no labels"),
        (("sample", "one-step", "--model", "edm-digits"), "is a denoiser"),
        (("sample", "heun", "--set", "labels=[3, 10]"), "outside the model's range"),
        (("distill", "sim", "--teacher", "classifier-digits"), "is a classifier"),
    ],
)
def test_commands_that_are_wrong(
    words: tuple[str, ...], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert expected in failure(2, *words)


def test_resume_on_nothing(write: Write, tmp_path: Path) -> None:
    assert "holds no run" in failure(
        2, "train", "--recipe", write("r.yaml", DENOISER), "--out", tmp_path / "x", "--resume"
    )
    assert not (tmp_path / "x").exists()


def test_a_folder_of_another_recipe(teacher: Path) -> None:
    before = {p.name: p.stat().st_mtime_ns for p in teacher.iterdir()}
    said = failure(2, "train", "--recipe", teacher / "recipe.yaml", "--out", teacher, "--set", "train.steps=13")
    assert "train.steps: 12 there, 13 here" in said
    assert {p.name: p.stat().st_mtime_ns for p in teacher.iterdir() if p.name != "run.lock"} == {
        k: v for k, v in before.items() if k != "run.lock"
    }


def test_a_folder_that_is_no_run(write: Write, tmp_path: Path) -> None:
    write("out/thesis.tex", "precious")
    assert "not a run folder" in failure(2, "train", "--recipe", write("r.yaml", DENOISER), "--out", tmp_path / "out")


def test_out_that_cannot_be_written(write: Write, tmp_path: Path) -> None:
    write("file", "")
    said = failure(1, "train", "--recipe", write("r.yaml", DENOISER), "--out", tmp_path / "file" / "run")
    assert "cannot be written" in said
    assert "--out" in said


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_out_without_permission(write: Write, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o555)
    assert "cannot be written" in failure(
        1, "train", "--recipe", write("r.yaml", DENOISER), "--out", tmp_path / "locked" / "run"
    )


def test_missing_data_and_model_files(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("GENTK_DATA", raising=False)
    words = ("--out", tmp_path / "run")
    assert "mnist" in failure(
        3, "train", "denoiser", "--data", "mnist", "--set", f"data.root={tmp_path / 'no'}", *words
    )
    failure(3, "train", "denoiser", "--data", f"images:{tmp_path / 'no'}", *words)
    failure(3, "sample", "heun", "--model", tmp_path / "no.safetensors", "--out", tmp_path / "s")
    said = failure(3, "distill", "sim", "--teacher", "edm-digit", "--out", tmp_path / "d")
    assert "did you mean `edm-digits`?" in said
    (tmp_path / "empty").mkdir()
    assert "holds no pictures" in failure(2, "train", "denoiser", "--data", f"images:{tmp_path / 'empty'}", *words)
    answer("train", "--recipe", write("r.yaml", DENOISER), *words)  # what failed before its first step holds no place


def test_images_of_the_wrong_size(write: Write, tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "pictures").mkdir()
    for k in range(12):
        Image.new("L", (8, 8), k).save(tmp_path / "pictures" / f"{k:02d}.png")
    words = ("train", "denoiser", "--data", f"images:{tmp_path / 'pictures'}", "--out", tmp_path / "run")
    assert "16" in failure(2, *words, "--set", "data.size=16")
    Image.new("L", (9, 8)).save(tmp_path / "pictures" / "05.png")
    assert "05.png" in failure(2, *words)


def test_a_model_file_of_another_architecture(teacher: Path, tmp_path: Path) -> None:
    """The header promises a wider network than the tensors are."""
    import struct

    data = (teacher / "export" / "denoiser.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = data[8 : 8 + length].replace(b'\\"width\\": 16', b'\\"width\\": 32')
    path = tmp_path / "wrong.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + data[8 + length :])
    said = failure(1, "sample", "heun", "--model", path, "--out", tmp_path / "s")
    assert "holds another architecture" in said
    assert "expected" in said


@pytest.mark.parametrize("damage", ["short", "garbage", "foreign"])
def test_a_damaged_model_file(teacher: Path, tmp_path: Path, damage: str) -> None:
    import safetensors.torch
    import torch

    path = tmp_path / "m.safetensors"
    data = (teacher / "export" / "denoiser.safetensors").read_bytes()
    if damage == "short":
        path.write_bytes(data[:-5])
    elif damage == "garbage":
        path.write_bytes(b"\x00" * 100)
    else:
        safetensors.torch.save_file({"w": torch.zeros(1)}, path)
    said = failure(1, "sample", "heun", "--model", path, "--out", tmp_path / "s")
    assert str(path) in said


def test_samples_that_do_not_fit_the_reference(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", samples=np.zeros((20, 2), np.float32))
    assert "shape" in failure(2, "evaluate", "fd", "--samples", tmp_path / "s.npz", "--out", tmp_path / "m")
    np.savez(tmp_path / "nan.npz", samples=np.full((20, 2), np.nan, np.float32))
    said = failure(1, "evaluate", "fd", "--samples", tmp_path / "nan.npz", "--out", tmp_path / "m2")
    assert "not all finite" in said


def test_a_failed_run_says_so_in_its_folder(write: Write, tmp_path: Path) -> None:
    text = DENOISER.replace("lr: 1e-3", "lr: 1e30")
    said = failure(1, "train", "--recipe", write("r.yaml", text), "--out", tmp_path / "run")
    assert "phase `denoiser`" in said
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert info["status"] == "failed"
    assert "phase `denoiser`" in info["error"]
    assert "failed" in (tmp_path / "run" / "report.html").read_text()
