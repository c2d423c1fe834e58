"""`evaluate geneval` as a command: a detector or a file of detections, scores, their errors, going on after a stop."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from gentk.errors import Stopped
from gentk.metrics import geneval, mask2former
from gentk.metrics.geneval import Clause, Detection, Prompt
from gentk.rewards import colours
from tests.tasks.test_distribution import images, png
from tests.tasks.test_sample_evaluate import done, gentk, info, refused

PROMPTS = (
    Prompt("single_object", "a cow", (Clause("cow", 1),)),
    Prompt("two_object", "a cow and a dog", (Clause("cow", 1), Clause("dog", 1))),
    Prompt("counting", "two cows", (Clause("cow", 2),), (Clause("cow", 3),)),
    Prompt("colors", "a red cow", (Clause("cow", 1, colour="red"),)),
    Prompt("position", "a dog left of a cow", (Clause("cow", 1), Clause("dog", 1, relation="left of", target=0))),
    Prompt("color_attr", "a red cow and a blue dog", (Clause("cow", 1, colour="red"), Clause("dog", 1, colour="blue"))),
)
RIGHT = {"cow": [(60, 50), (80, 50)], "dog": [(20, 50)]}  # two cows, a dog to the left of them


def found(places: dict[str, list[tuple[int, int]]]) -> dict[str, list[Detection]]:
    return {name: [Detection((x - 5, y - 5, x + 5, y + 5), 0.95) for x, y in at] for name, at in places.items()}


class Seen:
    """A detector that sees all that is right in pictures whose first pixel is odd, nothing in others."""

    name = "of the test"

    def __init__(self) -> None:
        self.pictures = 0
        self.stop_at: int | None = None

    def __call__(self, pictures: torch.Tensor) -> list[geneval.Objects]:
        answers = []
        for each in pictures:
            if self.pictures == self.stop_at:
                raise Stopped("asked to")
            self.pictures += 1
            answers.append(found(RIGHT) if each[0, 0, 0] % 2 else {})
        return answers


def colour_of(image: torch.Tensor, objects: Sequence[Detection], name: str) -> list[str]:
    return ["red" if name == "cow" else "blue"] * len(objects)


@pytest.fixture
def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Twelve pictures, two for each prompt; the first of each pair is right, and both of the first prompt."""
    monkeypatch.chdir(tmp_path)
    x = images(12, shape=(3, 16, 16))
    x[:, 0, 0, 0] = torch.tensor([1, 1] + [1, 0] * 5)
    png(Path("pictures"), x)
    Path("prompts.jsonl").write_text("".join(json.dumps(prompt.record()) + "\n" for prompt in PROMPTS))
    detector = Seen()
    monkeypatch.setattr(mask2former, "build", lambda *_, **__: detector)
    monkeypatch.setattr(colours, "build", lambda *_, **__: colour_of)
    return detector


WORDS = ("evaluate", "geneval", "--samples", "pictures", "--prompts", "prompts.jsonl", "--set", "method.per_prompt=2")


def test_scores_of_pictures_and_what_is_written(seen: Seen) -> None:
    result = done(*WORDS, "--out", "run")
    metrics = info(Path("run"))["metrics"]
    # every rule holds for RIGHT: `found` must not be what decides, so the shares are those of the odd pictures
    assert {task: metrics[f"geneval_{task}"] for task in geneval.TASKS} == dict(
        zip(geneval.TASKS, (1.0, 0.5, 0.5, 0.5, 0.5, 0.5), strict=True)
    )
    assert metrics["geneval"] == pytest.approx(3.5 / 6, rel=1e-12)
    assert "N = 12, detector: of the test" in result.stdout
    assert "GenEval-compatible" in result.stdout
    again = done("evaluate", "geneval", "--samples", "run/verdicts.jsonl", "--out", "again")
    assert "GenEval-compatible" not in again.stdout  # of a file nobody but its writer knows the detector
    for name, value in info(Path("again"))["metrics"].items():
        assert value == metrics[name]
    assert json.loads(Path("again/result.json").read_text())["verdicts_that_disagree"] == 0
    assert (Path("run") / "report.html").is_file()


def test_the_error_is_that_over_prompts() -> None:
    """Pictures of one prompt that are all alike count once: four prompts of 25 equal pictures are 4 trials, not 100."""
    from gentk.tasks.evaluate import _detecting

    tags = [task for task in geneval.TASKS for _ in range(100)]
    verdicts = [i % 100 < 50 for i in range(600)]  # two prompts right, two wrong
    finding = _detecting._finding(tags, verdicts, 25, "x")
    one = math.sqrt(1 / 3) / math.sqrt(4)  # std of (1, 1, 0, 0), over 4 prompts
    assert finding.figures["geneval_error"] == pytest.approx(one / math.sqrt(6), rel=1e-12)
    assert one > 5 * 0.05, "the control: 100 independent pictures would have 0.05"


def test_a_stopped_measurement_goes_on_with_the_next_picture(seen: Seen) -> None:
    seen.stop_at = 8
    stopped = gentk(*WORDS, "--out", "run", "--set", "method.batch=2")
    assert stopped.exit_code == 75, stopped.stderr
    verdicts = Path("run/verdicts.jsonl")
    assert len(verdicts.read_text().splitlines()) == 8
    with verdicts.open("a") as file:
        file.write('{"correct": tr')  # a torn line
    seen.stop_at, seen.pictures = None, 0
    done(*WORDS, "--out", "run", "--set", "method.batch=2")
    assert seen.pictures == 4
    assert info(Path("run"))["metrics"]["geneval"] == pytest.approx(3.5 / 6, rel=1e-12)
    assert len(verdicts.read_text().splitlines()) == 12


def test_what_cannot_be_measured(seen: Seen) -> None:
    refused(2, "24 prompts (4 pictures each) for 12 pictures", *WORDS[:6])
    refused(3, "no such file", *WORDS[:5], "none.jsonl")
    for text, said in (("", "prompts.txt: empty"), ("two cows\n", "prompts.txt:1: not a record of GenEval")):
        Path("prompts.txt").write_text(text)
        refused(1, said, *WORDS[:5], "prompts.txt")
        refused(1, "JSON a line", *WORDS[:5], "prompts.txt")
    png(Path("photographs"), images(2, shape=(3, 16, 16)) // 2 * 2)  # all even: nothing is seen
    refused(1, "the detector finds nothing on 2 photographs", *WORDS, "--set", "method.check_detector=photographs")
    done(*WORDS, "--set", "method.check_detector=pictures", "--dry-run")
    record = {"filename": "0", "metadata": PROMPTS[3].record(), "details": {"cow": [[0, 0, 9, 9, 0.9]]}}
    Path("file.jsonl").write_text(json.dumps(record) + "\n")
    refused(1, "record 1 asks for a colour and has no `correct`", "evaluate", "geneval", "--samples", "file.jsonl")


def test_a_verdict_that_its_detections_do_not_bear_is_counted(seen: Seen) -> None:
    record = {
        "filename": "0",
        "metadata": PROMPTS[0].record(),
        "details": {"cow": [[0, 0, 9, 9, 0.9]]},
        "correct": False,
    }
    Path("file.jsonl").write_text(json.dumps(record) + "\n")
    done("evaluate", "geneval", "--samples", "file.jsonl", "--out", "run")
    assert info(Path("run"))["metrics"]["geneval_single_object"] == 1
    assert json.loads(Path("run/result.json").read_text())["verdicts_that_disagree"] == 1
    assert "1 of 1 verdicts" in Path("run/log.txt").read_text()


@pytest.mark.skipif("GENTK_DATA" not in os.environ, reason="needs the data of $GENTK_DATA")
def test_records_of_the_official_prompts_survive() -> None:
    path = Path(os.environ["GENTK_DATA"]) / "prompts" / "geneval_metadata.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [prompt.record() for prompt in geneval.read_prompts(path)] == lines
