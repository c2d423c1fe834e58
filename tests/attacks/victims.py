"""Small victims whose answers are known: a linear classifier, a trained one, and defences of a line each."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gentk.attacks.victim import Grad, Tape, Undefended


class Linear(nn.Module):
    """Logits of a linear map of pixels: what the best attack is can be written down."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(len(weight)) if bias is None else bias)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.flatten(1), self.weight, self.bias)


class Noisy(Undefended):
    """The classifier of x + sigma z: a defence by noise alone, whose full gradient is that at the noisy image."""

    random = True
    modes: tuple[Grad, ...] = ("full", "blind")

    def __init__(self, net: nn.Module, classes: int, sigma: float) -> None:
        super().__init__(net, classes)
        self.sigma = sigma

    def logits(self, x: Tensor, tape: Tape, grad: Grad = "full") -> Tensor:
        shown = x if grad == "blind" else x + self.sigma * tape.normal("z", x.shape[1:], like=x)
        out: Tensor = self.net(shown)
        return out

    def purify(self, x: Tensor, tape: Tape) -> Tensor:
        return (x + self.sigma * tape.normal("z", x.shape[1:], like=x)).detach()


class Rounding(Undefended):
    """The classifier of x rounded to `levels` values: its gradient is zero wherever there is one."""

    modes: tuple[Grad, ...] = ("full", "bpda", "surrogate", "blind")

    def __init__(self, net: nn.Module, classes: int, levels: int = 8) -> None:
        super().__init__(net, classes)
        self.levels = levels

    def logits(self, x: Tensor, tape: Tape, grad: Grad = "full") -> Tensor:
        rounded = torch.round(x * self.levels) / self.levels
        shown = {"full": rounded, "bpda": x + (rounded - x).detach(), "surrogate": x, "blind": x}[grad]
        out: Tensor = self.net(shown)
        return out


@functools.cache
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images in [0, 1] and labels of the 8 x 8 digits: 1400 to learn from, 397 to test on."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = torch.tensor(bunch.images[:, None] / 16, dtype=torch.float32)
    y = torch.tensor(bunch.target).long()
    return x[:1400], y[:1400], x[1400:], y[1400:]


@functools.cache
def trained(adversarial: float = 0.0, width: int = 16, steps: int = 250) -> nn.Module:
    """A small classifier of the digits in eval mode, trained on three-step attacks of radius `adversarial`."""
    x, y, _, _ = digits()
    gen = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * width, 10),
        )
    optimiser = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(steps):
        rows = torch.randint(len(x), (100,), generator=gen)
        clean, label = x[rows], y[rows]
        moved = clean + adversarial * (2 * torch.rand(clean.shape, generator=gen) - 1)
        for _ in range(3 if adversarial else 0):
            moved.requires_grad_(True)
            g = torch.autograd.grad(F.cross_entropy(net(moved), label), moved)[0]
            moved = (
                clean + (moved.detach() + adversarial / 2 * g.sign() - clean).clamp(-adversarial, adversarial)
            ).clamp(0, 1)
        optimiser.zero_grad()
        F.cross_entropy(net(moved.detach()), label).backward()
        optimiser.step()
    net.zero_grad(set_to_none=True)
    return net.eval().requires_grad_(False)
