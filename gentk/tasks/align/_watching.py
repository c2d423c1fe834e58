"""What an alignment run looks at along the way, and what alarms it: diversity, reward hacking, other rewards.

Everything is drawn from noise that training never sees, the same every time, classes in turn.

    reward       mean over the classes that training asks for; reward_held_out: over those that it never does
    spread       root mean square distance of a sample to the mean of its class, in the watched features
    fd           Frechet distance of few samples to the real data
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from PIL.Image import Image
from torch import Tensor, nn

from gentk.engine import rng
from gentk.engine.draw import batches
from gentk.engine.generative import Sampler, picture
from gentk.engine.method import Result
from gentk.engine.one_step import export
from gentk.metrics.features import extractor
from gentk.processes.denoiser import Denoiser
from gentk.processes.models import load
from gentk.tasks.align._rewards import Rewards, Subject

if TYPE_CHECKING:
    from gentk.tasks.align._aligning import Aligning

_SHOWN = 50  # samples in a picture
_BATCH = 500
Seen = dict[str, float]
Remark = dict[str, str]


class Watcher:
    """Figures of a generator on fixed noise, against those of the one that the run began with."""

    def __init__(self, method: Aligning, about: Subject) -> None:
        self.method, self.section = method, method.config.watch
        self.extract = extractor(self.section.features, shape=about.shape, where=method.where)
        self.start: Seen = {}
        self.first: Tensor | None = None  # samples of the generator that the run began with
        self.deviations: dict[str, float] = {}

    def begin(self) -> None:
        """Looks at the generator as it is now, before anything has moved it."""
        net = self.method.nets["generator"].eval()
        self.first = self.draw(net, max(self.section.samples, _SHOWN))
        self.start, values = self._look(net)
        self.deviations = {name: float(each.std()) for name, each in values.items()}

    @torch.no_grad()  # only looked at
    def draw(self, net: nn.Module, n: int) -> Tensor:
        """Samples 0 to n of the run's seed, conditions in turn: (n, ...) on the CPU, as rewards see them."""
        core, parts = self.method.core, []
        for first, count in batches(0, n, _BATCH):
            z = rng.noise(self.method.recipe.seed, first, count, core.shape, purpose="start").to(core.where)
            cond = core.conditions.take(self._numbers(first, count), core.where)
            x0 = net(float(core.process.sigma(core.t_init)) * z, core.t_init, cond)
            parts.append(self.method.images(x0).float().cpu())
        return torch.cat(parts)

    def _numbers(self, first: int, n: int) -> Tensor:
        return torch.arange(first, first + n) % max(1, self.method.core.conditions.count)

    @torch.no_grad()
    def _values(self, rewards: Rewards, samples: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Total and parts of each sample."""
        core, totals, parts = self.method.core, [], []
        for first, count in batches(0, len(samples), _BATCH):
            cond = core.conditions.take(self._numbers(first, count), core.where)
            total, part = rewards(samples[first : first + count].to(core.where), cond)
            totals.append(total.cpu())
            parts.append(part)
        return torch.cat(totals), {name: torch.cat([p[name].cpu() for p in parts]) for name in parts[0]}

    def _look(self, net: nn.Module, *, samples: Tensor | None = None) -> tuple[Seen, dict[str, Tensor]]:
        """Figures, and the values of the other rewards sample by sample."""
        method = self.method
        samples = self.draw(net, self.section.samples) if samples is None else samples
        numbers = self._numbers(0, len(samples))
        total, parts = self._values(method.rewards, samples)
        held = torch.isin(numbers, torch.tensor(method.config.held_out, dtype=torch.int64))
        seen: Seen = {"reward": float(total[~held].mean())}
        if bool(held.any()):
            seen["reward_held_out"] = float(total[held].mean())
        if len(parts) > 1:
            seen |= {f"reward_{name}": float(each[~held].mean()) for name, each in parts.items()}
        others: dict[str, Tensor] = {}
        if method.others.terms:
            others = self._values(method.others, samples)[1]
            seen |= {f"other_{name}": float(each.mean()) for name, each in others.items()}
        seen["spread"] = spread(self.extract(samples), numbers)
        if method.judge is not None:
            seen |= method.judge.glance(self.sampler(net), method.recipe.seed)
        return seen, others

    def sampler(self, net: nn.Module) -> Sampler:
        """The generator as it is drawn from and measured."""
        assert isinstance(net, Denoiser)
        method = self.method
        cycle = tuple(range(method.model.classes))
        return Sampler(net, method.model.shape, cycle, method.where, sigma_init=method.sigma_init)

    def preview(self, net: nn.Module) -> Result:
        """Before and now from the same noise, figures, and what is alarming about them."""
        samples = self.draw(net, max(self.section.samples, _SHOWN))
        seen, _ = self._look(net, samples=samples[: self.section.samples])
        figures = seen | {"spread_ratio": _over(seen["spread"], self.start["spread"])}
        remarks = self.alarms(seen)
        enough = self.section.enough is not None and seen["reward"] >= self.section.enough
        if enough:
            remarks.append(
                {"kind": "note", "name": "enough", "words": f"the reward has reached {self.section.enough:g}: stopped"}
            )
        alarmed = any(each["kind"] == "flag" for each in remarks)
        model = self._export(net)
        return Result(
            figures,
            {"before-after": self._picture(samples)},
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
            fall = begun[f"other_{name}"] - seen[f"other_{name}"]
            if risen and fall > section.drop * deviation:
                found.append(
                    _flag(
                        f"other-{name}",
                        f"the reward rises at the cost of `{name}`, which it does not know: that fell by {fall:.3g} "
                        f"({fall / deviation:.2g} of its standard deviations at the start).",
                    )
                )
        return found

    def _picture(self, samples: Tensor) -> Image:
        assert self.first is not None
        return picture({"before": self.first[:_SHOWN], "after": samples[:_SHOWN]})

    def _export(self, net: nn.Module) -> Any:
        assert isinstance(net, Denoiser)
        method = self.method
        made = export(net, method.model, method.sigma_init, method.reference.name)
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
        after = self._look(net)[0]
        figures = {"alpha_rew": method.alpha}
        if method.judge is not None:
            first = load(method.recipe.generator, kinds=("generator",), where=method.where).net
            for name, each in (("before", first), ("after", net)):
                measured = method.judge(self.sampler(each), method.recipe.seed)
                figures |= {f"{k}_{name}": v for k, v in measured.items() if k not in ("nfe", "nearest_test")}
        for name in after:
            if name != "fd":
                figures |= {f"{name}_before": self.start[name], f"{name}_after": after[name]}
        figures["spread_ratio"] = _over(after["spread"], self.start["spread"])
        return Result(
            figures, {"before-after": self._picture(self.draw(net, _SHOWN))}, {"generator": self._export(net)}
        )


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
