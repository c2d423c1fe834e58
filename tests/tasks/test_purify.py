"""`gentk purify` as users run it: figures, files, stops, stored images, short options, and what it refuses."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from gentk.attacks import stored, suite
from gentk.nets.small_classifiers import TwoConv
from gentk.recipe import load
from gentk.tasks.purify import _measuring
from gentk.tasks.purify._bench import build, seeds
from tests.tasks.test_sample_evaluate import done, info, refused
from tests.tasks.toys import VE, write_teacher

FEW = ("-n", 12, "--steps", 3, "--eot", 2, "--eval-draws", 4, "--set", "attack.queries=6", "--set", "batch=5")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def result(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(folder, "result.json").read_text())
    return found


def timeless(folder: str) -> dict[str, Any]:
    """The result without what a clock or the machine's memory says."""
    found = result(folder)
    for row in found["attacks"].values():
        row.pop("seconds")
    return {k: v for k, v in found.items() if k not in ("purify_ms", "peak_memory_mb", "versions")}


def adversarial(folder: str, name: str) -> Tensor:
    return safetensors.torch.load_file(f"{folder}/adversarial/{name}.safetensors")["x"]


def test_the_suite_and_everything_it_leaves() -> None:
    said = done("purify", "one-shot", *FEW, "--out", "run")
    found, run = result("run"), info(Path("run"))
    assert set(found["attacks"]) >= {"blind", "bpda", "one-step", "pgd-eot", "frozen", "square"}
    threat = found["threat"]
    assert threat["seeds"] == {"attack": 0, "scoring": 10_000, "subset": 0}
    assert (threat["norm"], threat["eps"], threat["images"], threat["draws"]) == ("linf", 0.2, 12, 4)
    assert threat["votes"] == {"clean": 1, "robust": 1}
    assert len(set(threat["ids"])) == 12
    assert threat["knowledge"]["pgd-eot"] == "full"
    assert found["defence"]["nfe"] == 1
    assert found["claim"].startswith("robust accuracy under the attacks tried: an upper bound")
    for rule in ("single", "average", "worst-of-4", "vote-4"):
        least = found["minimum"][rule][0]
        assert all(least <= row["accuracy"][rule][0] + 1e-12 for row in found["attacks"].values())
        value, low, high = found["clean"][rule]
        assert low <= value <= high
    assert run["metrics"]["robust"] == pytest.approx(found["minimum"]["average"][0])
    assert run["metrics"]["clean"] == pytest.approx(found["clean"]["average"][0])
    assert run["metrics"]["undefended_clean"] == 1.0
    rows = list(csv.DictReader(Path("run/images.csv").read_text().splitlines()))
    assert [int(r["index"]) for r in rows] == threat["ids"]
    average = sum(int(r["pgd-eot"]) for r in rows) / 48
    assert average == pytest.approx(found["attacks"]["pgd-eot"]["accuracy"]["average"][0])
    assert max(float(r["pgd-eot_distance"]) for r in rows) <= 0.2 + 1e-6
    assert not Path("run/parts").exists()
    page = Path("run/report.html").read_text()
    for words in ("minimum", "all of them", "upper bounds", "was not run: torchattacks"):
        assert words in page or (words.startswith("was") and "autoattack" in found["attacks"])
    assert "http" not in page.replace("https://arxiv.org", "").replace("http-equiv", "")
    assert Path("run/samples/images.png").stat().st_size > 500
    assert "minimum" in said.stdout
    assert done("purify", "one-shot", *FEW, "--out", "run").stdout == said.stdout  # a finished run answers as it did


def test_stopped_and_gone_on_is_undisturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the fifth batch of attacks: four are kept, and the answer is that of the run that was left alone."""
    words = ("purify", "one-shot", *FEW, "--out")
    done(*words, "whole")
    calls, attack = [], suite.attack

    def killed(*a: Any) -> Any:
        calls.append(a[0])
        if len(calls) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return attack(*a)

    monkeypatch.setattr(suite, "attack", killed)
    refused(75, "stopped by SIGTERM", *words, "part")
    assert calls == ["blind"] * 3 + ["bpda"] * 2
    assert len(list(Path("part/parts").glob("bpda-*.safetensors"))) == 1
    done(*words, "part")
    assert calls[5:7] == ["bpda"] * 2
    assert timeless("part") == timeless("whole")
    assert torch.equal(adversarial("part", "pgd-eot"), adversarial("whole", "pgd-eot"))


def test_batches_do_not_matter() -> None:
    done("purify", "one-shot", *FEW, "--attack", "pgd-eot", "--out", "a")
    done(
        "purify", "one-shot", *FEW, "--attack", "pgd-eot", "--set", "batch=12", "--set", "attack.chunk=7", "--out", "b"
    )
    assert (
        float((adversarial("a", "pgd-eot") - adversarial("b", "pgd-eot")).abs().max()) < 0.2
    )  # signs of small gradients
    same = (adversarial("a", "pgd-eot") - adversarial("b", "pgd-eot")).abs() < 1e-6
    assert float(same.double().mean()) > 0.98


def test_undefended_falls_and_no_attack_is_clean() -> None:
    """Control 1: the bare classifier goes to nothing at eps 0.2; at eps 0 nothing happens."""
    done("purify", "none", "-n", 64, "--steps", 20, "--attack", "pgd", "--out", "down")
    assert result("down")["attacks"]["pgd"]["accuracy"]["single"][0] < 0.02
    done("purify", "none", "-n", 364, "--attack", "none", "--out", "clean")
    assert info(Path("clean"))["metrics"]["clean"] == pytest.approx(361 / 364)
    done("purify", "one-shot", *FEW, "--attack", "pgd-eot", "--eps", 0, "--out", "zero")
    found = result("zero")
    assert found["attacks"]["pgd-eot"]["accuracy"] == found["clean"]


def test_blind_alone_is_called_non_adaptive() -> None:
    done("purify", "one-shot", *FEW, "--attack", "blind", "--out", "run")
    found = result("run")
    assert not found["adaptive"]
    assert found["claim"].endswith("non-adaptive")
    assert "non-adaptive" in Path("run/answer.txt").read_text()
    assert info(Path("run"))["metrics"]["undefended_blind"] < 1


def test_stored_images_are_answered_again() -> None:
    done("purify", "one-shot", *FEW, "--attack", "pgd-eot", "--out", "made")
    again = ("purify", "one-shot", *FEW, "--attack", "stored:made", "--eval-seed", 77, "--out")
    done(*again, "again")
    first, second = (result(name)["attacks"]["pgd-eot"]["accuracy"]["average"] for name in ("made", "again"))
    assert first[1] <= second[0] <= first[2]  # within the interval
    assert first[0] != second[0]
    done("purify", "one-shot", *FEW, "--attack", "stored:made", "--out", "same")
    assert result("same")["attacks"]["pgd-eot"]["accuracy"] == result("made")["attacks"]["pgd-eot"]["accuracy"]
    done("purify", "none", *FEW, "--attack", "stored:made/adversarial/pgd-eot.safetensors", "--out", "other")
    refused(2, "made for linf 0.2, the recipe says linf 0.1", *again, "x", "--eps", 0.1)
    refused(2, "is not in it", *again, "x", "--subset-seed", 1)
    refused(3, "no adversarial images", "purify", "one-shot", *FEW, "--attack", "stored:nowhere", "--out", "x")
    held = stored.load(Path("made/adversarial/pgd-eot.safetensors"))
    moved = held.clean + 0.2 * torch.sign(held.x - held.clean) * 1.02  # as bytes would leave it
    tensors = {"x": moved.clamp(0, 1), "clean": held.clean, "ids": held.ids, "labels": held.y}
    head = {"format": "gentk-adversarial", "norm": "linf", "eps": "0.2", "facts": "{}"}
    safetensors.torch.save_file(tensors, "bytes.safetensors", head)
    refused(
        1, "outside of the threat", "purify", "one-shot", *FEW, "--attack", "stored:bytes.safetensors", "--out", "x"
    )


def test_two_defences_are_compared_image_by_image() -> None:
    """`gentk evaluate compare` pairs them; other images or another threat are refused."""
    for name, method in (("a", "one-shot"), ("b", "none")):
        done("purify", method, *FEW, "--attack", "pgd", "--out", name)
    said = done("evaluate", "compare", "a", "b", "--out", "cmp").stdout
    a, b = (result(name)["attacks"]["pgd"]["accuracy"]["average"][0] for name in ("a", "b"))
    assert f"pgd {a:.5g} - {b:.5g} = {a - b:.3g}" in said
    assert "paired samples, bootstrap" in said
    done("purify", "none", *FEW, "--attack", "pgd", "--eps", 0.1, "--out", "c")
    refused(2, "threat.eps is 0.2 in one and 0.1 in the other", "evaluate", "compare", "a", "c")
    done("purify", "none", *FEW, "--attack", "pgd", "--subset-seed", 4, "--out", "d")
    refused(2, "images is", "evaluate", "compare", "a", "d")


def test_short_options_are_keys_of_the_recipe() -> None:
    words = ("--eps", "8/255", "--norm", "l2", "--grad", "bpda", "--restarts", 2, "--votes", 3, "--attack-seed", 5)
    done("purify", "one-shot", *FEW, *words, "--eval-seed", 6, "--subset-seed", 7, "--attack", "pgd", "--out", "run")
    recipe = load.load(Path("run/recipe.yaml")).recipe
    assert recipe.threat.eps == 8 / 255
    assert recipe.threat.norm == "l2"
    assert recipe.attack.model_dump(include={"name", "grad", "steps", "eot", "restarts", "seed"}) == {
        "name": "pgd", "grad": "bpda", "steps": 3, "eot": 2, "restarts": 2, "seed": 5,
    }  # fmt: skip
    assert (recipe.votes, recipe.scoring.images, recipe.scoring.draws) == (3, 12, 4)
    assert (recipe.scoring.seed, recipe.scoring.subset_seed) == (6, 7)
    assert result("run")["threat"]["votes"] == {"clean": 3, "robust": 3}
    assert result("run")["threat"]["ids"] != list(range(12))


def test_curves(tmp_path: Path) -> None:
    sweep = "sweep={eps: [0.0, 0.3, 1.0], t_star: [0.3, 0.8], eot: [1, 3], images: 8}"
    done("purify", "one-shot", *FEW, "--attack", "blind", "--set", sweep, "--out", "run")
    curves = result("run")["curves"]
    assert [point[0] for point in curves["eps"]] == [0.0, 0.3, 1.0]
    assert curves["eps"][0][1] > curves["eps"][1][1] >= curves["eps"][2][1]
    assert set(curves) == {"eps", "eot", "t_star", "t_star, clean"}
    for name in ("eps", "eot", "t-star"):
        assert Path(f"run/samples/accuracy-over-{name}.png").stat().st_size > 1000
    done(
        "purify", "scoreopt-o", *FEW, "--attack", "none", "--set", "sweep={t_star: [0.4, 0.6], images: 4}", "--out", "o"
    )
    assert len(result("o")["curves"]["t_star"]) == 2
    refused(2, "no noise level to vary", "purify", "none", *FEW, "--set", "sweep={t_star: [0.4]}", "--out", "x")


def test_curves_go_on_after_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    words = (
        "purify",
        "one-shot",
        *FEW,
        "--attack",
        "none",
        "--set",
        "sweep={eps: [0.0, 0.1, 0.3], images: 4}",
        "--out",
    )
    done(*words, "whole")
    calls, attack = [], suite.attack

    def killed(*a: Any) -> Any:
        calls.append(a[5].ball.eps)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return attack(*a)

    monkeypatch.setattr(_measuring, "attack", killed)
    refused(75, "stopped by SIGTERM", *words, "part")
    done(*words, "part")
    assert calls == [0.0, 0.1, 0.3, 0.3]
    assert result("part")["curves"] == result("whole")["curves"]
    assert not Path("part/parts").exists()


@pytest.mark.parametrize("method", ["purify-pp", "scoreopt-o", "scoreopt-n", "diffpure", "one-step"])
def test_every_defence_runs(method: str) -> None:
    quick = ("--set", "method.steps=3") if method in ("purify-pp", "diffpure") else ()
    done("purify", method, "-n", 3, "--steps", 1, "--eot", 1, "--eval-draws", 2, "--set", "attack.queries=2", *quick,
         "--out", "run")  # fmt: skip
    found = result("run")
    assert ("surrogate" in found["attacks"]) == (method != "one-step")
    if method == "purify-pp":
        assert "Purify++-style" in Path("run/answer.txt").read_text()


def rows(**accuracy: float) -> _measuring.Findings:
    """Findings with these accuracies of ten images, by the rule `average`."""

    def scores(share: float) -> dict[str, Tensor]:
        return {"average": torch.full((10,), share, dtype=torch.float64)}

    found = _measuring.Findings(_measuring.Answered("clean", scores(0.97), torch.zeros(10)))
    found.rows += [_measuring.Answered(k.replace("_", "-"), scores(v), torch.zeros(10)) for k, v in accuracy.items()]
    return found


def test_masking_is_flagged_and_answered_by_the_surrogate() -> None:
    """ScoreOpt-N of the reference table: full 79.8, BPDA 62.3; the surrogate's 42.1 takes the sting out."""
    (flag,) = _measuring._flags(rows(blind=0.632, bpda=0.623, pgd_eot=0.798))
    assert flag.name == "masked"
    assert not flag.answered
    (flag,) = _measuring._flags(rows(blind=0.632, bpda=0.623, pgd_eot=0.798, surrogate=0.421))
    assert flag.answered
    assert _measuring._flags(rows(blind=0.546, bpda=0.539, pgd_eot=0.399)) == ()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--eps", "8"), 2, "8/255"),
        (("--eps", "eight"), 2, "no number"),
        (("--attack", "pdg"), 2, "none of none, blind"),
        (("--attack", "stored:"), 2, "of which run"),
        (("--attack-seed", 3, "--eval-seed", 3), 2, "are both 3"),
        (("--classifier", "mnist_cnn_kw1"), 3, "did you mean `mnist_cnn_kw01`"),
        (("--classifier", "edm-digits"), 2, "is a denoiser"),
        (("--model", "classifier-digits"), 2, "is a classifier"),
        (("--model", "sim-digits"), 2, "is a generator"),
        (("--model", "no-such"), 3, "no model `no-such`"),
        (("--set", "method.t_star=100"), 2, "outside of the model's range"),
        (("--set", "scoring.worst_of=30"), 2, "raise scoring.draws"),
        (("-n", 1000), 2, "the split has 364"),
        (("--data", "points:ring8"), 2, "no labelled images"),
        (("--grad", "whole"), 2, "attack.grad"),
    ],
)
def test_what_it_refuses(words: tuple[object, ...], code: int, said: str) -> None:
    refused(code, said, "purify", "one-shot", *words, "--dry-run")


def test_the_seed_moves_everything_and_keeps_seeds_apart() -> None:
    recipe = load.load("purify/one-shot/digits").recipe
    assert seeds(recipe) == (0, 10_000, 0)
    one, far = (recipe.model_copy(update={"seed": s}) for s in (1, 2**63 - 1))
    assert seeds(one) == (1_000_003, 1_010_003, 1_000_003)
    assert seeds(far).attack != seeds(far).scoring
    assert 0 <= max(seeds(far)) < 2**62
    done("purify", "one-shot", *FEW, "--attack", "none", "--seed", 1, "--out", "one")
    assert result("one")["threat"]["seeds"] == {"attack": 1_000_003, "scoring": 1_010_003, "subset": 1_000_003}


def test_the_bare_command_is_purify_pp() -> None:
    """`gentk purify --attack ...` needs no method; with a recipe, the recipe's counts."""
    assert "purify-pp (8 NFE)" in done("purify", "--attack", "bpda", "--dry-run").stdout
    assert "one-shot (1 NFE)" in done("purify", "--recipe", "one-shot/digits", "--dry-run").stdout


def test_autoattack_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its standard version is refused for a defence with noise; without its library it says so before anything runs."""
    words = ("purify", "one-shot", "--attack", "autoattack", "--dry-run")
    refused(2, "`standard` AutoAttack is for defences without noise", *words, "--set", "attack.version=standard")
    if importlib.util.find_spec("torchattacks") is None and importlib.util.find_spec("autoattack") is None:
        refused(3, "torchattacks cannot be imported", *words)
        refused(3, "torchattacks cannot be imported", "purify", "none", "--attack", "torchattacks:FGSM", "--dry-run")
    monkeypatch.setattr(suite, "absent", lambda name: "")
    assert "attacks: blind, autoattack" in done(*words).stdout


def test_parts_that_do_not_fit(tmp_path: Path) -> None:
    safetensors.torch.save_file(TwoConv(channels=1, size=8, classes=4).state_dict(), "w.safetensors")
    words = ("purify", "one-shot", "--dry-run", "--classifier", "w.safetensors")
    refused(2, "do not say their architecture", *words)
    stated = ("--set", "classifier.architecture=two-conv", "--set", "classifier.classes=4")
    refused(2, "tells 4 classes apart, `digits` has 10", *words, *stated)
    points = write_teacher(tmp_path / "m.safetensors", process=VE)
    refused(2, "makes images of shape (2,)", "purify", "one-shot", "--dry-run", "--model", points)
    labelled = write_teacher(tmp_path / "c.safetensors", process=VE, name="unet", classes=10, label_dropout=0.0)
    refused(2, "has always seen its labels", "purify", "one-shot", "--dry-run", "--model", labelled)
    refused(2, "purifies with a denoiser: which?", "purify", "one-shot", "--dry-run", "--set", "model=null")


def test_memory_that_is_not_there_is_said_with_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Tensor:
        raise torch.OutOfMemoryError("device full")

    monkeypatch.setattr("gentk.defences.one_shot.OneShot.__call__", full)
    refused(1, "does not fit into memory", "purify", "one-shot", *FEW, "--out", "run")


def test_the_bench_takes_each_image_once_and_says_what_it_is() -> None:
    recipe = load.load("purify/one-shot/digits", ["scoring.images=50"]).recipe
    bench = build(recipe, torch.device("cpu"))
    assert len(bench) == len(set(bench.ids.tolist())) == 50
    assert bench.x.dtype == torch.float32
    assert 0 <= float(bench.x.min()) < float(bench.x.max()) <= 1
    assert bench.facts["model"]["label"] == "none"
    other = build(
        load.load("purify/one-shot/digits", ["scoring.images=50", "scoring.subset_seed=1"]).recipe, torch.device("cpu")
    )
    assert other.ids.tolist() != bench.ids.tolist()
