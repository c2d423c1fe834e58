"""The report says what the run folder says, stands alone, and is made of whatever pieces there are."""

import base64
import fcntl
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from gentk.engine import pictures, report
from gentk.engine.log import Log
from gentk.errors import GentkError, MissingAsset

RECIPE = """\
# One-step digits by score implicit matching
task: distill
about: One-step generator of 8x8 digits & more
paper: arXiv:2410.16794
expect:
  fd_student: {paper: 2.06, where: abstract, ours: 1.31, note: "3 seeds, <2 CPU cores>"}
  nfe_student: {paper: 1, where: section 5.1, ours: 1}
teacher: edm-digits
optim:
  generator: {lr: 1e-4}
"""
INFO = {
    "status": "done",
    "task": "distill",
    "method": "sim",
    "recipe": "distill/sim/edm-digits",
    "seed": 7,
    "versions": {"python": "3.11.7", "torch": "2.13.0"},
    "command": "gentk distill sim --set 'a=<b>'",
    "host": "worker-3",
    "device": "cpu, 2 threads",
    "started": "2026-01-02T03:04:05+00:00",
    "seconds": 128.0,
    "step": 1000,
    "steps": 1000,
    "metrics": {"fd_student": 1.27431, "recall_student": 0.5},
}


class Page(HTMLParser):
    """The text, tags and addresses of a page; fails on tags that do not close."""

    VOID = ("meta", "link", "img", "circle", "line", "path", "br")

    def __init__(self, source):
        super().__init__()
        self.tags, self.addresses, self.words, self.open = [], [], [], []
        self.rows = []
        self.feed(source)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture
def folder(tmp_path):
    """A run that is done."""
    run = tmp_path / "run"
    with Log(run) as log:
        for step in range(10, 1001, 10):
            values = {
                "generator/loss": 1 / step,
                "fake/loss": float("nan") if step == 500 else 0.3,
                "images_per_s": 500.0,
            }
            log.metrics(step, step * 128, values | ({"eval/fd_student": 1000 / step} if step % 100 == 0 else {}))
    (run / "run.json").write_text(json.dumps(INFO))
    (run / "recipe.yaml").write_text(RECIPE)
    return run


def picture(folder, name, shade=0):
    pictures.save(pictures.grid(np.full((1, 1, 4, 4), shade, np.uint8), scale=1), folder / "samples" / f"{name}.png")


def changed(folder, **facts):
    (folder / "run.json").write_text(json.dumps(INFO | facts))


def read(folder):
    path = report.write(folder)
    assert path == folder / "report.html"
    return Page(path.read_text("utf-8"))


def test_figures_stand_beside_the_papers(folder):
    page = read(folder)
    assert page.rows == [
        ["figure", "this run", "recipe, earlier", "paper", "source"],
        ["fd_student", "1.274", "1.31", "2.06", "abstract3 seeds, <2 CPU cores>"],
        ["nfe_student", "–", "1", "1", "section 5.1"],  # noqa: RUF001
        ["recall_student", "0.5", "–", "–", ""],  # noqa: RUF001
    ]


def test_head_recipe_and_environment(folder):
    text = read(folder).text
    for words in (
        "gentk distill sim · edm-digits done One-step generator of 8x8 digits & more After arXiv:2410.16794",
        "steps 1000 images seen 128\N{NARROW NO-BREAK SPACE}000 time 2 min 08 s training, per image 2 ms seed 7",
        "generator: {lr: 1e-4}",
        "command gentk distill sim --set 'a=<b>'",
        "host worker-3 device cpu, 2 threads",
        "python 3.11.7, torch 2.13.0",
    ):
        assert " ".join(words.split()) in text


def test_page_stands_alone(folder):
    picture(folder, "generator-00000100")
    page = read(folder)
    assert "script" not in page.tags
    outside = [address for address in page.addresses if not address.startswith("data:")]
    assert outside == ["https://arxiv.org/abs/2410.16794"], "a link to follow, the only one"
    source = (folder / "report.html").read_text("utf-8")
    assert "default-src 'none'" in source
    assert not re.search(r"url\(|@import", source)


def test_every_curve_is_drawn_and_what_cannot_be_is_counted(folder):
    page = read(folder)
    assert page.tags.count("svg") == 4
    text = page.text
    order = ["Curves", "generator/loss", "fake/loss", "eval/fd_student", "Machine", "images_per_s", "Recipe"]
    assert sorted(order, key=text.index) == order
    assert "fake/loss 0.3, 1 not finite" in text
    assert "images seen" in text
    levels = re.findall(r'class="level".*?</text>', (folder / "report.html").read_text("utf-8"))
    assert len(levels) == 2, "eval/fd_student is compared with the paper and the recipe's earlier figure"


def test_everything_from_outside_is_escaped(folder):
    attack = "<script>alert(1)</script>\"'"
    changed(
        folder, status="failed", error=attack, method=attack, host=attack, metrics={attack: 1.0}, versions={"x": attack}
    )
    (folder / "recipe.yaml").write_text(f"about: |\n  {attack}\nexpect: {{fd: {{where: '<b>x</b>'}}}}\n")
    with Log(folder) as log:
        log.metrics(1001, 1, {attack: 1.0})
    picture(folder, "<i>a&b-00000001")
    page = read(folder)
    assert "script" not in page.tags
    assert page.tags.count("i") == 0
    assert page.text.count("<script>alert(1)</script>") >= 6


def images(folder):
    source = (folder / "report.html").read_text("utf-8")
    found = re.findall(r'base64,([^"]+)"><figcaption>([^<]*)<', source)
    return [(base64.b64decode(data), caption) for data, caption in found]


def test_pictures_are_grouped_in_order_of_steps_and_thinned(folder):
    for step in range(0, 2000, 100):
        picture(folder, f"student-{step:08d}", step // 10)
    for step in (900, 100):
        picture(folder, f"fake-{step:08d}", 250)
    picture(folder, "teacher-and-student", 77)
    read(folder)
    shown = images(folder)
    assert [caption for _, caption in shown[:3]] == ["teacher-and-student", "step 100", "step 900"]
    steps = [int(caption.split()[1]) for _, caption in shown[3:]]
    assert len(steps) == report.PICTURES
    assert steps == sorted(steps)
    assert (steps[0], steps[-1]) == (0, 1900)
    gaps = np.diff(steps)
    assert gaps.max() <= 200
    assert gaps.min() >= 100
    for data, caption in shown[3:]:
        assert data == (folder / "samples" / f"student-{int(caption.split()[1]):08d}.png").read_bytes()


def test_a_picture_that_is_none_is_named(folder):
    (folder / "samples").mkdir()
    (folder / "samples" / "a-00000001.png").write_text("<b>torn")
    page = read(folder)
    assert "a-00000001.png: not readable as PNG" in page.text
    assert "img" not in page.tags


def test_a_failed_run_says_why_and_how_far_it_came(folder):
    changed(folder, status="failed", step=500, steps=2000, error="step 1003: the loss\nis not finite", metrics={})
    text = read(folder).text
    assert "edm-digits failed" in text
    assert "step 1003: the loss is not finite" in text
    assert "steps 1000 of 2000" in text  # the log is ahead of the last checkpoint


def test_a_running_run_whose_process_is_gone_is_interrupted(folder):
    changed(folder, status="running", metrics={})
    assert "edm-digits interrupted" in read(folder).text
    with (folder / "run.lock").open("w") as lock:
        assert "edm-digits interrupted" in read(folder).text, "the lock file alone says nothing"
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "edm-digits running" in read(folder).text
    assert "edm-digits interrupted" in read(folder).text


@pytest.mark.parametrize("missing", ["recipe.yaml", "metrics.jsonl", "log.txt"])
def test_missing_pieces_are_left_out(folder, missing):
    (folder / missing).unlink()
    page = read(folder)
    assert ("Recipe" in page.text) == (missing != "recipe.yaml")
    assert ("Curves" in page.text) == (missing != "metrics.jsonl")
    assert "1.274" in page.text


def test_run_json_alone_will_do(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    assert "run unknown" in read(tmp_path).text


def test_damaged_pieces_are_named_not_fatal(folder):
    (folder / "recipe.yaml").write_text("a: [1")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    lines[3] = "{"
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    text = read(folder).text
    assert "a: [1" in text
    assert "metrics.jsonl:4: not a line of metrics" in text


def test_no_run_no_report(tmp_path):
    with pytest.raises(MissingAsset, match="not a run folder"):
        report.write(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(GentkError, match="damaged"):
        report.write(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_the_report_is_replaced_whole(folder):
    report.write(folder)
    changed(folder, host="elsewhere")
    assert "elsewhere" in read(folder).text
    assert [path.name for path in folder.iterdir() if "report" in path.name] == ["report.html"]
