"""GenEval's rules on hand-made detections: one picture per task, each rule beside the mistake that it excludes."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from gentk.errors import GentkError, MissingAsset, RunFailed
from gentk.metrics import geneval, mask2former
from gentk.metrics.geneval import (
    Clause,
    Detection,
    Prompt,
    check_detector,
    judge,
    keep,
    read_prompts,
    read_results,
    relations,
    summarise,
)

SHARED = os.environ.get("GENTK_DATA")
on_real_data = pytest.mark.skipif(not SHARED, reason="GENTK_DATA is not set: no GenEval prompts here")
IMAGE = torch.zeros(3, 100, 100, dtype=torch.uint8)


def at(x: float, y: float, side: float = 10, score: float = 0.95) -> Detection:
    return Detection((x - side / 2, y - side / 2, x + side / 2, y + side / 2), score)


def prompt(tag: str, *include: Clause, exclude: Sequence[Clause] = ()) -> Prompt:
    return Prompt(tag, "", include, tuple(exclude))


class Painted:
    """Colours that the test says, by where each box begins."""

    def __init__(self, colours: dict[float, str]) -> None:
        self.colours = colours
        self.asked: list[int] = []

    def __call__(self, image: torch.Tensor, objects: Sequence[Detection], name: str) -> list[str]:
        self.asked.append(len(objects))
        return [self.colours[each.box[0]] for each in objects]


def test_single_object() -> None:
    asked = prompt("single_object", Clause("cow", 1))
    assert judge(asked, {"cow": [at(50, 50, score=0.31)]}).correct
    assert judge(asked, {"cow": [at(50, 50)] * 3, "dog": [at(1, 1)]}).correct  # more is no fault
    verdict = judge(asked, {"cow": [at(50, 50, score=0.3)], "dog": [at(1, 1)]})  # must be above, not at
    assert not verdict.correct
    assert verdict.reasons == ("1 cow expected, 0 found",)


def test_two_objects_must_both_be_there() -> None:
    asked = prompt("two_object", Clause("cow", 1), Clause("dog", 1))
    assert judge(asked, {"cow": [at(1, 1)], "dog": [at(2, 2)]}).correct
    for found in ({"cow": [at(1, 1)]}, {"dog": [at(1, 1)]}, {}):
        assert not judge(asked, found).correct
    assert len(judge(asked, {}).reasons) == 2


def test_counting_excludes_one_more_and_wants_certainty() -> None:
    asked = prompt("counting", Clause("cow", 2), exclude=[Clause("cow", 3)])
    assert [judge(asked, {"cow": [at(1, 1)] * n}).correct for n in range(5)] == [False, False, True, False, False]
    # Above 0.9 in this task alone: a doubtful third is not counted, doubtful two are not enough.
    assert judge(asked, {"cow": [at(1, 1)] * 2 + [at(1, 1, score=0.9)]}).correct
    assert not judge(asked, {"cow": [at(1, 1, score=0.89)] * 2}).correct
    assert judge(prompt("two_object", Clause("cow", 2)), {"cow": [at(1, 1, score=0.89)] * 2}).correct
    # The control: without the excluded count any number would do.
    assert judge(prompt("counting", Clause("cow", 2)), {"cow": [at(1, 1)] * 4}).correct


def test_colours() -> None:
    asked = prompt("colors", Clause("cow", 1, colour="red"))
    painted = Painted({0: "red", 50: "blue"})
    red, blue = at(5, 5), at(55, 5)
    assert judge(asked, {"cow": [red]}, IMAGE, painted).correct
    verdict = judge(asked, {"cow": [blue]}, IMAGE, painted)
    assert verdict.reasons == ("1 cow red expected, seen blue",)
    # Only the most certain object counts: a red one behind a blue one is not looked at.
    surer = Detection(blue.box, 0.99)
    assert not judge(asked, {"cow": [red, surer]}, IMAGE, painted).correct
    assert judge(asked, {"cow": [surer, Detection(red.box, 0.995)]}, IMAGE, painted).correct
    assert painted.asked == [1, 1, 1, 1]
    with pytest.raises(RunFailed, match="classifier of colours"):
        judge(asked, {"cow": [red]})
    assert not judge(asked, {}).correct  # nothing to look at


def test_colours_of_two_objects() -> None:
    asked = prompt("color_attr", Clause("cow", 1, colour="red"), Clause("dog", 1, colour="blue"))
    painted = Painted({0: "red", 50: "blue"})
    assert judge(asked, {"cow": [at(5, 5)], "dog": [at(55, 5)]}, IMAGE, painted).correct
    swapped = judge(asked, {"cow": [at(55, 5)], "dog": [at(5, 5)]}, IMAGE, painted)
    assert len(swapped.reasons) == 2
    many = prompt("colors", Clause("cow", 2, colour="red"))
    assert judge(many, {"cow": [at(5, 5), at(5, 50)]}, IMAGE, painted).correct
    assert not judge(many, {"cow": [at(5, 5), at(55, 5)]}, IMAGE, painted).correct


def test_position() -> None:
    asked = prompt("position", Clause("cow", 1), Clause("dog", 1, relation="right of", target=0))
    assert judge(asked, {"cow": [at(20, 50)], "dog": [at(80, 50)]}).correct
    verdict = judge(asked, {"cow": [at(80, 50)], "dog": [at(20, 50)]})
    assert verdict.reasons == ("dog right of its target expected, is left of",)
    assert judge(asked, {"dog": [at(80, 50)]}).reasons[1] == "no target for dog to be right of"
    # All pairs must be so.
    pairs = prompt("position", Clause("cow", 2), Clause("dog", 2, relation="right of", target=0))
    left, right = [at(10, 40), at(20, 60)], [at(70, 50), at(90, 50)]
    assert judge(pairs, {"cow": left, "dog": right}).correct
    assert not judge(pairs, {"cow": left, "dog": [right[0], at(15, 50)]}).correct
    assert not judge(pairs, {"cow": [left[0], at(80, 50)], "dog": right}).correct


def test_relations_one_at_a_time_and_two_at_once() -> None:
    middle = at(50, 50)
    assert relations(at(10, 50), middle) == {"left of"}
    assert relations(at(90, 50), middle) == {"right of"}
    assert relations(at(50, 10), middle) == {"above"}  # y is down
    assert relations(at(50, 90), middle) == {"below"}
    assert relations(at(90, 90), middle) == {"right of", "below"}
    assert relations(at(10, 10), middle) == {"left of", "above"}
    assert relations(middle, middle) == set()


def test_offsets_shrink_by_a_tenth_of_both_extents() -> None:
    # Extents of 10 and 10: the first 2 pixels of an offset do not count.
    assert relations(at(51.9, 50), at(50, 50)) == set()
    # dx = 4, shrunk to 2: 2/4 is not above one half, and nothing holds; a little more is.
    assert relations(at(54, 50), at(50, 50)) == set()
    assert relations(at(54.01, 50), at(50, 50)) == {"right of"}
    # Divided by the full length: dx = 12, dy = 8 shrunk to 10 and 6 over 14.42 are 0.69 and 0.42.
    assert relations(at(62, 58), at(50, 50)) == {"right of"}
    # The controls: unshrunk, 4/4 = 1 and 8/14.42 = 0.55; divided by the shrunk length, 6/11.66 = 0.51.
    for wrong in (unshrunk, normalised):
        assert wrong(at(62, 58), at(50, 50)) == {"right of", "below"}
    assert unshrunk(at(51.9, 50), at(50, 50)) == {"right of"}


def unshrunk(a: Detection, b: Detection) -> set[str]:
    return official(a, b, shrink=0)


def normalised(a: Detection, b: Detection) -> set[str]:
    return official(a, b, by_shrunk=True)


def official(a: Detection, b: Detection, *, shrink: float = 0.1, by_shrunk: bool = False) -> set[str]:
    """The rule once more, in vectors."""
    (p, q), (r, s) = (np.reshape(each.box, (2, 2)) for each in (a, b))
    offset = (p + q - r - s) / 2
    rest = np.sign(offset) * np.maximum(np.abs(offset) - shrink * (np.abs(q - p) + np.abs(s - r)), 0)
    if (np.abs(rest) < 1e-3).all():
        return set()
    x, y = rest / np.linalg.norm(rest if by_shrunk else offset)
    names = ((x < -0.5, "left of"), (x > 0.5, "right of"), (y < -0.5, "above"), (y > 0.5, "below"))
    return {name for true, name in names if true}


def test_relations_of_random_boxes() -> None:
    rng = np.random.default_rng(0)
    corners = np.sort(rng.uniform(0, 100, (5000, 2, 2, 2)), axis=2)
    counts: Counter[int] = Counter()
    for pair in corners:
        a, b = (Detection(tuple(box.reshape(4)), 1.0) for box in pair)
        assert relations(a, b) == official(a, b)
        counts[len(relations(a, b))] += 1
    assert min(counts[n] for n in (0, 1, 2)) > 100


def test_the_sixteen_best_above_the_threshold() -> None:
    scores = np.random.default_rng(0).permutation(np.linspace(0.2, 0.99, 60))
    found = {"cow": [at(i, i, score=s) for i, s in enumerate(scores)], "dog": [at(1, 1, score=0.1)]}
    kept = keep(found, "single_object")
    assert list(kept) == ["cow"]
    assert [d.score for d in kept["cow"]] == sorted(scores, reverse=True)[:16]
    assert len(keep(found, "counting")["cow"]) == (scores > 0.9).sum() < 16
    # Boxes on top of each other all stay: overlap suppresses nothing.
    assert len(keep({"cow": [at(1, 1)] * 5}, "colors")["cow"]) == 5


def test_the_overall_score_is_the_mean_of_the_tasks() -> None:
    tags = ["single_object"] * 8 + ["two_object", "counting", "colors", "position", "color_attr"]
    correct = [True] * 8 + [False] * 4 + [True]
    summary = summarise(tags, correct)
    assert summary.tasks == dict(zip(geneval.TASKS, (1, 0, 0, 0, 0, 1), strict=True))
    assert summary.counts["single_object"] == 8
    assert summary.overall == pytest.approx(2 / 6)
    assert summary.overall != pytest.approx(np.mean(correct))  # the control: the mean of the pictures
    part = summarise(tags[:9], correct[:9])
    assert part.tasks == {"single_object": 1, "two_object": 0}
    assert part.overall is None  # four tasks were not measured
    published = (0.97, 0.38, 0.35, 0.76, 0.04, 0.06)  # SD 1.5
    many = [(task, i < 100 * p) for task, p in zip(geneval.TASKS, published, strict=True) for i in range(100)]
    assert f"{summarise(*zip(*many, strict=True)).overall:.2f}" == "0.43"


def test_a_detector_that_sees_nothing_is_refused() -> None:
    check_detector([{}, {"cow": [at(1, 1, score=0.31)]}])
    for found in ([], [{}], [{"cow": [at(1, 1, score=0.3)]}], [{"cow": [at(1, 1, score=math.nan)]}]):
        with pytest.raises(RunFailed, match="finds nothing"):
            check_detector(found)


@on_real_data
def test_the_official_prompts() -> None:
    folder = Path(SHARED or "") / "prompts"
    prompts = read_prompts(folder / "geneval_metadata.jsonl")
    counts = Counter(p.tag for p in prompts)
    assert counts == dict(zip(geneval.TASKS, (80, 99, 80, 94, 100, 100), strict=True))
    assert Counter(p.include[0].count for p in prompts if p.tag == "counting") == {2: 26, 3: 28, 4: 26}
    assert all(p.exclude[0].count == p.include[0].count + 1 for p in prompts if p.tag == "counting")
    assert {c.colour for p in prompts for c in p.include} - {None} <= set(geneval.COLOURS)
    relations = {c.relation for p in prompts for c in p.include} - {None}
    assert relations == {"left of", "right of", "above", "below"}
    assert {c.name for p in prompts for c in p.include} <= set(mask2former.CLASSES)
    assert list(mask2former.CLASSES) == (folder / "geneval_object_names.txt").read_text().splitlines()


RECORD = {"tag": "position", "include": [{"class": "cow", "count": 1}], "prompt": "a cow"}


def line(**changes: object) -> str:
    details = {"cow": [[1, 2, 3, 4, 0.5]]}
    official = {
        "filename": "00000/samples/0000.png",
        "tag": "position",
        "correct": False,
        "metadata": json.dumps(RECORD),
        "details": json.dumps(details),
    }
    return json.dumps(official | changes)


def test_detections_of_the_official_tool(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text("\n".join([line(), "", line(metadata=RECORD, details={}, correct=None)]) + "\n")
    first, second = read_results(path)
    assert first.file == "00000/samples/0000.png"
    assert first.prompt == Prompt("position", "a cow", (Clause("cow", 1),))
    assert first.objects == {"cow": [Detection((1, 2, 3, 4), 0.5)]}
    assert first.correct is False
    assert judge(first.prompt, first.objects).correct
    assert second.objects == {}
    assert second.correct is None


@pytest.mark.parametrize(
    "wrong",
    [
        "{",
        "[]",
        "{}",
        line(metadata={"tag": "colour"}),
        line(metadata=RECORD | {"tag": "colour"}),
        line(metadata=RECORD | {"include": [{"class": "cow", "count": 1, "position": ["above", 0]}]}),
        line(details={"cow": [[1, 2, 3]]}),
        line(details={"cow": [[1, 2, 3, 4, math.nan]]}),
        line(details=[1]),
    ],
)
def test_lines_that_are_no_records(tmp_path: Path, wrong: str) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(line() + "\n" + wrong + "\n")
    with pytest.raises(RunFailed, match=r"results\.jsonl:2: not a record"):
        read_results(path)


def test_absent_files(tmp_path: Path) -> None:
    for read in (read_prompts, read_results):
        with pytest.raises(MissingAsset, match="no such file") as caught:
            read(tmp_path / "prompts.jsonl")
        assert "5c48e081" in caught.value.hint


# The detector: masks and scores as mmdet makes them, and a random network through the whole of it.


def test_objects_of_queries() -> None:
    logits = torch.full((3, 20, 30), -9.0)
    logits[0, 5:10, 8:20] = 2.0
    logits[1, 0, 0] = 1.0
    probabilities = torch.full((3, 80), 0.001)
    probabilities[0, mask2former.CLASSES.index("cow")] = 0.9
    probabilities[1, mask2former.CLASSES.index("toothbrush")] = 0.8
    probabilities[2, mask2former.CLASSES.index("dog")] = 0.9  # with an empty mask: nothing
    found = mask2former._objects(probabilities, logits, best=3)
    assert set(found) == {"cow", "toothbrush"}
    (cow,) = found["cow"]
    assert cow.box == (8, 5, 20, 10)  # the far edge is that of the last pixel
    assert cow.score == pytest.approx(0.9 * torch.sigmoid(torch.tensor(2.0)).item())
    assert cow.mask is not None
    assert cow.mask.sum() == 60
    assert found["toothbrush"][0].box == (0, 0, 1, 1)
    # A query may be several classes: pairs are ranked, not queries.
    probabilities[0, mask2former.CLASSES.index("zebra")] = 0.95
    assert set(mask2former._objects(probabilities, logits, best=3)) == {"cow", "zebra"}


@pytest.fixture(scope="module")
def detector_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.disable_progress_bar()
    place = tmp_path_factory.mktemp("mask2former")
    swin = transformers.SwinConfig(
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_features=[f"stage{i}" for i in (1, 2, 3, 4)],
    )
    config = transformers.Mask2FormerConfig(
        backbone_config=swin,
        num_labels=80,
        hidden_dim=32,
        feature_size=32,
        mask_feature_size=32,
        num_queries=10,
        num_attention_heads=2,
        encoder_layers=1,
        decoder_layers=2,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.Mask2FormerForUniversalSegmentation(config).save_pretrained(place)
    return place


def test_a_random_detector_from_a_folder(detector_folder: Path) -> None:
    detector = mask2former.build(detector_folder, where=torch.device("cpu"), offline=True)
    detector.shorter, detector.longer = 64, 96
    images = (torch.rand(2, 3, 40, 90, generator=torch.Generator().manual_seed(0)) * 255).to(torch.uint8)
    found = detector(images)
    assert len(found) == 2
    everything = [d for objects in found for each in objects.values() for d in each]
    assert everything
    for each in everything:
        left, top, right, bottom = each.box
        assert 0 <= left < right <= 90
        assert 0 <= top < bottom <= 40
        assert 0 < each.score < 1
        assert each.mask is not None
        assert each.mask.shape == (40, 90)
        assert each.mask[int(top) : int(bottom), int(left) : int(right)].sum() == each.mask.sum()
    alone = detector(images[:1])[0]
    assert {n: [d.box for d in f] for n, f in alone.items()} == {n: [d.box for d in f] for n, f in found[0].items()}
    judge(prompt("single_object", Clause("cow", 1)), found[0])
    with pytest.raises(RunFailed, match="uint8"):
        detector(images / 255)


def test_scores_and_masks_are_those_of_the_library(detector_folder: Path) -> None:
    # Its own post-processing works at 384 x 384, whatever the picture: at that size the two must agree.
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torchvision")
    processor = transformers.Mask2FormerImageProcessor()
    detector = mask2former.build(detector_folder, where=torch.device("cpu"), offline=True)
    detector.shorter, detector.best = 384, 10
    image = (torch.rand(1, 3, 384, 384, generator=torch.Generator().manual_seed(0)) * 255).to(torch.uint8)
    outputs = []
    hook = detector.net.register_forward_hook(lambda *given: outputs.append(given[-1]))
    ours = [(n, d) for n, each in detector(image)[0].items() for d in each]
    hook.remove()
    theirs = processor.post_process_instance_segmentation(
        outputs[0], threshold=0.0, target_sizes=[(384, 384)], return_binary_maps=True
    )[0]
    found = [(mask2former.CLASSES[s["label_id"]], s["score"]) for s in theirs["segments_info"]]
    assert len(found) > 2
    order = sorted(range(len(found)), key=lambda i: -found[i][1])
    ours.sort(key=lambda pair: -pair[1].score)
    for i, (name, each) in zip(order, ours, strict=True):
        assert name == found[i][0]
        assert each.score == pytest.approx(found[i][1], abs=1e-5)
        assert torch.equal(each.mask, theirs["segmentation"][i].bool())


def test_a_folder_of_another_detector(detector_folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    net = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(
        detector_folder, num_labels=3, ignore_mismatched_sizes=True
    )
    other = detector_folder / "other"
    net.save_pretrained(other)
    with pytest.raises(GentkError, match="3 classes"):
        mask2former.build(other, where=torch.device("cpu"), offline=True)
