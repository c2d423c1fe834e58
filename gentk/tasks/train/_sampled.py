"""What a sampler's run reports: figures beside their null bands, pictures, and whether training has paid."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from gentk.engine import pictures, rng
from gentk.engine.method import Result
from gentk.engine.pictures import chart, scatter
from gentk.errors import RecipeError
from gentk.losses.implicit import score_of
from gentk.metrics import reference as references
from gentk.metrics import sampled
from gentk.metrics.points import c2st, ksd
from gentk.metrics.reference import Reference
from gentk.nets.implicit import Sampler
from gentk.targets import Density

_SHOWN = 2000  # points in a picture
_IMAGES = 64
_STEIN = 1000  # draws of the Stein discrepancy, whose work grows as their square


class Judge:
    """Compares a sampler with its density; the reference is made once, when it is first needed."""

    def __init__(self, recipe: Any, density: Density, sampler: Sampler, where: torch.device) -> None:
        self.section, self.seed, self.where = recipe.measure, recipe.seed, where
        self.density = density
        self._place = sampler.place  # its buffers never change

    def draws(self, sampler: Sampler, n: int, purpose: str = "draws") -> Tensor:
        """(n, D) float32 on the CPU."""
        gen = rng.generator(self.seed, purpose, device=self.where)
        with torch.no_grad():
            x: Tensor = sampler(torch.randn(n, self.density.dim, generator=gen, device=self.where))
        return x.cpu()

    @functools.cached_property
    def reference(self) -> Reference | None:
        """Exact draws, or chains that have converged; None without."""
        kind, gen = self.section.reference, rng.generator(self.seed, "reference")
        if kind == "none":
            return None
        if kind == "auto" and self.density.exact is not None:
            return Reference(self.density.exact(self.section.draws + 2 * self.section.n, gen), "exact")
        found = self._nuts() if kind == "nuts" else self.chains
        return found if found.converged else None

    def _nuts(self) -> Reference:
        from gentk.metrics.nuts import nuts  # an optional package

        if self.density.logistic is None:
            raise RecipeError(
                f"measure.reference: nuts knows logistic:..., not `{self.density.name}`", hint="measure.reference=hmc"
            )
        return nuts(self.density.logistic, self.seed)

    @functools.cached_property
    def chains(self) -> Reference:
        """HMC in the sampler's own coordinates, converged or not."""
        section = self.section
        return references.chained(
            self.density.log_prob,
            self._place,
            self.density.dim,
            gen=rng.generator(self.seed, "chains", device=self.where),
            chains_=section.chains,
            length=section.length,
            rounds=section.rounds,
        )

    def glance(self, sampler: Sampler) -> Result:
        """A picture, and in the plane the distance to exact draws."""
        n = self.section.preview
        shown = self.picture(self.draws(sampler, max(n, _SHOWN)))
        if not n or self.density.exact is None:
            return Result(pictures=shown)
        x, gen = self.draws(sampler, n, "glance"), rng.generator(self.seed, "exact glance")
        y = self.density.exact(n, gen)
        return Result({"mmd2": sampled.mmd(x, y, y, splits=1).value}, shown)

    def verdict(self, sampler: Sampler, training: float) -> tuple[dict[str, float], dict[str, Image]]:
        """Every figure, and the pictures. `training`: seconds."""
        section, density = self.section, self.density
        gen = rng.generator(self.seed, "time", device=self.where)
        seconds = sampled.timed(sampler, section.draws, density.dim, gen) / section.draws
        figures = {"ms_per_1000": 1e6 * seconds, "train_seconds": training}
        x, ref = self.draws(sampler, section.draws), self.reference
        shown = self.picture(x)
        if section.race and section.reference != "none":
            figures |= self._race(training, seconds)
        if ref is None:
            if section.reference != "none":  # and no comparison with chains that disagree
                figures["reference_r_hat"] = self.chains.r_hat
            return figures | self._stein(x, None), shown
        n, y = section.n, ref.draws
        scale = 1.0 if density.dim == 2 else y.std(0)  # in more dimensions every coordinate counts alike
        parts = [part / scale for part in (x[:n], y[:n], y[n : 2 * n])]
        for name, found in (("mmd2", sampled.mmd(*parts)), ("sw2", sampled.sliced(*parts))):
            figures |= {name: found.value, f"{name}_null": found.null}
        if density.dim == 2 or density.centres is not None:
            mass = sampled.masses(x, y, density.centres)
            figures |= {"mass_error": mass.error, "mass_null": mass.null}
            left = [float((each[:, 0] < 0).double().mean()) for each in (x, y)]
            figures |= {"mass_left": left[0], "mass_left_reference": left[1]}
        moments = sampled.moments(x, y)
        figures |= {
            "mean_error_max": float(moments.shift.abs().max()),
            "mean_error": float(moments.shift.abs().mean()),
            "sd_ratio_min": float(moments.ratio.min()),
            "sd_ratio_max": float(moments.ratio.max()),
        }
        figures |= self._stein(x, y)
        if density.dim > 2:
            figures["c2st"] = c2st(x[:_STEIN] / scale, y[:_STEIN] / scale).accuracy.value
            shown["moments"] = _moments(moments, ref.by)
        figures |= self._metropolis(x[:n], y[:n])
        if ref.by != "exact":
            figures |= {"reference_r_hat": ref.r_hat, "reference_ess": ref.ess}
        if ref.by == "NUTS":
            figures["nuts_ms_per_1000"] = 1e6 * ref.seconds_per_draw
            figures["nuts_over_sampler"] = ref.seconds_per_draw / seconds
        return figures, shown

    def _race(self, training: float, seconds: float) -> dict[str, float]:
        """HMC's seconds per effective draw, if it has converged, and from how many draws on the training has paid."""
        raced = self.chains
        figures = {"hmc_r_hat": raced.r_hat}
        if raced.converged:
            figures |= {"hmc_ms_per_1000": 1e6 * raced.seconds_per_draw, "hmc_over_sampler": raced.seconds_per_draw}
            figures["hmc_over_sampler"] /= seconds
            if math.isfinite(training):
                n_star = sampled.break_even(training, raced.seconds_per_draw, seconds)
                figures |= {"n_star": n_star} if math.isfinite(n_star) else {}
        return figures

    def _stein(self, x: Tensor, y: Tensor | None) -> dict[str, float]:
        """Kernel Stein discrepancy in y's own units, and the gap of the log-density; the reference's beside them."""
        figures: dict[str, float] = {}
        scale = 1.0 if self.density.dim == 2 else (x if y is None else y).std(0)
        score = score_of(self.density.log_prob)
        for name, each in (("ksd2", x), ("ksd2_reference", y)):
            if each is not None:
                part = each[:_STEIN]
                figures[name] = ksd(part / scale, score(part.to(self.where)).cpu() * scale, _width(part / scale)).value
        with torch.no_grad():
            gaps = [float(self.density.log_prob(e.to(self.where)).double().mean()) for e in (x, y) if e is not None]
        if len(gaps) == 2:
            figures["log_q_gap"] = gaps[1] - gaps[0]  # positive: ours lie where q is smaller
        return figures

    def _metropolis(self, x: Tensor, y: Tensor) -> dict[str, float]:
        """How many of our draws one step of MALA accepts, in y's coordinates scaled, at what suits the reference."""
        scale = y.std(0)

        def log_prob(at: Tensor) -> Tensor:
            return self.density.log_prob((at * scale).to(self.where)).cpu()

        noise = functools.partial(_noise, gen=rng.generator(self.seed, "mala"))
        size = sampled.tuned(log_prob, y / scale, noise)
        return {
            "mala_acceptance": sampled.acceptance(log_prob, x / scale, size, noise),
            "mala_acceptance_reference": sampled.acceptance(log_prob, y / scale, size, noise),
        }

    def picture(self, x: Tensor) -> dict[str, Image]:
        """Points beside exact ones and on the landscape; images in a grid."""
        density = self.density
        if len(density.shape) == 3:
            from gentk.data import to_uint8

            return {"samples": pictures.grid(to_uint8(x[:_IMAGES].reshape(-1, *density.shape).clamp(-1, 1)))}
        if density.dim != 2:
            return {}
        if density.exact is None:
            return {"samples": scatter({"sampler": x[:_SHOWN]}), "landscape": landscape(density, x, x)}
        exact = density.exact(_SHOWN, rng.generator(self.seed, "exact shown"))
        return {"samples": scatter({"exact": exact, "sampler": x[:_SHOWN]}), "landscape": landscape(density, exact, x)}


def _noise(x: Tensor, gen: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=gen).to(x)


def _width(x: Tensor) -> float:
    """1 in the plane; sqrt(D) in more dimensions, where standardised points are that far apart."""
    return 1.0 if x.shape[1] == 2 else math.sqrt(x.shape[1])


def landscape(density: Density, shown: Tensor, x: Tensor) -> Image:
    """log q in the plane, down to 12 below its maximum, around the points `shown`, with draws x on it."""
    low, high = shown.quantile(0.005, dim=0), shown.quantile(0.995, dim=0)
    middle, reach = (low + high) / 2, 0.65 * float((high - low).max())
    axis = torch.linspace(-reach, reach, 240)
    first, second = axis + middle[0], axis + middle[1]
    nodes = torch.stack(torch.meshgrid(first, second, indexing="xy"), -1).reshape(-1, 2)
    with torch.no_grad():
        value = density.log_prob(nodes).reshape(240, 240)
    heights = (value - value.max()).clamp(min=-12).numpy()

    def draw(axes: Any) -> None:
        edges = (float(first[0]), float(first[-1]), float(second[0]), float(second[-1]))
        axes.imshow(heights, origin="lower", extent=edges, cmap="Blues", aspect="equal", vmin=-12, vmax=3)
        part = x[:600].numpy()
        axes.scatter(part[:, 0], part[:, 1], s=3, color="#c92a2a", alpha=0.6, linewidths=0)
        axes.set(title=f"log density of {density.name}, and draws", xlim=edges[:2], ylim=edges[2:])

    return chart(draw, 420, 420)


def _moments(moments: sampled.Moments, by: str) -> Image:
    """Errors of means and ratios of deviations, coordinate by coordinate, with the bounds of agreement."""
    shift, ratio = moments.shift.numpy(), moments.ratio.numpy()
    at = np.arange(1, len(shift) + 1)

    def draw(axes: Any) -> None:
        axes.axhspan(-0.1, 0.1, color="#dbe4ff", lw=0)
        axes.plot(at, shift, "o", ms=4, color=pictures.INK, label="mean error / sd")
        axes.plot(at, ratio - 1, "x", ms=4, color="#e8590c", label="sd ratio - 1")
        axes.set(title=f"moments beside {by}", xlabel="coordinate")
        axes.legend(fontsize=8, frameon=False)

    return chart(draw)
