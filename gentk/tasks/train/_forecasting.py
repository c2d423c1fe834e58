"""The torch side of `train vsdm` for time series: score and recurrent encoder of rows (gentk/engine/forecasting.py)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gentk.data import series
from gentk.engine import rng
from gentk.engine.forecasting import Frame, Scale, fan, forecast
from gentk.engine.method import Batch, Export, Metrics, Phase, Result
from gentk.errors import RecipeError
from gentk.metrics.forecasts import crps, crps_sum, weighted_quantile_loss
from gentk.nets.causal import CausalScore
from gentk.processes import rows as rows_of
from gentk.tasks.train._bridging import header_of, improve, linear_denoiser, matching, rates


class Forecasting:
    """A `Trainable`: one denoiser of a linear process of rows with its encoder, steps in A between updates."""

    def __init__(self, recipe: Any, where: torch.device) -> None:
        self.recipe, self.config, self.where = recipe, recipe.method, where
        if self.config.series is None:
            raise RecipeError(
                f"method.series: `{recipe.data.name}` is a series: say its context and horizon",
                hint="--set method.series.context=96 --set method.series.horizon=24",
            )
        if recipe.net.name != "mlp":
            raise RecipeError(f"net.name: `{recipe.net.name}` takes images, rows of a series need `mlp`")
        if recipe.measure is not None:
            raise RecipeError("measure: forecasts are measured by method.series", hint="leave measure out")
        self.section = self.config.series
        self.data = series.load(recipe.data, self.section)
        self.scale = Scale.of(self.data.values[: self.data.train])
        d = len(self.data.columns)
        torch.manual_seed(recipe.seed)  # the initial weights
        size = {"hidden": self.section.hidden, "width": recipe.net.width, "blocks": recipe.net.blocks}
        net = CausalScore(dim=d, features=self.section.features(d), **size)
        every = torch.arange(0, len(self.data), max(1, self.section.horizon // 2))
        _, targets = self._prepared(self.data.at(every), every)
        denoiser = linear_denoiser(net, self.config, targets.flatten(0, 1))
        self.nets = {"denoiser": denoiser.to(where)}
        self.ema, self.optim = ("denoiser",), {"denoiser": recipe.optim}

    def _prepared(self, x: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        """Features of rows 0 to T - 2 and the targets of the rows after them, of windows x (B, T, d)."""
        frame = Frame.of(x[:, : self.section.context], self.scale, self.section)
        return frame.features(x, first)[:, :-1], frame.targets(x)

    def phases(self, step: int) -> Iterator[Phase]:
        """The step in A where a stage begins, then one update of score and encoder."""
        stage, at = divmod(step, self.config.stage)
        if at == 0 and 1 <= stage <= self.config.stages:
            gen = rng.generator(self.recipe.seed, step, "paths")
            first = torch.randint(len(self.data), (-(-self.config.paths // self.section.horizon),), generator=gen)
            features, _ = self._prepared(self.data.at(first), first)
            denoiser = self.nets["denoiser"]
            with torch.no_grad():  # the states that rows are drawn given
                states, _ = _net(denoiser).encode(features.to(self.where))
            cond = states[:, -self.section.horizon :].flatten(0, 1)[: self.config.paths]
            improve(denoiser, self.config, stage, gen, cond)
        yield Phase("score", ("denoiser",), self._loss)

    def _loss(self, batch: Batch, gen: torch.Generator) -> tuple[Tensor, Metrics]:
        # windows of the step's own draw: the loop's batch would come without the rows that they begin at
        first = rows_of.randint(len(self.data), (batch.n,), gen, device=gen.device).cpu()
        features, targets = self._prepared(self.data.at(first), first)
        denoiser = self.nets["denoiser"]
        states, _ = _net(denoiser).encode(features.to(self.where))
        rows = self.section.horizon  # those of the context would be told its own centre and spread
        cond = states[:, -rows:].flatten(0, 1)
        return matching(denoiser, targets[:, -rows:].flatten(0, 1).to(self.where), cond, self.config, gen)

    def preview(self, averaged: Mapping[str, nn.Module]) -> Result:
        """CRPS of the validation windows, and the rates of D."""
        denoiser: Any = averaged["denoiser"]
        figures = rates(denoiser)
        if self.section.validation:
            figures |= self._figures(*self.forecast(denoiser, "validation", 20))
        return Result(figures)

    def finish(self, averaged: Mapping[str, nn.Module]) -> Result:
        """CRPS of the test windows, beside naive forecasts, pictures of the last window, and the model."""
        denoiser: Any = averaged["denoiser"]
        paths, truth = self.forecast(denoiser, "test", self.section.paths)
        figures = self._figures(paths, truth) | rates(denoiser)
        for name, own in self._naive("test").items():
            figures |= {f"{k}_{name}": v for k, v in self._figures(own, truth).items()}
        context = self.data.values[self.data.starts("test")[-1] :][: self.section.context]
        title = f"sum of {len(self.data.columns)} series, the last test window"
        picture = fan(context.sum(1), paths[:, -1].sum(-1), truth[-1].sum(-1), title)
        data_of = {
            "name": self.data.name,
            "shape": (len(self.data.columns),),
            "classes": 0,
            "columns": self.data.columns,
            "section": self.recipe.data.model_dump(mode="json"),
        }
        header = header_of(self.recipe, denoiser, data_of) | {
            "kind": "forecaster",
            "series": self.section.model_dump(mode="json"),
            "scale": self.scale.dump(),
        }
        return Result(figures, pictures={"forecast": picture}, exports={"denoiser": Export(denoiser, header)})

    def _figures(self, paths: Tensor, truth: Tensor) -> dict[str, float]:
        return {
            "crps": weighted_quantile_loss(paths, truth),
            "crps_sum": crps_sum(paths, truth),
            "crps_exact": float((crps(paths, truth).sum((0, 1)) / truth.abs().sum((0, 1))).mean()),
        }

    def forecast(self, denoiser: Any, split: str, count: int) -> tuple[Tensor, Tensor]:
        """`count` paths (count, windows, horizon, d) of a split's windows, and what came (windows, horizon, d)."""
        first = self.data.starts(split)
        x = self.data.at(first)
        gen = rng.generator(self.recipe.seed, split, "forecast")
        context, rest = x[:, : self.section.context], x[:, self.section.context :]
        paths = forecast(
            denoiser, self.scale, self.section, context, first, count=count, prior=self.config.prior, gen=gen
        )
        return paths, rest.double()

    def _naive(self, split: str) -> dict[str, Tensor]:
        """Two forecasts without learning: the last season repeated, and paths of it with steps drawn from the context.

        The steps x_t - x_{t - season} of the context are drawn whole rows at a time, so that the series keep their
        dependence; over several seasons they add up.
        """
        section = self.section
        gen = rng.generator(self.recipe.seed, split, "naive")
        context = self.data.at(self.data.starts(split))[:, : section.context].double()
        s, n = section.season, section.paths
        steps = context[:, s:] - context[:, :-s]
        made: list[Tensor] = []
        for k in range(section.horizon):
            draw = torch.randint(steps.shape[1], (n, len(context)), generator=gen)
            before = made[k - s] if k >= s else context[:, k - s].expand(n, -1, -1)
            made.append(before + steps[torch.arange(len(context)), draw])
        point = torch.stack([context[:, k % s - s] for k in range(section.horizon)], 1)[None]
        return {"naive": point, "naive_paths": torch.stack(made, 2)}


def _net(denoiser: Any) -> CausalScore:
    net = denoiser.net
    assert isinstance(net, CausalScore)
    return net
