"""What an alignment run looks at along the way, and what alarms it: diversity, reward hacking, other rewards.

Everything is drawn from noise that training never sees, the same every time, classes in turn.

    reward       mean over the classes that training asks for; reward_held_out: over those that it never does
    spread       root mean square distance of a sample to the mean of its class, in the watched features
    fd           Frechet distance of few samples to the real data
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from PIL.Image import Image
from torch import Tensor, nn
from torch.nn import functional as F

from gentk.engine import rng
from gentk.engine.draw import batches
from gentk.engine.generative import Sampler, picture
from gentk.engine.method import Result
from gentk.engine.one_step import export
from gentk.errors import RecipeError
from gentk.metrics.features import Extractor, extractor
from gentk.processes.denoiser import Denoiser
from gentk.processes.models import load
from gentk.tasks.align._rewards import cut

if TYPE_CHECKING:
    from gentk.tasks.align._aligning import Aligning

_SHOWN, _SHOWN_LARGE = 100, 9  # samples in a picture
_SIDE = 64  # pixels that raw values are compared at
Seen = dict[str, float]
Remark = dict[str, str]


class Watcher:
    """Figures of a generator on fixed noise, against those of the one that the run began with."""

    def __init__(self, method: Aligning) -> None:
        self.method, self.section, self.given = method, method.config.watch, method.given
        shape, count = self.given.about.shape, self.given.watched.count
        if self.section.samples < 2 * count:
            raise RecipeError(
                f"method.watch.samples: {self.section.samples} are too few for {count} classes or prompts in turn",
                hint=f"at least {2 * count}: the spread is among samples of one",
            )
        self.extract = (
            _values if self.section.features == "identity" else _features(self.section.features, shape, method.where)
        )
        self.start: Seen = {}
        self.first: Tensor | None = None  # samples of the generator that the run began with
        self.deviations: dict[str, float] = {}
        self.notes: list[str] = []

    def begin(self) -> None:
        """Looks at the generator as it is now, before anything has moved it."""
        net = self.method.nets["generator"].eval()
        self.first = self.draw(net, self._shown)
        self.start, values = self._look(net)
        self.deviations = {name: float(each.std()) for name, each in values.items()}
        self.notes = self._notes()

    @property
    def _shown(self) -> int:
        return _SHOWN if self.given.decode is None else _SHOWN_LARGE

    def draw(self, net: nn.Module, n: int) -> Tensor:
        """Samples 0 to n of the run's seed, conditions in turn: (n, ...) on the CPU, as rewards see them."""
        return torch.cat([samples.float().cpu() for samples, _, _ in self._parts(net, n)])

    @torch.no_grad()  # only looked at
    def _parts(self, net: nn.Module, n: int) -> Iterator[tuple[Tensor, Any, Tensor]]:
        """Samples 0 to n, their conditions, and the numbers of these, batch by batch."""
        core = self.method.core
        for first, count in batches(0, n, self.given.batch):
            z = rng.noise(self.method.recipe.seed, first, count, core.shape, purpose="start").to(core.where)
            numbers = torch.arange(first, first + count) % max(1, self.given.watched.count)
            cond = self.given.watched.take(numbers, core.where)
            x0 = net(float(core.process.sigma(core.t_init)) * z, core.t_init, cond)
            yield self.method.images(x0), cond, numbers

    def _look(self, net: nn.Module) -> tuple[Seen, dict[str, Tensor]]:
        """Figures, and the values of the other rewards sample by sample."""
        method, rows = self.method, defaultdict[str, list[Tensor]](list)
        for samples, cond, numbers in self._parts(net, self.section.samples):
            total, parts = method.rewards(samples, cond)
            found = {"numbers": numbers, "reward": total, "features": self.extract(samples.float())}
            found |= {f"reward_{name}": each for name, each in parts.items()}
            if method.others.terms:
                found |= {f"other_{name}": each for name, each in method.others(samples, cond)[1].items()}
            for name, each in found.items():
                rows[name].append(each.detach().cpu())
        every = {name: torch.cat(each) for name, each in rows.items()}
        numbers = every.pop("numbers")
        held = self.given.held[numbers]
        seen: Seen = {"reward": float(every["reward"][~held].mean())}
        if bool(held.any()):
            seen["reward_held_out"] = float(every["reward"][held].mean())
        if len(method.rewards.terms) > 1:
            seen |= {name: float(each[~held].mean()) for name, each in every.items() if name.startswith("reward_")}
        others = {name: each for name, each in every.items() if name.startswith("other_")}
        seen |= {name: float(each.mean()) for name, each in others.items()}
        seen["spread"] = spread(every["features"], numbers)
        if method.judge is not None:
            seen |= method.judge.glance(self.sampler(net), method.recipe.seed)
        return seen, others

    def sampler(self, net: nn.Module) -> Sampler:
        """The generator as it is drawn from and measured."""
        assert isinstance(net, Denoiser)
        method = self.method
        cycle = tuple(range(method.model.classes))
        return Sampler(net, method.model.shape, cycle, method.where, sigma_init=method.given.sigma_init)

    def preview(self, net: nn.Module) -> Result:
        """Before and now from the same noise, figures, and what is alarming about them."""
        seen, _ = self._look(net)
        figures = seen | {"spread_ratio": _over(seen["spread"], self.start["spread"])}
        remarks = self.alarms(seen)
        remarks += [{"kind": "warning", "name": words, "words": words} for words in self.notes]
        enough = self.section.enough is not None and seen["reward"] >= self.section.enough
        if enough:
            remarks.append(
                {"kind": "note", "name": "enough", "words": f"the reward has reached {self.section.enough:g}: stopped"}
            )
        alarmed = any(each["kind"] == "flag" for each in remarks)
        model = self._export(net)
        return Result(
            figures,
            {"before-after": self._picture(self.draw(net, self._shown))},
            {"generator": model},
            remarks=tuple(remarks),
            halt=enough or (alarmed and self.section.on_alarm == "stop"),
            rank=float("inf") if alarmed else -seen["reward"],
        )

    def alarms(self, seen: Mapping[str, float]) -> list[Remark]:
        """What is wrong with these figures, in plain words."""
        begun, section, found = self.start, self.section, []
        left = _over(seen["spread"], begun["spread"])
        if left < section.spread:
            found.append(
                _flag(
                    "diversity",
                    f"diversity has collapsed: samples of one class differ by {left:.0%} of what they did at the start "
                    f"(alarm below {section.spread:.0%}). Lower alpha_rew, put weight at small noise levels "
                    "(weight: s2), or stop earlier.",
                )
            )
        risen = seen["reward"] > begun["reward"]
        if risen and "fd" in seen and seen["fd"] > section.fd * begun["fd"]:
            found.append(
                _flag(
                    "hacking",
                    f"the reward is being hacked: it rose from {begun['reward']:.3g} to {seen['reward']:.3g} while the "
                    f"distance to the data rose from {begun['fd']:.3g} to {seen['fd']:.3g} (alarm above "
                    f"{section.fd:g} times). Lower alpha_rew or stop earlier.",
                )
            )
        for name, deviation in self.deviations.items():
            fall = begun[name] - seen[name]
            if risen and fall > section.drop * deviation:
                found.append(
                    _flag(
                        name,
                        f"the reward rises at the cost of `{name.removeprefix('other_')}`, which it does not know: "
                        f"that fell by {fall:.3g} ({fall / deviation:.2g} of its standard deviations at the start).",
                    )
                )
        return found

    def _picture(self, samples: Tensor) -> Image:
        assert self.first is not None
        return picture({"before": self.first, "after": samples})

    def _export(self, net: nn.Module) -> Any:
        assert isinstance(net, Denoiser)
        method = self.method
        made = export(net, method.model, method.given.sigma_init, method.reference.name)
        made.header["aligned"] = {
            "method": method.recipe.method.name,
            "generator": method.recipe.generator,
            "rewards": [term.name for term in method.rewards.terms],
            "alpha_rew": method.alpha,
            "alpha_cfg": method.config.alpha_cfg,
        }
        return made

    def finish(self, net: nn.Module) -> Result:
        """Figures before and after."""
        method = self.method
        before, after = dict(self.start), self._look(net)[0]
        if method.judge is not None:
            first = load(method.recipe.generator, kinds=("generator",), where=method.where).net
            for seen, each in ((before, first), (after, net)):
                seen |= method.judge(self.sampler(each), method.recipe.seed)
        figures = {"alpha_rew": method.alpha}
        for name in after:
            if name not in ("nfe", "nearest_test", "ms_per_sample"):  # the network is the same one
                figures |= {f"{name}_before": before[name], f"{name}_after": after[name]}
        figures["spread_ratio"] = _over(after["spread"], before["spread"])
        return Result(
            figures, {"before-after": self._picture(self.draw(net, self._shown))}, {"generator": self._export(net)}
        )

    def _notes(self) -> list[str]:
        """What is no alarm, but to be known: prompts that an encoder or a reward reads only the beginning of."""
        texts = getattr(getattr(self.given.watched, "of", None), "texts", ())
        texts += tuple(getattr(getattr(self.given.learned, "of", None), "texts", ()))
        return [*self.given.notes, *cut(self.method.rewards, tuple(dict.fromkeys(texts)))]


def _features(name: str, shape: tuple[int, ...], where: torch.device) -> Extractor:
    return extractor(name, shape=shape, where=where)


def _values(x: Tensor) -> Tensor:
    """The values themselves (n, ...) -> (n, F) float64, of images at most _SIDE a side."""
    if x.dim() == 4 and max(x.shape[2:]) > _SIDE:
        x = F.adaptive_avg_pool2d(x, (min(x.shape[2], _SIDE), min(x.shape[3], _SIDE)))
    return x.flatten(1).double()


def _flag(name: str, words: str) -> Remark:
    return {"kind": "flag", "name": name, "words": words}


def _over(value: float, start: float) -> float:
    return value / start if start else 1.0


def spread(features: Tensor, groups: Tensor) -> float:
    """Root mean square distance to the mean of the own group, unbiased in small ones: features (n, F), groups (n,)."""
    total, freedom = 0.0, 0
    for group in torch.unique(groups):
        own = features[groups == group].double()
        total += float((own - own.mean(0)).square().sum())
        freedom += len(own) - 1
    return (total / freedom) ** 0.5 if freedom else 0.0
