"""`distill` with an energy for a teacher: its gradient teaches, the U-Net inside it is what learns."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from gentk.engine import rng
from gentk.engine.method import Batch
from gentk.errors import RecipeError
from gentk.nets import energy, weights
from gentk.processes.energies import EnergyDenoiser
from gentk.processes.models import load
from gentk.recipe.networks import EnergyConv, EnergyUNet
from tests.tasks.toys import CPU, build, energy_header, fit, randomise


def write(path: Path, section: Any = None) -> str:
    section = section or EnergyUNet(name="energy-unet", width=8, multipliers=(1,), blocks=1)
    torch.manual_seed(0)
    net = energy.build(section, shape=(1, 8, 8), levels=(0.05, 2.0))
    randomise(net, 0, 0.1)
    net.sd.fill_(0.7)
    weights.save(path, net, energy_header(section, (1, 8, 8), (0.05, 2.0)))
    return str(path)


METHODS = [
    {"name": "diff-instruct", "sigma_init": 1.5},
    {"name": "sim", "sigma_init": 1.5},
    {"name": "sid", "sigma_init": 1.5},
    {"name": "fgm", "t_star": 0.6},
]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m["name"])
def test_every_method_learns_from_an_energy(tmp_path: Path, method: dict[str, Any]) -> None:
    """Both learners start as the energy's U-Net and move, the energy does not, and the generator that is left loads."""
    path = write(tmp_path / "e.safetensors")
    one = build(method, teacher=path)
    assert isinstance(one.teacher, EnergyDenoiser)
    before = copy.deepcopy(one.teacher.state_dict())
    unet = {k.removeprefix("net.body.net."): v for k, v in before.items() if k.startswith("net.body.net.")}
    for name in ("fake", "generator"):
        learner = {k.removeprefix("net."): v for k, v in one.nets[name].state_dict().items()}
        assert learner.keys() == unet.keys()
        assert all(torch.equal(learner[k], unet[k]) for k in unet)
    fit(tmp_path / "run", one)
    assert all(torch.equal(before[k], v) for k, v in one.teacher.state_dict().items())
    for name in ("fake", "generator"):
        moved = one.nets[name].state_dict()
        assert any(not torch.equal(unet[k], moved[f"net.{k}"]) for k in unet)
    made = one.finish({"generator": one.nets["generator"]}).exports["generator"]
    weights.save(tmp_path / "g.safetensors", made.net, made.header)
    again = load(str(tmp_path / "g.safetensors"), kinds=("generator",), where=CPU)
    assert again.header["inputs"]["centre"] == [0.0]
    assert again.header["process"] == {"name": "ve", "sigma_min": pytest.approx(0.05), "sigma_max": 2.0}


def test_the_generator_is_pushed_by_the_exact_score(tmp_path: Path) -> None:
    """Diff-Instruct's gradient in a sample is w (D_fake - D_teacher), with x - t^2 grad U for the teacher; the U-Net's
    own answer in its place is another gradient."""
    one = build(
        {"name": "diff-instruct", "sigma_init": 1.5, "weight": "const"}, teacher=write(tmp_path / "e.safetensors")
    )
    seen: dict[str, Any] = {}
    real = one.core.compare

    def compare(x0: torch.Tensor, *args: Any, **own: Any) -> Any:
        seen["x0"] = x0
        x0.retain_grad()
        seen["is"] = real(x0, *args, **own)
        return seen["is"]

    one.core.compare = compare  # type: ignore[method-assign]
    n = 4
    randomise(one.nets["fake"], 5, 0.05)
    one.nets["fake"].requires_grad_(False)
    one.nets["generator"].requires_grad_(True)
    loss, _ = one._generator_loss(Batch(n), rng.generator(0))
    loss.backward()  # type: ignore[no-untyped-call]
    is_, net = seen["is"], one.teacher.net
    x_t = is_.x_t.detach().requires_grad_()
    (grad,) = torch.autograd.grad(net(x_t, is_.t.to(x_t)).sum(), x_t)
    exact = x_t.detach() - is_.t.to(x_t).reshape(-1, 1, 1, 1) ** 2 * grad
    wanted = (is_.d_fake - exact).detach()
    got = seen["x0"].grad * n
    scale = float((wanted * got).sum() / wanted.square().sum())
    torch.testing.assert_close(got, scale * wanted, rtol=1e-3, atol=1e-5)
    by_unet = (is_.d_fake - one.taught.begin(is_.x_t, is_.t)).detach()  # type: ignore[misc]
    assert not torch.allclose(got, scale * by_unet, rtol=0.05, atol=1e-3)


def test_an_energy_without_a_unet_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "e.safetensors", EnergyConv(name="energy-conv", width=8))
    with pytest.raises(RecipeError, match="no `energy-unet`"):
        build({"name": "diff-instruct"}, teacher=path)
