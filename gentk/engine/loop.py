"""The only training loop: keyed batches, one optimiser per network, gradient accumulation and clipping, EMA, the guard
against numbers that are not finite, checkpoints and exact resume."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gentk.engine import checkpoint, ema, optim, pictures, rng
from gentk.engine.keeping import watch
from gentk.engine.method import Batch, Phase, Trainable
from gentk.engine.precision import autocast, compiled, saving
from gentk.engine.progress import Progress
from gentk.engine.run import Run
from gentk.engine.stop import StopRequest
from gentk.errors import GentkError, RunFailed
from gentk.recipe.schema import Ema, Train

_LARGEST_SKIP = 20  # updates in a row that `nan: skip` forgives: beyond that nothing is being learned


@dataclass
class State:
    """Everything that a checkpoint holds: networks, averages, optimisers and the number of steps done."""

    nets: dict[str, nn.Module]
    averaged: dict[str, nn.Module]
    optimisers: dict[str, torch.optim.Optimizer]
    step: int = 0
    skipped: dict[str, int] = field(default_factory=dict)  # updates skipped in a row, by phase

    def pack(self) -> dict[str, Any]:
        """Plain containers of tensors, for torch.load(weights_only=True)."""
        return {
            "step": self.step,
            "skipped": dict(self.skipped),
            "nets": {k: v.state_dict() for k, v in self.nets.items()},
            "averaged": {k: v.state_dict() for k, v in self.averaged.items()},
            "optimisers": {k: v.state_dict() for k, v in self.optimisers.items()},
        }

    def unpack(self, packed: dict[str, Any]) -> None:
        """The inverse of `pack`, in place. Raises RunFailed when the checkpoint is of other networks."""
        try:
            for name, group in (("nets", self.nets), ("averaged", self.averaged), ("optimisers", self.optimisers)):
                for k, part in group.items():
                    part.load_state_dict(packed[name][k])
        except (KeyError, RuntimeError, ValueError) as e:
            raise RunFailed(
                f"the checkpoint does not fit the networks of the recipe: {e}", hint="--fresh starts again"
            ) from e
        self.step, self.skipped = packed["step"], dict(packed["skipped"])


def start(method: Trainable) -> State:
    """The state before the first step: the averages are exact copies of their networks."""
    averaged = {name: copy.deepcopy(method.nets[name]).eval().requires_grad_(False) for name in method.ema}
    optimisers = {name: optim.build(method.optim[name], net.parameters()) for name, net in method.nets.items()}
    return State(dict(method.nets), averaged, optimisers)


class _Means:
    """Running means of logged tensors; they stay on the device until a line is due, so that nothing waits for it.

    NaN means that there was nothing to average (no sample of a noise level in this batch) and does not count.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, Tensor] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            zero = torch.zeros((), device=value.device)
            seen = value.detach().isfinite()
            self.sums[name] = self.sums.get(name, zero) + torch.where(seen, value.detach(), zero)
            self.counts[name] = self.counts.get(name, zero) + seen

    def take(self) -> dict[str, float]:
        means = {
            name: float(total) / float(self.counts[name]) for name, total in self.sums.items() if self.counts[name]
        }
        self.sums, self.counts = {}, {}
        return means


def _update(
    method: Trainable, state: State, phase: Phase, train: Train, seed: int, where: torch.device, means: _Means
) -> None:
    """One optimiser update. Raises RunFailed when loss or gradient is not finite and the recipe says stop."""
    for name, net in method.nets.items():
        moves = name in phase.nets
        net.requires_grad_(moves).train(
            moves
        )  # frozen parameters, not no_grad: gradients still flow through the others
    nets = [method.nets[name] for name in phase.nets]
    for name in phase.nets:
        state.optimisers[name].zero_grad(set_to_none=True)
    micro = train.batch // train.accumulate
    total = torch.zeros((), device=where)
    for i in range(train.accumulate):
        gen = rng.generator(seed, state.step, phase.name, i, device=where)
        rng.reseed(rng.key(seed, state.step, phase.name, i, "global"), where)  # dropout draws from the global generator
        batch = Batch(micro)
        if method.data is not None:
            position = state.step * train.batch + i * micro
            x, y = method.data.batch(rng.indices(seed, position, micro, len(method.data)))
            batch = Batch(micro, x.to(where), None if y is None else y.to(where))
        with autocast(where, train.precision):
            loss, values = phase.loss(batch, gen)
        (loss / train.accumulate).backward()  # type: ignore[no-untyped-call]
        total += loss.detach() / train.accumulate
        means.add({f"{phase.name}/{k}": v for k, v in values.items()})
    norms = {}
    for name, net in zip(phase.nets, nets, strict=True):
        clip = method.optim[name].clip
        norms[name] = nn.utils.clip_grad_norm_(net.parameters(), math.inf if clip is None else clip)
    if not bool(torch.isfinite(total + sum(norms.values()))):
        bad = "loss" if not bool(torch.isfinite(total)) else "gradient"
        state.skipped[phase.name] = state.skipped.get(phase.name, 0) + 1
        for name in phase.nets:
            state.optimisers[name].zero_grad(set_to_none=True)  # the next phase must find no gradient of this one
        if train.nan == "stop" or state.skipped[phase.name] > _LARGEST_SKIP:
            raise NotFinite(f"step {state.step}, phase `{phase.name}`: the {bad} is not finite")
        means.add({f"{phase.name}/skipped": torch.ones(())})
        return
    state.skipped[phase.name] = 0
    for name in phase.nets:
        for group in state.optimisers[name].param_groups:
            group["lr"] = optim.learning_rate(method.optim[name], state.step, train.steps)
        state.optimisers[name].step()
        state.optimisers[name].zero_grad(set_to_none=True)  # the next phase must find no gradient of this one
    means.add({f"{phase.name}/loss": total, **{f"{phase.name}/grad_norm_{k}": v for k, v in norms.items()}})


class NotFinite(GentkError):
    """A loss or gradient that is not finite."""


def _memory(where: torch.device) -> float:
    """Peak memory in MiB: of the device, or the resident set of the process on the CPU."""
    if where.type == "cuda":
        return torch.cuda.max_memory_allocated(where) / 2**20
    import resource  # Unix only, like the run lock

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def fit(
    method: Trainable, *, train: Train, average: Ema, seed: int, where: torch.device, run: Run, stop: StopRequest
) -> State:
    """Trains `method` for `train.steps` steps in the folder of `run`, from its newest checkpoint if there is one.

    Returns the final state, saved. Raises Stopped after saving when a stop was requested, and RunFailed with the phase
    named when a number is not finite; the state before that update is then kept in `checkpoints/` under `failed-`.
    """
    folder = run.folder / "checkpoints"
    state = start(method)
    packed = checkpoint.latest(folder, where, run.warn)
    if packed is not None:
        state.unpack(packed)
    run.log.truncate(state.step)
    if train.checkpointing:
        saving(method.nets)
    if train.compile:
        compiled(method.nets)
    means, mark = _Means(), (time.monotonic(), state.step)
    with Progress(train.steps, train.batch, start=state.step, quiet=run.job.quiet) as progress:
        if state.step == 0 and train.sample_every:
            _preview(method, state, run, train)
        while state.step < train.steps:
            try:
                for phase in method.phases(state.step):
                    _update(method, state, phase, train, seed, where, means)
            except NotFinite as e:
                raise _keep_failed(run, state, e) from None
            state.step += 1
            images = state.step * train.batch
            beta = ema.decay(average, train.batch, images)
            for name in method.ema:
                ema.update(state.averaged[name], method.nets[name], beta)
            last = state.step == train.steps
            if state.step % train.log_every == 0 or last:
                seconds, steps = time.monotonic() - mark[0], state.step - mark[1]
                mark = (time.monotonic(), state.step)
                values = means.take() | {"steps_per_s": steps / seconds, "images_per_s": steps * train.batch / seconds}
                values["memory_mb"] = _memory(where)
                run.log.metrics(state.step, images, values)
                progress.update(state.step, values)
            else:
                progress.update(state.step, {})
            if last or (train.sample_every and state.step % train.sample_every == 0):
                begun = time.monotonic()
                _preview(method, state, run, train)
                mark = (mark[0] + time.monotonic() - begun, mark[1])  # pictures do not count as training time
            if state.step % train.checkpoint_every == 0 or last or stop.signal is not None:
                checkpoint.save(folder, state.step, state.pack(), keep=train.keep)
                run.update(step=state.step, steps=train.steps)
                if stop.signal is not None and not last:
                    stop.stop()
    return state


def _preview(method: Trainable, state: State, run: Run, train: Train) -> None:
    shown = method.preview(state.averaged)
    for name, picture in shown.pictures.items():
        pictures.save(picture, run.folder / "samples" / f"{name}-{state.step:08d}.png")
    if shown.metrics:
        run.log.metrics(state.step, state.step * train.batch, {f"eval/{k}": v for k, v in shown.metrics.items()})
    watch(run, state.step, shown)


def _keep_failed(run: Run, state: State, error: NotFinite) -> RunFailed:
    """Saves the state for inspection, apart from the checkpoints that a resume would take."""
    folder = run.folder / "checkpoints" / "failed"
    where = checkpoint.save(folder, state.step, state.pack(), keep=1)
    return RunFailed(
        f"{error}; the state is kept in {where}",
        hint="lower the learning rate, set optim...clip, or --set train.nan=skip; the data may hold extreme values",
    )
