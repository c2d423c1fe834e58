"""The aesthetic score: its heads against their closed form and on real embeddings, and what goes into them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from gentk.errors import GentkError
from gentk.metrics import states
from gentk.rewards import aesthetic, pixels
from gentk.rewards.aesthetic import Head, load_head
from tests.rewards.conftest import CPU, noise, pictures, random_net

SHARED = os.environ.get("GENTK_DATA")
on_real_data = pytest.mark.skipif(not SHARED, reason="GENTK_DATA is not set: no aesthetic heads here")

# data/README.md section 5, of rating levels 0 to 9.
PRINTED = {
    "v1_vit_b_32_linear": "-1.47 0.27 1.99 3.61 5.09 6.39 7.67 8.92 9.92 11.01",
    "v1_vit_l_14_linear": "-2.46 -0.14 1.90 3.58 5.10 6.47 7.79 9.05 10.23 11.30",
    "v2_sac_logos_ava1_l14_linearMSE": "1.66 2.36 3.07 3.67 4.24 4.70 5.07 5.37 5.58 5.75",
}


def random_head(path: Path, width: int = 16) -> Path:
    torch.save(random_net(lambda: Head(width)).state_dict(), path)
    return path


def test_the_head_is_its_fused_affine_map() -> None:
    head = random_net(lambda: Head(24)).double()
    weight, bias = torch.eye(24, dtype=torch.float64), torch.zeros(24, dtype=torch.float64)
    for i in (0, 2, 4, 6, 7):
        layer = head.layers[i]
        weight, bias = layer.weight @ weight, layer.weight @ bias + layer.bias
    e = torch.randn(50, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = e @ weight[0] + bias
    torch.testing.assert_close(head.eval()(e), expected, rtol=1e-12, atol=1e-12 * expected.abs().max().item())
    # The controls: with dropout, or with activations, it is no affine map.
    assert not torch.allclose(head.train()(e), expected, rtol=0.01)
    relu = torch.nn.Sequential(*(m for layer in head.eval().layers for m in (layer, torch.nn.ReLU())))
    assert not torch.allclose(relu(e)[:, 0], expected, rtol=0.01)


@on_real_data
@pytest.mark.parametrize("name", PRINTED)
def test_the_published_heads_on_the_ten_rating_embeddings(name: str) -> None:
    folder = Path(SHARED or "") / "aesthetic"
    head = load_head(folder / f"laion_{name}.safetensors")
    assert isinstance(head, Head) == name.startswith("v2")
    embeddings = np.load(folder / "laion_rating_embeddings.npz")["vit_b_32" if "b_32" in name else "vit_l_14"]
    e = torch.from_numpy(embeddings)
    with torch.no_grad():
        scores = head(e)
        assert [f"{s:.2f}" for s in scores.tolist()] == PRINTED[name].split()
        # The control: CLIP's own embeddings have a length near 10, and with it the best is off by points.
        assert head(10 * e)[-1] > scores[-1] + 4


def test_the_score_is_the_head_of_the_direction(clip_folder: Callable[..., Path], tmp_path: Path) -> None:
    score = aesthetic.build(clip_folder(), where=CPU, offline=True, head=random_head(tmp_path / "head.pt2"))
    x = pictures()
    embedding = score.clip._image(pixels.normalise(pixels.crop(x, 32)))
    expected = score.head(embedding / embedding.norm(dim=-1, keepdim=True))
    torch.testing.assert_close(score(x), expected)
    assert score(x, ["one", "two"]).shape == (2,)
    assert score(x).dtype == torch.float32
    assert not torch.allclose(score.head(embedding), expected, rtol=0.05)  # the control: not normalised
    assert score.record["head"] == "head.pt2"
    assert score.record["version"] == 2


def test_the_gradient_reaches_the_picture(clip_folder: Callable[..., Path], tmp_path: Path) -> None:
    score = aesthetic.build(clip_folder(), where=CPU, offline=True, head=random_head(tmp_path / "head.pt2"))
    x = noise(1, 3, 32, 32).requires_grad_()
    (grad,) = torch.autograd.grad(score(x).sum(), x)
    step = 1e-2 * grad / grad.norm()
    with torch.no_grad():
        slope = (score((x + step).clamp(0, 1)) - score((x - step).clamp(0, 1))) / 2e-2
    assert slope.item() == pytest.approx(grad.norm().item(), rel=0.02)
    assert not any(p.requires_grad for p in score.parameters())


def test_a_published_file_is_held_to_its_checksum(clip_folder: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(GentkError, match="sha256"):  # .pth is the published format
        aesthetic.build(clip_folder(), where=CPU, offline=True, head=random_head(tmp_path / "head.pth"))


def test_other_heads_are_refused(tmp_path: Path) -> None:
    relu = {f"layers.{i}.weight": torch.zeros(4, 4) for i in (0, 3, 6, 9, 11)}  # the published ReLU variant's keys
    safetensors.torch.save_file(relu, tmp_path / "relu.safetensors")
    with pytest.raises(GentkError, match=r"another network.*missing"):
        load_head(tmp_path / "relu.safetensors")
    safetensors.torch.save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(GentkError, match="not an aesthetic head"):
        load_head(tmp_path / "x.safetensors")


def test_broken_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"nonsense")
    (tmp_path / "a.pth").write_bytes(b"nonsense")
    torch.save(Head(4), tmp_path / "pickled.pth")  # a whole module: its code would have to run
    torch.save([1, 2], tmp_path / "list.pth")
    for name in ("a.safetensors", "a.pth", "pickled.pth", "list.pth"):
        with pytest.raises(GentkError, match=name):
            states.read(tmp_path / name)
