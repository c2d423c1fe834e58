"""ScoreOpt: the image itself is optimised until the diffusion model finds it likely (arXiv:2307.04333).

What the authors' code minimises, as the paper's text was not at hand, by `iters` steps of Adam from z_a, the image that
came in; t is drawn from t0 +- band or is t0, eps drawn anew each step or once:

    diff   |D(z + t eps, t) - z|^2
    mse    diff + weight |z - z_a|^2
    sr     diff + weight |D(z + t eps, t) - D(z_a + t eps_1, t)|^2

summed over the pixels of each image: the code's mean over the batch makes Adam's eps count, and with it the batch.
ScoreOpt-O draws both anew (`resample_t`, `resample_noise`) and answers z. ScoreOpt-N optimises u = z + t eps for
|(u - D) / t - eps|^2 with both frozen and answers D(u, t): the same steps in z with the loss over t^2, and `final`.

`loss_grad`: through the network (full), or as if D did not depend on z (stopgrad, SDS's form: another field).

The gradient of the whole is exact and yet says little: m / (sqrt(v) + eps) has hardly a scale, and its first step is a
sign. Attack it by its surrogate too: one call of D, or the same steps by plain gradient descent, whose gradient is not
masked.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from gentk.attacks.victim import Grad
from gentk.defences.noise import Noise
from gentk.defences.one_shot import OneShot
from gentk.defences.prior import Prior
from gentk.defences.walk import State, walk
from gentk.errors import RecipeError
from gentk.processes.process import expand

_SMALLEST = 1e-38  # under the root of Adam's v: its derivative at 0 is infinite, and 1e-19 is nothing beside eps


@dataclass(frozen=True, eq=False)
class ScoreOpt:
    """The purifier, O or N or between. Raises RecipeError where a noise level could be 0 or less.

    Each image has levels of its own, where the code draws one for the batch: an image's answer is its own, and copies
    of it explore more than one level. `optimiser: sgd` is the surrogate's.
    """

    denoise: Prior
    t0: float = 0.25
    band: float = 0.1
    iters: int = 20
    lr: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    loss: Literal["diff", "mse", "sr"] = "diff"
    weight: float = 1.0
    loss_grad: Literal["full", "stopgrad"] = "full"
    resample_t: bool = True
    resample_noise: bool = True
    over_t2: bool = False
    final: bool = False
    optimiser: Literal["adam", "sgd"] = "adam"
    surrogate_by: Literal["one-shot", "sgd"] = "one-shot"
    surrogate_lr: float = 0.1

    modes: ClassVar[tuple[Grad, ...]] = ("full", "bpda", "surrogate", "blind")

    def __post_init__(self) -> None:
        if self.resample_t and self.t0 <= self.band:
            raise RecipeError(
                f"method.t0: levels from {self.t0 - self.band:g} on: a noise level must be above 0",
                hint="raise t0, or lower the band",
            )

    @property
    def random(self) -> bool:
        """Whether there is a step or a final call that noise goes into."""
        return self.iters > 0 or self.final

    @property
    def nfe(self) -> int:
        """Calls of D per purification; all but the final one have a backward pass of their own (`full`)."""
        return self.iters * (2 if self.loss == "sr" else 1) + self.final

    def __call__(self, z: Tensor, noise: Noise) -> Tensor:
        """z (B, ...) -> the purified z, exactly differentiable; works under no_grad and inference_mode."""
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False), torch.no_grad():  # inference_mode(False) alone would switch grad on
                return self(z.clone(), noise)
        zeros = torch.zeros_like(z)
        out, *_ = walk(lambda k, state: self._step(k, state, noise), self.iters, (z, z, zeros, zeros))
        if self.final:
            (out,) = walk(lambda _, state: (self._last(state[0], noise),), 1, (out,))
        return out

    def surrogate(self, z: Tensor, noise: Noise) -> Tensor:
        """One call of D at t0, as the authors attack it, or the unrolled steps of plain gradient descent."""
        if self.surrogate_by == "one-shot":
            return OneShot(self.denoise, self.t0)(z, noise)
        return replace(self, optimiser="sgd", lr=self.surrogate_lr)(z, noise)

    def _draw(self, k: int, z: Tensor, noise: Noise) -> tuple[Tensor | float, Tensor]:
        """The level, (B,) or one number, and the noise of step k."""
        eps = noise.normal(f"{k if self.resample_noise else 0}.start", z)
        if not self.resample_t:
            return self.t0, eps
        return self.t0 + self.band * (2 * noise.uniform(f"{k}.level", z) - 1), eps

    def _last(self, z: Tensor, noise: Noise) -> Tensor:
        t, eps = self._draw(max(self.iters - 1, 0), z, noise)
        return self.denoise(z + _times(t, eps), t)

    def _step(self, k: int, state: State, noise: Noise) -> State:
        z, first, m, v = state
        g = self._gradient(k, z, first, noise)
        if self.optimiser == "sgd":
            return z - self.lr * g, first, m, v
        a, b = self.betas
        m, v = a * m + (1 - a) * g, b * v + (1 - b) * g * g
        root = (v / (1 - b ** (k + 1))).clamp_min(_SMALLEST).sqrt()
        return z - self.lr * (m / (1 - a ** (k + 1))) / (root + self.eps), first, m, v

    def _gradient(self, k: int, z: Tensor, first: Tensor, noise: Noise) -> Tensor:
        """d loss / dz, a function of z where z itself is to be differentiated."""
        outer = torch.is_grad_enabled() and (z.requires_grad or first.requires_grad)
        t, eps = self._draw(k, z, noise)
        with torch.enable_grad():
            at = z.clone() if outer else z.detach().requires_grad_()  # not z itself, which may also be `first`
            if self.loss_grad == "stopgrad":
                with torch.set_grad_enabled(outer):
                    return self._stopped(at, first, t, eps, k, noise)
            total = self._loss(at, first, t, eps, k, noise)
            (g,) = torch.autograd.grad(total, at, create_graph=outer)
        return g

    def _loss(self, z: Tensor, first: Tensor, t: Tensor | float, eps: Tensor, k: int, noise: Noise) -> Tensor:
        d = self.denoise(z + _times(t, eps), t)
        square = (d - z) ** 2
        if self.over_t2:
            square = square / (expand(t, z) ** 2 if isinstance(t, Tensor) else t**2)
        if self.loss == "mse":
            square = square + self.weight * (z - first) ** 2
        if self.loss == "sr":
            square = square + self.weight * (d - self._other(first, t, k, noise)) ** 2
        return square.sum()

    def _stopped(self, z: Tensor, first: Tensor, t: Tensor | float, eps: Tensor, k: int, noise: Noise) -> Tensor:
        """The loss's gradient with D taken for a constant: sr's term has none."""
        g = 2 * (z - self.denoise(z + _times(t, eps), t))
        if self.over_t2:
            g = g / (expand(t, z) ** 2 if isinstance(t, Tensor) else t**2)
        return g + 2 * self.weight * (z - first) if self.loss == "mse" else g

    def _other(self, first: Tensor, t: Tensor | float, k: int, noise: Noise) -> Tensor:
        return self.denoise(first + _times(t, noise.normal(f"{k}.other", first)), t)


def _times(t: Tensor | float, eps: Tensor) -> Tensor:
    return (expand(t, eps) if isinstance(t, Tensor) else t) * eps
