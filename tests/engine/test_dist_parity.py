"""Two processes compute what one does, for every trainable method; here some, all by `-m tests.engine.parity`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from gentk.engine import gradients, rng
from gentk.engine.dist import Group
from gentk.processes import rows
from tests.conftest import DENOISER
from tests.engine import parity, team

BOUND = 1e-5  # of max(1, |loss|), over 50 steps
# those whose rows meet each other (pairs by transport, chains kept, levels spread over the batch), and one of each kind
SOME = [
    ("train", "flow", "ddp"),
    ("train", "classifier", "ddp"),
    ("train", "implicit-kl", "fsdp"),
    ("train-ebm", "pcd", "fsdp"),
    ("distill", "sim", "ddp"),
    ("restore", "flowdiff", "ddp"),
    ("align", "dipp", "fsdp"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("parity")
    parity.prepare(made)
    return made


def test_every_trainable_method_has_a_case() -> None:
    assert set(parity.CASES) == parity.trainable()


@pytest.mark.parametrize(("task", "method", "parallel"), SOME)
def test_the_losses_are_those_of_one_process(task: str, method: str, parallel: str, folder: Path) -> None:
    worst, count = parity.compare((task, method), folder, parallel=parallel)
    assert count >= 50
    assert worst < BOUND


def test_numbers_that_are_not_drawn_by_rows_would_be_noticed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: each process drawing from its own stream, as a method does that calls torch.randn itself."""

    def own(shape: tuple[int, ...], gen: torch.Generator, **how: object) -> torch.Tensor:
        return torch.randn(shape, generator=gen, **how)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(rows, "randn", own)
    for size in ("1", "2"):
        shutil.rmtree(folder / f"train-flow-{size}", ignore_errors=True)
    worst, _ = parity.compare(("train", "flow"), folder, parallel="ddp", steps=2)
    for size in ("1", "2"):
        shutil.rmtree(folder / f"train-flow-{size}")
    assert worst > 100 * BOUND


@pytest.mark.parametrize("size", [1, 2, 3])
def test_rows_are_those_of_one_process(size: int) -> None:
    whole = torch.Generator().manual_seed(rng.key("a", 1))
    normal, uniform = torch.randn(6, 2, generator=whole), torch.rand(6, generator=whole)
    chosen, wide = torch.randint(9, (6,), generator=whole), torch.randint(9, (2, 6), generator=whole)
    found: list[list[torch.Tensor]] = [[], [], [], []]
    streams = []
    for rank in range(size):
        gen = rng.shared(rank, size, "a", 1)
        n = 6 // size
        found[0].append(rows.randn((n, 2), gen))
        found[1].append(rows.rand((n,), gen))
        found[2].append(rows.randint(9, (n,), gen))
        found[3].append(rows.randint(9, (2, n), gen, dim=1))
        streams.append(torch.rand(1, generator=gen).item())
    for parts, expected in zip(found[:3], (normal, uniform, chosen), strict=True):
        assert torch.cat(parts).equal(expected)
    assert torch.cat(found[3], 1).equal(wide)
    assert len(set(streams)) == size, "what is drawn directly must differ between processes"


def test_rows_that_cannot_be_divided() -> None:
    with pytest.raises(ValueError, match="5 rows cannot be divided among 2"):
        rows.mine(torch.zeros(5), rng.shared(0, 2, "a"))


def test_averaged_gradients_keep_the_layout_of_their_parameters() -> None:
    """Fused optimisers walk through memory: a gradient in another order would move other weights."""
    net = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    net(torch.randn(2, 3, 5, 5)).sum().backward()
    before = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    heard = gradients.share(Group(), [net], torch.tensor(2.0), fault=False, stop="SIGTERM")
    assert (float(heard.loss), heard.signal, heard.faults) == (2.0, "SIGTERM", ())
    for p, grad in zip(net.parameters(), before, strict=True):
        assert p.grad is not None
        assert p.grad.equal(grad)
        assert p.grad.stride() == p.stride()


@pytest.mark.parametrize(("first", "second"), [(2, 1), (1, 2)])
def test_a_checkpoint_in_parts_is_read_by_one_process_and_the_reverse(first: int, second: int, tmp_path: Path) -> None:
    """FSDP2 under two processes and one process go on from each other's checkpoint, to the losses of one."""
    recipe = tmp_path / "r.yaml"
    recipe.write_text(DENOISER.replace("log_every: 4", "log_every: 1").replace("steps: 12", "steps: 8"))
    sets = ("train.parallel=fsdp", "measure=null")
    for size, out in ((1, "whole"), (first, "cut")):
        assert all(m.code == 0 for m in team.together(size, "train", recipe, tmp_path / out, sets))
    newest = tmp_path / "cut" / "checkpoints" / "00000008"
    files = {path.name for path in newest.iterdir()}
    kept = {f"shard-{k:05d}-model-00001-of-00001.safetensors" for k in (1, 2)} if first == 2 else {"state.pt"}
    assert files == kept | {"meta.json"}
    shutil.rmtree(newest)
    info = json.loads((tmp_path / "cut" / "run.json").read_text())
    (tmp_path / "cut" / "run.json").write_text(json.dumps(info | {"status": "stopped"}))
    members = team.together(second, "train", recipe, tmp_path / "cut", sets)
    assert [m.code for m in members] == [0] * second, [m.said for m in members]
    one, two = (parity.losses(tmp_path / name) for name in ("whole", "cut"))
    assert one.keys() == two.keys()
    assert len(one) == 8
    for key, value in one.items():
        assert two[key] == pytest.approx(value, abs=BOUND), key
    assert "resumed" in (tmp_path / "cut" / "log.txt").read_text()


def test_a_damaged_part_is_passed_over(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(DENOISER.replace("steps: 12", "steps: 8"))
    sets = ("train.parallel=fsdp", "measure=null")
    assert all(m.code == 0 for m in team.together(2, "train", recipe, tmp_path / "run", sets))
    part = next((tmp_path / "run" / "checkpoints" / "00000008").glob("shard-00002*"))
    data = bytearray(part.read_bytes())
    data[-1] ^= 1
    part.write_bytes(bytes(data))
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps(info | {"status": "stopped"}))
    members = team.together(2, "train", recipe, tmp_path / "run", sets)
    assert [m.code for m in members] == [0, 0], [m.said for m in members]
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "00000008: damaged checkpoint: the checksum of shard-00002" in log
    assert log.count("damaged checkpoint") == 1, "rank 0 alone writes"
