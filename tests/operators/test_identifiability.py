"""What measurements can say of a law (traps 3 and 4 of the notes): pairs seen together, small transfers, sigma."""

from __future__ import annotations

import pytest
import torch

from gentk import operators
from gentk.operators.composed import Dense
from gentk.operators.identifiability import least_eigenvalue, report, singular_values
from gentk.operators.masks import Masked
from gentk.recipe.operators import Blur, Box, Compose, Downsample, Grey, Inpaint, MotionBlur, Noise
from tests.operators.cases import COLOUR, GREY, gens

WIDE = (1, 8, 8)


def of(section: object, shape: tuple[int, ...] = WIDE) -> object:
    return report(lambda n: operators.build(section, shape, gens(n)))  # type: ignore[arg-type]


def test_half_masks_see_every_pair_and_noise_everything() -> None:
    for section in (Inpaint(name="inpaint"), Noise(name="noise")):
        found = of(section)
        assert (found.never, found.pairs, found.zero) == (0, 0, 0)
        assert found.warnings() == []


def test_a_fixed_mask_hides_for_ever() -> None:
    """4 x 4 of 64 pixels: a quarter; pairs with one of them 1 - (3/4)^2."""
    found = of(Box(name="box"))
    assert found.never == pytest.approx(0.25)
    assert found.pairs == pytest.approx(1 - 0.75**2)
    assert "never seen: there the prior stays as it began" in found.warnings()[0]
    assert len(found.warnings()) == 1


def test_masks_that_never_show_two_together() -> None:
    """Every pixel is seen, in half of the images; left and right half never at once: half of all pairs."""
    left = torch.zeros(1, 1, 8, 8)
    left[..., :4] = 1
    found = report(lambda n: Masked(GREY, torch.cat([left, 1 - left]).repeat(n // 2, 1, 1, 1)))
    assert (found.never, found.pairs) == (0.0, 0.5)
    (line,) = found.warnings()
    assert "50 % of the pairs of pixels are never seen together" in line


def test_transfers() -> None:
    """The 4-pixel mean of 8 periodic ones has zeros at 3 of 8 frequencies: 24 of 64; a Gaussian has small values."""
    uniform = of(MotionBlur(name="motion-blur", length=2, angle=0))
    assert uniform.smallest > 0
    kernel = operators.blur.Convolved(GREY, torch.zeros(8, 8, dtype=torch.float64))
    kernel.kernel[0, :4] = 0.25
    found = report(lambda n: kernel)
    assert found.zero == pytest.approx(24 / 64)
    assert "37.5 % of the directions are not measured" in found.warnings()[0]
    wide = of(Blur(name="blur", size=7, std=1.5))
    assert 0 < wide.smallest < 0.05
    assert "the smallest singular value is" in wide.warnings()[-1]
    s = singular_values(operators.build(Blur(name="blur"), GREY))
    torch.testing.assert_close(
        s.sort().values, torch.linalg.svdvals(operators.matrix(operators.build(Blur(name="blur"), GREY))).sort().values
    )


def test_means_lose_directions() -> None:
    assert of(Downsample(name="downsample")).zero == pytest.approx(3 / 4)
    assert of(Grey(name="grey"), COLOUR).zero == pytest.approx(2 / 3)
    large = of(Downsample(name="downsample"), (3, 32, 32))
    assert large.zero == pytest.approx(3 / 4, abs=0.03)  # by one random image of 3072 numbers
    both = of(Compose(name="compose", parts=(Blur(name="blur"), Inpaint(name="inpaint"))))
    assert both.pairs == 0


def test_a_sigma_that_is_too_large_shows() -> None:
    """Trap 3: EM with a sigma above the least root of an eigenvalue of S_y drives that eigenvalue to 0."""
    gen = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 2, generator=gen, dtype=torch.float64) * torch.tensor([2.0, 0.5])
    y = x + 0.5 * torch.randn(4000, 2, generator=gen, dtype=torch.float64)
    found = least_eigenvalue(y)
    assert found == pytest.approx(0.25 + 0.25, rel=0.1)
    assert 0.5**2 < found < 0.9**2
    seen = (torch.rand(4000, 2, generator=gen) < 0.5).double()
    assert least_eigenvalue(y * seen, seen) == pytest.approx(0.5, rel=0.15)


def test_closed_form_em_is_what_the_warnings_are_about() -> None:
    """Test E of the notes, with trap 4: hidden pixels and pairs never seen together keep their first value."""
    s = torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=torch.float64)
    never = em(s, [torch.diag(torch.tensor(m, dtype=torch.float64)) for m in ([1.0, 0.0], [0.0, 1.0])], 0.3, 400)
    assert float(never[0, 1]) == pytest.approx(0.0, abs=1e-9)
    torch.testing.assert_close(never.diagonal(), s.diagonal(), rtol=1e-6, atol=1e-6)
    half = [torch.diag(torch.tensor(m, dtype=torch.float64)) for m in ([1.0, 0], [0, 1.0], [1.0, 1.0], [0.0, 0])]
    torch.testing.assert_close(em(s, half, 0.3, 4000), s, rtol=1e-3, atol=1e-3)
    fixed = em(s, [torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64))], 0.3, 400)
    assert float(fixed[1, 1]) == pytest.approx(1.0)  # as it began


def em(s: torch.Tensor, ops: list[torch.Tensor], sigma: float, steps: int, model: float | None = None) -> torch.Tensor:
    """Test E: C <- mean over operators of K S_y K^T + C - K H C, from the identity; `model` is the sigma believed."""
    c = torch.eye(len(s), dtype=s.dtype)
    believed = (sigma if model is None else model) ** 2
    for _ in range(steps):
        parts = []
        for h in ops:
            eye = torch.eye(len(h), dtype=s.dtype)
            k = c @ h.T @ torch.linalg.pinv(h @ c @ h.T + believed * eye)
            parts.append(k @ (h @ s @ h.T + sigma**2 * eye) @ k.T + c - k @ h @ c)
        c = torch.stack(parts).mean(0)
    return c


@pytest.mark.parametrize("sigma", [0.2, 0.5, 1.0])
def test_e_em_converges_to_the_truth(sigma: float) -> None:
    """S = diag(4, .25), H = [[1, .3], [.3, 1]]: to S; slowly where the noise is large (trap 5)."""
    s = torch.diag(torch.tensor([4.0, 0.25], dtype=torch.float64))
    h = torch.tensor([[1.0, 0.3], [0.3, 1.0]], dtype=torch.float64)

    def off(steps: int) -> float:
        return float((em(s, [h], sigma, steps) - s).norm() / s.norm())

    early = {0.2: 0.0, 0.5: 0.006, 1.0: 0.052}[sigma]
    late = {0.2: 0.0, 0.5: 0.0, 1.0: 0.003}[sigma]
    assert off(10) == pytest.approx(early, abs=0.0015)
    assert off(100) == pytest.approx(late, abs=0.0006)
    assert off(3000) < 1e-6


@pytest.mark.parametrize(("model", "wanted"), [(0.3, 0.41), (0.7, 0.013), (0.9, 0.0)])
def test_e_a_wrong_sigma_moves_every_eigenvalue(model: float, wanted: float) -> None:
    """Trap 3: true sigma .5, the smaller eigenvalue .25 becomes S_y - model^2, cut at 0."""
    s = torch.diag(torch.tensor([4.0, 0.25], dtype=torch.float64))
    c = em(s, [torch.eye(2, dtype=torch.float64)], 0.5, 20_000 if model == 0.7 else 3000, model)
    assert float(c[1, 1]) == pytest.approx(max(0.0, 0.25 + 0.25 - model**2), abs=2e-3)
    assert float(c[1, 1]) == pytest.approx(wanted, abs=5e-3)
    assert float(c[0, 0]) == pytest.approx(4.25 - model**2, abs=1e-6)


def test_e_posterior_means_instead_of_draws_shrink_it() -> None:
    """Trap 2: without C - K H C, what the denoiser sees are means; the law shrinks to (3.47, .03) at sigma .5."""
    s = torch.diag(torch.tensor([4.0, 0.25], dtype=torch.float64))
    h = torch.tensor([[1.0, 0.3], [0.3, 1.0]], dtype=torch.float64)
    c = torch.eye(2, dtype=torch.float64)
    for _ in range(3000):
        k = c @ h.T @ torch.linalg.pinv(h @ c @ h.T + 0.25 * torch.eye(2, dtype=torch.float64))
        c = k @ (h @ s @ h.T + 0.25 * torch.eye(2, dtype=torch.float64)) @ k.T
    assert c.diagonal().tolist() == pytest.approx([3.465, 0.027], abs=1e-3)
    assert float(torch.linalg.eigvalsh(c)[0]) == pytest.approx(0.0, abs=1e-9)


def test_dense_has_the_singular_values_of_its_matrix() -> None:
    h = torch.tensor([[1.0, 0.4], [0.4, 1.0]], dtype=torch.float64)
    assert singular_values(Dense(h, (2,), (2,))).tolist() == pytest.approx([1.4, 0.6])
