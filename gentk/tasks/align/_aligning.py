"""Alignment in the training loop: one-step generator, teaching assistant and reference of `engine.one_step`, a reward.

    L(theta) = mean over the batch of  -alpha_rew r(x0, c) + w D(x0; D_ref~, D_psi)

    D        `objective`: the divergence's loss, summed over the dimensions of a sample
    D_ref~   the reference's denoiser, guided: D_ref(c) + alpha_cfg (D_ref(c) - D_ref(null))
    D_psi    the teaching assistant, a denoiser of the generator's own samples; it is never guided

theta acts through x0 alone, so both parts are differentiated down to x0 first and sum(x0 . (their sum)) carries them
through the generator: the two gradients can be told apart and weighed against each other (`ratio`), and the graphs of
reward and denoisers are gone before the generator's is needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gentk import data
from gentk.engine import rng
from gentk.engine.generative import Judge
from gentk.engine.method import Batch, Metrics, Phase, Result
from gentk.engine.one_step import Core, Objective, gaps, learner, start
from gentk.engine.precision import exact, saving
from gentk.errors import RecipeError
from gentk.losses.divergence import diff_instruct
from gentk.processes.models import Model
from gentk.tasks.align import AlignSettings
from gentk.tasks.align._rewards import Rewards, inside
from gentk.tasks.align._subjects import given
from gentk.tasks.align._watching import Watcher

_PROBES = 8  # batches that the automatic alpha_rew is measured on
_PROBED = 64  # samples in each, and those that rewards are checked on


class Number(nn.Module):
    """A number found out along the way, in a form that checkpoints hold; nothing ever moves it."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.full((1,), math.nan, dtype=torch.float64))


class Aligning:
    """A `Trainable` for both divergences."""

    def __init__(self, recipe: Any, where: torch.device, objective: Objective, *, through: bool) -> None:
        self.recipe, self.where = recipe, where
        self.config: AlignSettings = recipe.method
        self.objective, self.through = objective, through
        self.given = given(recipe, where)
        self.model, self.reference = self.given.of, self.given.reference
        teacher = self.given.teacher
        if recipe.train.checkpointing:  # before the copies: gradients pass through the reference too
            saving({"teacher": teacher})
        self.nets: dict[str, nn.Module] = {
            name: learner(net, recipe.lora, rng.generator(recipe.seed, "lora", name))
            for name, net in (("fake", teacher), ("generator", self.given.generator))
        }
        self.ema = ("generator",)
        self.optim = {"generator": recipe.optim.generator, "fake": recipe.optim.fake}
        self.data = None
        if self.config.alpha_rew == "auto":
            self.nets["alpha_rew"] = Number().to(where)
            self.optim["alpha_rew"] = recipe.optim.generator
        t_init = start(self.given.sigma_init, teacher.process)
        self.core = Core(teacher, self.nets, self.model.shape, self.given.learned, t_init, where)
        self.rewards = Rewards(self.config.rewards, self.given.about, where)
        self.others = Rewards(self.config.watch.others, self.given.about, where)
        self.judge = _judge(recipe, self.model, self.reference, where)
        self.watcher = Watcher(self)
        if where.type != "meta":
            self._check_rewards()
            self.watcher.begin()

    def images(self, x0: Tensor) -> Tensor:
        """What rewards see of the generator's samples: decoded, where they are latents, and in [-1, 1]."""
        if self.given.decode is not None:
            x0 = self.given.decode(x0)
        return inside(x0) if len(self.model.shape) == 3 else x0

    def _check_rewards(self) -> None:
        with torch.no_grad():
            n = min(_PROBED, self.given.batch)
            x0, cond = self.core.generate(n, rng.generator(self.recipe.seed, "probe", device=self.where))
        self.rewards.check(self.images(x0), cond)

    # --- the updates --------------------------------------------------------------------------------------------------

    def phases(self, step: int) -> Iterator[Phase]:
        """`fake_steps` updates of the teaching assistant, then one of the generator, once the warm-up is over."""
        for k in range(self.config.fake_steps if self.config.leash else 0):
            yield Phase("fake" if k == 0 else f"fake-{k + 1}", ("fake",), self._fake_loss)
        if self.config.leash and step < self.config.warmup:
            return
        if self.config.alpha_rew == "auto":
            self._weigh(step)
        yield Phase("generator", ("generator",), self._generator_loss)

    @property
    def alpha(self) -> float:
        """The reward's factor."""
        if self.config.alpha_rew != "auto":
            return float(self.config.alpha_rew)
        number = self.nets["alpha_rew"]
        assert isinstance(number, Number)
        return 1.0 if self.where.type == "meta" else float(number.value.detach())  # meta: only sizes are looked at

    @torch.no_grad()
    def _weigh(self, step: int) -> None:
        """Chooses alpha_rew, once: the two gradients' norms over some batches, in the state that a checkpoint holds."""
        number = self.nets["alpha_rew"]
        assert isinstance(number, Number)
        if self.where.type == "meta" or not bool(torch.isnan(number.value)):
            return
        for net in self.nets.values():
            net.eval()
        pull, leash = torch.zeros(2, dtype=torch.float64).unbind()
        for k in range(_PROBES):
            gen = rng.generator(self.recipe.seed, step, "alpha_rew", k, device=self.where)
            x0, cond = self.core.generate(min(_PROBED, self.given.batch), gen)
            rewarded, held, _ = self.pulls(x0, cond, gen)
            pull, leash = pull + rewarded.double().norm().cpu(), leash + held.double().norm().cpu()
        if not float(pull) > 0:
            raise RecipeError(
                "method.alpha_rew: the reward's gradient is zero, or not finite, where the generator begins to move",
                hint="set a number, or another reward: this one has nothing left to gain",
            )
        number.value.fill_(self.config.ratio * float(leash / pull))

    def _fake_loss(self, batch: Batch, gen: torch.Generator) -> tuple[Tensor, Metrics]:
        return self.core.fit_fake(batch.n, gen, law=self.config.noise_fake, loss=self.config.fake_loss), {}

    def _generator_loss(self, batch: Batch, gen: torch.Generator) -> tuple[Tensor, Metrics]:
        x0, cond = self.core.generate(batch.n, gen)
        rewarded, held, figures = self.pulls(x0, cond, gen)
        alpha = self.alpha
        pull, leash = alpha * rewarded, self.config.leash * held
        carried = (x0 * (leash - pull)).sum()
        value = self.config.leash * figures.pop("divergence") - alpha * figures["reward"]
        norms = {"grad_reward": pull.norm(), "grad_divergence": held.norm()}
        figures |= norms | {"ratio": norms["grad_reward"] / norms["grad_divergence"]}
        return carried - carried.detach() + value, figures

    def pulls(self, x0: Tensor, cond: Any, gen: torch.Generator) -> tuple[Tensor, Tensor, Metrics]:
        """(d mean r / dx0, d mean w D / dx0, figures) at x0, whose own graph is not looked at."""
        with torch.enable_grad():
            leaf = x0.detach().requires_grad_()
            with exact(self.where):  # bf16 would round rewards, and the decoder's own precision
                total, parts = self.rewards(self.images(leaf), cond)
                (rewarded,) = torch.autograd.grad(total.mean(), leaf)
            figures: Metrics = {"reward": total.detach().mean()}
            if len(parts) > 1:
                figures |= {f"reward_{name}": part.mean() for name, part in parts.items()}
            if not self.config.leash:
                nothing = torch.zeros_like(rewarded)
                return rewarded, nothing, figures | {"divergence": nothing.sum()}
            loss, gap = self._divergence(leaf, cond, gen)
            with exact(self.where):  # backward is not for autocast: it takes the precision that forward had
                (held,) = torch.autograd.grad(loss, leaf)
        return rewarded, held, figures | {"divergence": loss.detach()} | gap

    def _divergence(self, x0: Tensor, cond: Any, gen: torch.Generator) -> tuple[Tensor, Metrics]:
        omega, outside = self.config.alpha_cfg, self.config.cfg_placement == "out"
        seen = self.core.compare(
            x0,
            cond,
            gen,
            law=self.config.noise_generator,
            teacher=1.0 if outside else 1.0 + omega,
            through=self.through,
        )
        w = self.core.weigh(self.config.weight, x0, seen)
        loss = self.objective(x0, seen.d_teacher, seen.d_fake)
        if outside and omega:
            with torch.no_grad():
                plain = self.core.teacher(seen.x_t, seen.t, None)
            # -omega sg[D_ref(c) - D_ref(null)] . x0: the implicit reward of guidance, by the IKL's own formula
            loss = loss + omega * diff_instruct(x0, seen.d_teacher, plain)
        return (w * loss).mean(), gaps(seen.s, (seen.d_teacher - seen.d_fake).detach())

    # --- what is shown ------------------------------------------------------------------------------------------------

    def preview(self, averaged: Mapping[str, nn.Module]) -> Result:
        """Samples of the same noises before and now, and the figures on noise and classes that training never sees."""
        return self.watcher.preview(averaged["generator"])

    def finish(self, averaged: Mapping[str, nn.Module]) -> Result:
        """The figures before and after, and the generator."""
        return self.watcher.finish(averaged["generator"])


def _judge(recipe: Any, model: Model, reference: Model, where: torch.device) -> Judge | None:
    if recipe.measure is None:
        return None
    section = recipe.reference or reference.data
    train, test = data.load(section, "train"), data.load(section, "test")
    if train.shape != model.shape:
        raise RecipeError(
            f"reference: `{section.name}` has samples of shape {train.shape}, the generator makes {model.shape}"
        )
    return Judge(recipe.measure, train, test, where)
