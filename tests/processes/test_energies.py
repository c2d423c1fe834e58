"""An energy as a denoiser: Tweedie's formula exactly, and the U-Net inside as what learners start from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gentk.errors import RecipeError
from gentk.nets import energy, weights
from gentk.nets.energy import Energy
from gentk.processes import schedules
from gentk.processes.denoiser import Denoiser
from gentk.processes.energies import EnergyDenoiser, denoising, within
from gentk.processes.models import Model, load
from gentk.recipe import schema
from gentk.recipe.networks import EnergyConv, EnergyUNet
from tests.tasks.toys import energy_header, randomise

CPU = torch.device("cpu")
COV = torch.tensor([[1.0, 0.6], [0.6, 0.5]], dtype=torch.float64)
MEAN = torch.tensor([0.4, -1.0], dtype=torch.float64)


class Gaussian(nn.Module):
    """U(x, t) of N(MEAN, COV + t^2 I)."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        noised = COV + t[:, None, None].square() * torch.eye(2, dtype=x.dtype)
        y = x - MEAN
        out: Tensor = 0.5 * (y * torch.linalg.solve(noised, y)).sum(1)
        return out


def posterior_mean(x: Tensor, t: float) -> Tensor:
    gain: Tensor = COV @ torch.linalg.inv(COV + t**2 * torch.eye(2, dtype=x.dtype))
    return MEAN + (x - MEAN) @ gain.T


@pytest.mark.parametrize("looked_at", [False, True], ids=["no graph", "inside no_grad"])
def test_an_energy_is_the_exact_denoiser(looked_at: bool) -> None:
    """E[x0 | x] of a Gaussian to rounding, at one time for all and at one for each; no graph is left."""
    denoiser = EnergyDenoiser(Gaussian(), schedules.build(schema.VE(name="ve")), "x0", 1.0)
    x = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.set_grad_enabled(not looked_at):
        one = denoiser(x, torch.tensor(0.7, dtype=torch.float64))
        each = denoiser(x, torch.tensor([0.1, 0.7, 1.0, 2.0, 3.0], dtype=torch.float64))
    torch.testing.assert_close(one, posterior_mean(x, 0.7), rtol=1e-12, atol=1e-12)
    for k, t in enumerate((0.1, 0.7, 1.0, 2.0, 3.0)):
        torch.testing.assert_close(each[k : k + 1], posterior_mean(x[k : k + 1], t), rtol=1e-12, atol=1e-12)
    assert not one.requires_grad


def test_what_goes_through_an_energy_is_its_jacobian() -> None:
    """SIM and FGM differentiate the teacher's answer in the noised sample: C (C + t^2)^-1 here."""
    denoiser = EnergyDenoiser(Gaussian(), schedules.build(schema.VE(name="ve")), "x0", 1.0)
    x = torch.zeros(1, 2, dtype=torch.float64)
    found = torch.autograd.functional.jacobian(  # type: ignore[no-untyped-call]
        lambda at: denoiser(at, torch.tensor(0.7, dtype=torch.float64)), x, create_graph=False
    )[0, :, 0]
    torch.testing.assert_close(found, COV @ torch.linalg.inv(COV + 0.49 * torch.eye(2, dtype=torch.float64)))


def unet_energy(*, moved: bool) -> Model:
    """An energy of 8 x 8 images, sd 0.7, centres of two channels apart."""
    section = EnergyUNet(name="energy-unet", width=8, multipliers=(1, 2), blocks=1)
    torch.manual_seed(0)
    net = energy.build(section, shape=(2, 8, 8), levels=(0.05, 2.0)).double()
    if moved:
        randomise(net, 1, 0.1)
    net.sd.fill_(0.7)
    net.centre.copy_(torch.tensor([0.3, -0.5]).reshape(2, 1, 1))
    return Model("an energy", net.eval().requires_grad_(False), energy_header(section, (2, 8, 8), (0.05, 2.0)))


def test_the_unet_inside_an_energy_is_the_denoiser_of_its_formula() -> None:
    """U = <x - c, x - D> / 2t^2 for random weights, which holds only with the energy's own c, sd and label."""
    model = unet_energy(moved=True)
    net, begin = model.net, within(model).net
    assert isinstance(net, Energy)
    assert isinstance(begin, Denoiser)
    x = torch.randn(6, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    t = torch.tensor([0.05, 0.1, 0.3, 0.7, 1.5, 2.0], dtype=torch.float64)

    def of(denoiser: Denoiser) -> Tensor:
        inner: Tensor = ((x - net.centre) * (x - denoiser(x, t))).flatten(1).sum(1)
        return inner / (2 * t**2)

    torch.testing.assert_close(of(begin), net(x, t), rtol=1e-6, atol=1e-6)  # labels are float32 somewhere inside
    for wrong in (begin.inputs.model_copy(update={"offset": 0.0}), begin.inputs.model_copy(update={"centre": ()})):
        other = Denoiser(begin.net, begin.process, "edm", begin.sigma_data, wrong)
        assert not torch.allclose(of(other), net(x, t), rtol=1e-3, atol=1e-3)


def test_the_network_runs_in_its_own_precision() -> None:
    """float64 samples of a float32 energy: answered in float64, through a graph too."""
    denoiser = denoising(unet_energy(moved=True)).net.float()
    x = torch.randn(2, 2, 8, 8, dtype=torch.float64).requires_grad_()
    out = denoiser(x, torch.tensor(0.5))
    assert out.dtype == torch.float64
    (back,) = torch.autograd.grad(out.sum(), x)
    assert back.dtype == torch.float64
    assert (back - 1).abs().max() > 1e-3, "what came through is the network's derivative as well"


def test_for_gaussian_data_both_denoisers_are_one() -> None:
    """A fresh energy is that of N(c, sd^2): its gradient and its U-Net say the same. With other weights they do not."""
    x = torch.randn(4, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for t in (0.05, 0.5, 2.0):
        at = torch.tensor(t, dtype=torch.float64)
        exact, begin = (of(unet_energy(moved=False)).net for of in (denoising, within))
        c = torch.tensor([0.3, -0.5], dtype=torch.float64).reshape(2, 1, 1)
        wanted = c + 0.49 / (0.49 + t * t) * (x - c)
        torch.testing.assert_close(exact(x, at), wanted, rtol=1e-6, atol=1e-6)  # sd is 0.7 in float32 in the header
        torch.testing.assert_close(begin(x, at), wanted, rtol=1e-6, atol=1e-6)
    exact, begin = (of(unet_energy(moved=True)).net for of in (denoising, within))
    at = torch.tensor(0.5, dtype=torch.float64)
    assert (exact(x, at) - begin(x, at)).abs().max() > 1e-2


def test_what_starts_from_an_energy_is_saved_and_loaded_whole(tmp_path: Path) -> None:
    """The header is enough to have the same denoiser again, centre and label included."""
    model = within(unet_energy(moved=True))
    begin = model.net.float()
    assert isinstance(begin, Denoiser)
    path = tmp_path / "g.safetensors"
    weights.save(path, begin.net, model.header | {"kind": "generator", "sigma_init": 1.0})
    again = load(str(path), kinds=("generator",), where=CPU).net
    x, t = torch.randn(3, 2, 8, 8), torch.tensor(1.0, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(again(x, t), begin(x, t))


@pytest.mark.parametrize("t", [torch.tensor(0.4), torch.tensor([0.4, 0.4, 0.7])], ids=["number", "rows"])
def test_a_centre_moves_the_data(t: Tensor) -> None:
    """D of x0 around c is c + D0 of x0 - c, where the process scales the signal too."""
    process = schedules.build(schema.VP(name="vp"))
    net = lambda x, label, cond: torch.tanh(x) * label[:, None, None, None]  # noqa: E731
    x, t, c = torch.randn(3, 2, 4, 4, dtype=torch.float64), t.double(), (0.3, -0.5)
    plain = Denoiser(nn.Module(), process, "edm", 0.5)
    moved = Denoiser(nn.Module(), process, "edm", 0.5, schema.Inputs(centre=c))
    for denoiser in (plain, moved):
        denoiser.net.forward = net
    at = torch.tensor(c, dtype=torch.float64).reshape(2, 1, 1)
    alpha = process.alpha(t).reshape(-1, 1, 1, 1)
    torch.testing.assert_close(moved(x, t), at + plain(x - alpha * at, t), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(moved(x, t), at + plain(x - at, t), rtol=1e-3), "at t the mean is alpha c"


def test_other_energies_are_refused_by_name() -> None:
    """A static energy has no denoiser; one of another network has, but nothing to start from."""
    section = EnergyConv(name="energy-conv", width=8)
    static, timed = (
        Model("mine", energy.build(section, shape=(1, 8, 8), levels=levels), energy_header(section, (1, 8, 8), levels))
        for levels in (None, (0.1, 1.0))
    )
    with pytest.raises(RecipeError, match="`mine` is a static energy"):
        denoising(static)
    denoiser = denoising(timed).net
    assert denoiser(torch.zeros(2, 1, 8, 8), torch.tensor(0.5)).shape == (2, 1, 8, 8)
    with pytest.raises(RecipeError, match="no `energy-unet`"):
        within(timed)
