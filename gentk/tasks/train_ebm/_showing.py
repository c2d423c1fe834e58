"""What is shown and measured of an energy: its landscape, samples from noise, their figures, denoised images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL.Image import Image
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial.distance import cdist
from torch import Tensor

from gentk import targets
from gentk.data import DataSet, to_uint8
from gentk.engine import landscape, pictures, rng
from gentk.engine.energetic import Chains, ladder, mode, tweedie
from gentk.engine.generative import Judge, picture, rounded
from gentk.engine.method import Result
from gentk.metrics import denoising, quadrature
from gentk.metrics.frechet import frechet
from gentk.metrics.quality import all_of, moments
from gentk.nets.energy import Energy
from gentk.tasks.train_ebm import Measure

if TYPE_CHECKING:
    from gentk.tasks.train_ebm._fitting import Fitting

_SHOWN = 100  # images in a picture
_POINTS = 1000
_DENOISED = 500  # test images
_PANEL = 36


class Showing:
    """One energy of a fit, looked at from all sides."""

    def __init__(self, fit: Fitting, net: Energy) -> None:
        self.fit, self.net = fit, net
        self.data: DataSet = fit.data
        self.plane = self.data.kind == "points" and self.data.shape == (2,)
        self.section: Measure = fit.recipe.measure or Measure(features="identity")

    def glance(self) -> Result:
        """Along the way: samples, landscape, the distance of few samples, KL in the plane."""
        chains = self._chains()
        shown = chains(_POINTS if self.plane else _SHOWN, self.fit.recipe.seed, batch=self.section.batch)
        figures = self._judge().glance(chains, self.fit.recipe.seed) if self.fit.recipe.measure else {}
        extra, drawn = self._plane() if self.plane else ({}, {})
        return Result(figures | extra, drawn | {"samples": picture({"samples": shown})})

    def all(self) -> Result:
        """At the end: all figures that the recipe's `measure` asks for."""
        figures: dict[str, float] = {}
        drawn: dict[str, Image] = {}
        seed, section = self.fit.recipe.seed, self.section
        if self.fit.recipe.measure:
            judge, chains = self._judge(), self._chains()
            figures |= judge(chains, seed)
            if section.longer:
                long = self._chains(section.longer)
                samples = rounded(long(section.n, seed, batch=section.batch))
                figures["fd_long"] = frechet(moments(judge.extract(all_of(self.data))), moments(judge.extract(samples)))
                short = chains(_POINTS if self.plane else _SHOWN, seed, batch=section.batch)
                drawn["long chains"] = picture(
                    {"chains": short, f"{1 + section.longer} x as long": samples[: len(short)]}
                )
            if self.data.kind == "image":
                more, panels = self._denoised(section.denoise)
                figures, drawn = figures | more, drawn | panels
        if self.plane:
            extra, panels = self._plane()
            figures, drawn = figures | extra, drawn | panels
        return Result(figures | self._energies(), drawn)

    def _judge(self) -> Judge:
        return Judge(self.section, self.data, self.fit.test, self.fit.where)  # type: ignore[arg-type]

    def _chains(self, longer: int = 0) -> Chains:
        section, levels = self.section, self.net.levels
        return Chains(
            self.net,
            self.data.shape,
            self.fit.where,
            steps=section.steps,
            step_size=section.step_size,
            levels=() if levels is None else tuple(ladder(levels, section.levels)),
            start=section.start,
            longer=longer,
        )

    def _energies(self) -> dict[str, float]:
        """Energies of held-out data beside those of uniform points in the data's box, which must lie higher (T7).

        With the root mean square of the score at the held-out data, whose growth tells of divergence before the loss.
        """
        x = self.fit.test.batch(torch.arange(min(1000, len(self.fit.test))))[0].to(self.fit.where)
        low, high = x.amin(0), x.amax(0)
        box = low + (high - low) * torch.rand(x.shape, generator=rng.generator(self.fit.recipe.seed, "box")).to(x)
        with torch.no_grad():  # a measurement
            inside, outside = self.net(x), self.net(box)
        score = self.net.score(x).square().mean().sqrt()
        return {"energy_test": float(inside.mean()), "energy_box": float(outside.mean()), "score_test": float(score)}

    def _plane(self) -> tuple[dict[str, float], dict[str, Image]]:
        """KL(p | q) where p is known, the range of energies on the data's box, and both densities as maps."""
        box = quadrature.Box.around(self.data.x)
        energies = quadrature.on_grid(self.net, box, where=self.fit.where)
        figures = {"energy_range": float(energies.max() - energies.min()), **self._reach()}
        side = (box.points, box.points)
        density = (-energies - quadrature.log_normaliser(energies, box)).exp()
        panels = {"energy": energies.reshape(side).numpy(), "density": density.reshape(side).numpy()}
        log_prob = targets.find(self.data.name.partition(":")[2]).log_prob
        if log_prob is not None:
            truth = quadrature.on_grid(log_prob, box, dtype=torch.float64)
            figures["kl"] = quadrature.divergence(truth, energies, box)
            panels["data"] = truth.exp().reshape(side).numpy()
        extent = (box.x - box.reach, box.x + box.reach, box.y - box.reach, box.y + box.reach)
        # energies in the far corners would leave no shade for what matters
        panels["energy"] = np.minimum(panels["energy"], np.quantile(panels["energy"], 0.5))
        return figures, {"landscape": landscape.maps(panels, extent)}

    def _reach(self) -> dict[str, float]:
        """The widest kernel over the widest gap in the data: below 0.25 weights of modes are hardly seen (T5)."""
        sigma = getattr(self.fit.config, "sigma", None)
        if sigma is None or self.fit.ladder:
            return {}
        return {"sigma_over_gap": (sigma[1] if isinstance(sigma, tuple) else sigma) / widest_gap(self.data.x[:1000])}

    def _denoised(self, levels: tuple[float, ...]) -> tuple[dict[str, float], dict[str, Image]]:
        figures: dict[str, float] = {}
        drawn: dict[str, Image] = {}
        clean = self.fit.test.batch(torch.arange(min(_DENOISED, len(self.fit.test))))[0]
        other = self.data.batch(torch.arange(min(_DENOISED, len(self.data))))[0]
        for sigma in levels:
            gen = rng.generator(self.fit.recipe.seed, "denoise", f"{sigma:g}")
            noisy, noisy_other = (x + sigma * torch.randn(x.shape, generator=gen) for x in (clean, other))
            blur = denoising.blurred(noisy, denoising.tuned_blur(noisy_other, other))
            known = self.net.levels is not None and self.net.levels[0] / 2 <= sigma <= self.net.levels[1]
            parts = torch.split(noisy.to(self.fit.where), 100)
            found = torch.cat([tweedie(self.net, y, sigma) if known else mode(self.net, y, sigma) for y in parts]).cpu()
            for name, x in (("psnr", found), ("psnr_noisy", noisy), ("psnr_blur", blur)):
                figures[f"{name}_{sigma:g}"] = denoising.mean_psnr(x, clean)
            panels = {"clean": clean, "noisy": noisy, "blurred": blur, "by the energy": found}
            shown = {name: to_uint8(x[:_PANEL].clamp(-1, 1)) for name, x in panels.items()}
            drawn[f"denoised {sigma:g}"] = pictures.side_by_side(shown)
        return figures, drawn


def widest_gap(x: Tensor) -> float:
    """The longest edge of the shortest tree that spans the points (N, D): how far apart clusters are, at most."""
    distances: Any = cdist(x.double().numpy(), x.double().numpy())
    return float(minimum_spanning_tree(distances).max())
