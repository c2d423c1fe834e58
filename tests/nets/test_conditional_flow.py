"""Conditional flows: the log-determinant against autograd's Jacobian, both directions, and back again (trap 1)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gentk.errors import RecipeError
from gentk.nets.conditional_flow import ConditionalGlow, PointFlow, Step, build
from gentk.recipe.restoring import Couplings, Glow
from tests.tasks.toys import randomise


def made(shape: tuple[int, ...], levels: int = 2) -> tuple[ConditionalGlow | PointFlow, tuple[Tensor, Tensor, Tensor]]:
    """A flow with every parameter moved, and context, base, width of its samples; float64."""
    torch.manual_seed(0)
    if len(shape) == 1:
        flow = build(Couplings(name="couplings", steps=3, width=8), shape=shape, context=3)
        context = torch.randn(2, 3)
    else:
        section = Glow(name="glow", levels=levels, steps=2, width=8, features=4, guide=8, guide_blocks=1)
        flow = build(section, shape=shape, context=2)
        context = torch.randn(2, 2, *shape[1:])
    flow = flow.double()
    randomise(flow, 1, 0.2)
    return flow, (context.double(), torch.randn(2, *shape).double(), torch.rand(2, *shape).double() + 0.3)


SHAPES = [(1, 4, 4), (2, 4, 4), (3, 8, 8), (2,), (3,)]


@pytest.mark.parametrize("shape", SHAPES)
def test_log_determinant_is_that_of_the_jacobian(shape: tuple[int, ...]) -> None:
    flow, (context, base, width) = made(shape)
    z = torch.randn(2, *shape, dtype=torch.float64)
    x, logdet = flow(z, context, base, width)
    back, inverse_logdet = flow.inverse(x, context, base, width)
    torch.testing.assert_close(back, z, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(inverse_logdet, -logdet, rtol=1e-9, atol=1e-9)
    if z[0].numel() > 32:
        return
    for i in range(2):
        parts = [each[i : i + 1] for each in (context, base, width)]
        jacobian = torch.autograd.functional.jacobian(lambda v: flow(v[None], *parts)[0][0], z[i])  # noqa: B023
        n = z[0].numel()
        wanted = torch.linalg.slogdet(jacobian.reshape(n, n))[1]
        torch.testing.assert_close(logdet[i], wanted, rtol=1e-8, atol=1e-8)


@torch.no_grad()
def test_every_part_of_the_log_determinant_counts() -> None:
    """Control: without the actnorm's, the matrix's, the couplings' or the width's share the test above would fail."""
    flow, (context, base, width) = made((1, 4, 4))
    z = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    whole = flow(z, context, base, width)[1]
    for name in ("log_scale", "log_diagonal"):
        other, _ = made((1, 4, 4))
        for step in (m for m in other.modules() if isinstance(m, Step)):
            getattr(step, name).zero_()
        assert float((other(z, context, base, width)[1] - whole).abs().min()) > 0.05, name
    wider = flow(z, context, base, 2 * width)[1] - whole
    assert float(wider.sub(16 * torch.tensor(2.0).log()).abs().max()) < 1e-5
    silent, _ = made((1, 4, 4))
    for step in (m for m in silent.modules() if isinstance(m, Step)):
        step.bound = 1e-6
    assert float((silent(z, context, base, width)[1] - whole).abs().min()) > 0.05


@pytest.mark.parametrize("shape", [(1, 8, 8), (2,)])
def test_at_the_start_it_is_the_guess(shape: tuple[int, ...]) -> None:
    """x = base + width u with u a rotation of z: standard normal, whatever the context."""
    torch.manual_seed(0)
    section = Couplings(name="couplings") if len(shape) == 1 else Glow(name="glow")
    flow = build(section, shape=shape, context=2)
    context = torch.randn(50, *((2,) if len(shape) == 1 else (2, 8, 8)))
    z, base, width = torch.randn(50, *shape), torch.randn(50, *shape), torch.full((50, *shape), 0.3)
    x, logdet = flow(z, context, base, width)
    u = (x - base) / width
    torch.testing.assert_close(u.flatten(1).norm(dim=1), z.flatten(1).norm(dim=1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logdet, width.log().flatten(1).sum(1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 8, 8), (2,)])
def test_the_context_matters_everywhere_and_gradients_reach_all(shape: tuple[int, ...]) -> None:
    flow, (context, base, width) = made(shape)
    z = torch.randn(2, *shape, dtype=torch.float64)
    x, logdet = flow(z, context, base, width)
    other, _ = flow(z, context + 0.5, base, width)
    assert float((x - other).detach().abs().flatten(1).max(1).values.min()) > 1e-3
    (x.sum() + logdet.sum()).backward()
    silent = [name for name, p in flow.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert silent == []


def test_extreme_networks_stay_finite() -> None:
    """Trap 9: log-scales are bounded, so weights a thousand times too large give large images, not NaN."""
    flow, (context, base, width) = made((1, 4, 4))
    with torch.no_grad():
        for step in (m for m in flow.modules() if isinstance(m, Step)):
            for p in step.net.parameters():
                p.mul_(1000)
    x, logdet = flow.float()(torch.randn(2, 1, 4, 4), context.float(), base.float(), width.float())
    assert bool(x.isfinite().all())
    assert bool(logdet.isfinite().all())


def test_what_does_not_fit_is_refused() -> None:
    for section, shape, words in (
        (Glow(name="glow", levels=3), (1, 28, 28), "need a side divisible by 8, the images have 28"),
        (Glow(name="glow"), (2,), "takes images"),
        (Couplings(name="couplings"), (1, 8, 8), "takes points"),
    ):
        with pytest.raises(RecipeError, match=words):
            build(section, shape=shape, context=1)
