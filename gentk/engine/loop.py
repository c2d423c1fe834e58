"""The only training loop: keyed batches, one optimiser per network, gradient accumulation and clipping, EMA, the guard
against numbers that are not finite, checkpoints and exact resume."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gentk.engine import dist, ema, gradients, optim, pictures, rng, roles, walk
from gentk.engine.dist import Group
from gentk.engine.keeping import watch
from gentk.engine.method import Batch, Phase, Trainable
from gentk.engine.precision import autocast, compiled, saving
from gentk.engine.progress import Progress
from gentk.engine.run import Run
from gentk.engine.state import State as State
from gentk.engine.state import start as start
from gentk.engine.stop import StopRequest
from gentk.errors import GentkError, RunFailed
from gentk.recipe.schema import Ema, Train

_LARGEST_SKIP = 20  # updates in a row that `nan: skip` forgives: beyond that nothing is being learned
_MOST_ROWS = 1024  # logged values that wait on the device


class _Means:
    """Running means of what is logged; tensors stay on the device until a line is due, so that nothing waits for them.

    NaN means that there was nothing to average (no sample of a noise level in this batch) and does not count.
    """

    def __init__(self, where: torch.device) -> None:
        self.where = where
        self.rows: dict[tuple[str, ...], list[Tensor]] = {}  # by the names that are logged together
        self.sums: dict[str, list[float]] = {}  # and counts

    def add(self, values: Mapping[str, Tensor]) -> None:
        """One small copy: a step of a small network is mostly calls of torch."""
        if values:
            rows = self.rows.setdefault(tuple(values), [])
            rows.append(torch.stack([value.detach().to(self.where) for value in values.values()]))
            if len(rows) == _MOST_ROWS:
                self._count()

    def know(self, name: str, value: float, times: int = 1) -> None:
        """Counts a number that is here already, or the sum of so many."""
        total, count = self.sums.get(name, (0.0, 0))
        self.sums[name] = [total + value, count + times]

    def take(self, group: Group) -> dict[str, float]:
        """The means over all processes since the last call."""
        self._count()
        own, self.sums = self.sums, {}
        if group.size > 1:
            every = [json.loads(text) for text in group.texts(json.dumps(own))]
            own = {name: [sum(each[name][k] for each in every if name in each) for k in (0, 1)] for name in own}
        return {name: total / count for name, (total, count) in own.items() if count}

    def _count(self) -> None:
        for names, rows in self.rows.items():
            table = torch.stack(rows).double()
            seen = table.isfinite()
            sums, counts = torch.where(seen, table, 0.0).sum(0), seen.sum(0)
            for name, total, count in zip(names, sums.tolist(), counts.tolist(), strict=True):
                self.know(name, total, count)
        self.rows = {}


def _update(
    method: Trainable, state: State, phase: Phase, train: Train, seed: int, where: torch.device, means: _Means, at: _At
) -> None:
    """One optimiser update. Raises RunFailed when loss or gradient is not finite and the recipe says stop."""
    state.gather()
    for name, net in method.nets.items():  # frozen parameters, not no_grad: gradients still flow through the others
        roles.give(net, name in phase.nets)
    nets = [method.nets[name] for name in phase.nets]
    total, place = torch.zeros((), device=where), ""
    try:
        _backward(method, state, phase, train, seed, where, means, at.group, total)
    except GentkError as e:
        if at.group.size == 1 or state.parted:  # where the others are in exchanges of another kind
            raise
        at.fault = e  # the others learn of it by the exchange that they are in, and all end together
    if at.group.size > 1:
        state.part(nets, at.group)
        total, place = at.exchanged([] if state.parted else nets, total)
    weights = {name: walk.parameters(net) for name, net in zip(phase.nets, nets, strict=True)}
    norms: dict[str, Tensor] = {}
    for name, own in weights.items():
        clip = method.optim[name].clip
        if clip is None:  # by clipping at infinity all gradients would be multiplied by 1
            norm = nn.utils.get_total_norm([p.grad for p in own if p.grad is not None])
        else:
            norm = nn.utils.clip_grad_norm_(own, clip)
        norms[name] = norm.full_tensor() if state.parted and hasattr(norm, "full_tensor") else norm
    loss, *lengths = torch.stack([total, *norms.values()]).tolist()  # all that the device is waited for
    if not all(map(math.isfinite, (loss, *lengths))):
        bad = "gradient" if math.isfinite(loss) else "loss"
        state.skipped[phase.name] = state.skipped.get(phase.name, 0) + 1
        _clear(weights.values())
        if train.nan == "stop" or state.skipped[phase.name] > _LARGEST_SKIP:
            raise NotFinite(f"step {state.step}, phase `{phase.name}`: the {bad} is not finite{place}")
        means.know(f"{phase.name}/skipped", 1.0)
        return
    state.skipped[phase.name] = 0
    for name in phase.nets:
        for group in state.optimisers[name].param_groups:
            group["lr"] = optim.learning_rate(method.optim[name], state.step, train.steps)
        state.optimisers[name].step()
    _clear(weights.values())
    state.gather()  # for what the method does between updates
    means.know(f"{phase.name}/loss", loss)
    for name, length in zip(norms, lengths, strict=True):
        means.know(f"{phase.name}/grad_norm_{name}", length)


def _clear(weights: Iterable[Sequence[nn.Parameter]]) -> None:
    """Takes the gradients away: the next phase must find none of this one."""
    for each in weights:
        for p in each:
            p.grad = None


def _backward(
    method: Trainable,
    state: State,
    phase: Phase,
    train: Train,
    seed: int,
    where: torch.device,
    means: _Means,
    group: Group,
    total: Tensor,
) -> None:
    """Loss and gradients of this process's rows of each micro-batch; the loss is added to `total`."""
    micro = train.batch // train.accumulate
    rows = micro // group.size
    own = () if group.first else ("rank", group.rank)
    for i in range(train.accumulate):
        gen = rng.shared(group.rank, group.size, seed, state.step, phase.name, i, device=where)
        # dropout draws from the global generator
        rng.reseed(rng.key(seed, state.step, phase.name, i, "global", *own), where)
        batch = Batch(rows, group=group)
        if method.data is not None:
            position = state.step * train.batch + i * micro + group.rank * rows
            x, y = method.data.batch(rng.indices(seed, position, rows, len(method.data)))
            batch = Batch(rows, x.to(where), None if y is None else y.to(where), group)
        with autocast(where, train.precision):
            loss, values = phase.loss(batch, gen)
        share = loss / train.accumulate
        share.backward()  # type: ignore[no-untyped-call]
        total += share.detach()
        means.add({f"{phase.name}/{k}": v for k, v in values.items()})


@dataclass
class _At:
    """Where this process stands among the others: a fault of its own, and a stop signal that one of them has got."""

    group: Group
    stop: StopRequest
    fault: GentkError | None = None
    signal: str | None = None

    def exchanged(self, nets: list[nn.Module], loss: Tensor) -> tuple[Tensor, str]:
        """The mean loss over the processes, whose gradients are averaged, and words for where one is not finite.

        Raises the fault of the first process that has one.
        """
        if self.fault is not None:
            self.group.tell(self.fault)
        heard = gradients.share(self.group, nets, loss, fault=self.fault is not None, stop=self.stop.signal)
        self.signal = self.signal or heard.signal
        if heard.faults:
            fault = self.group.failure(heard.faults[0])
            kind = self.group.words(heard.faults[0])["kind"]
            raise NotFinite(str(fault)) if kind == NotFinite.__name__ else fault
        bad = tuple(int(r) for r in (~heard.losses.isfinite()).nonzero().flatten()) or heard.apart
        return heard.loss, f" on rank {', '.join(map(str, bad))}" if bad else ""

    def end(self) -> None:
        """Raises Stopped, in all processes at this step."""
        try:
            self.stop.stop()
        except GentkError as e:
            e.shared, e.told = self.group.size > 1, not self.group.first
            raise

    def stopped(self) -> bool:
        """Whether all stop after this step."""
        if self.group.size == 1:
            return self.stop.signal is not None
        self.stop.signal = self.stop.signal or self.signal
        return self.signal is not None


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
    at = _At(dist.current(), stop)
    state = start(method, train.parallel, where, at.group)
    state.load(folder, where, at.group, run.warn)
    run.log.truncate(state.step)
    if train.checkpointing:
        saving(method.nets)
    if train.compile:
        compiled(method.nets)
    means, mark = _Means(where), (time.monotonic(), state.step)
    with Progress(train.steps, train.batch, start=state.step, quiet=run.job.quiet) as progress:
        if state.step == 0 and train.sample_every:
            _preview(method, state, run, train)
        while state.step < _end(run, train):
            state.gather()
            try:
                for phase in method.phases(state.step):
                    _update(method, state, phase, train, seed, where, means, at)
            except NotFinite as e:
                raise _keep_failed(run, state, e, at.group) from None
            state.part()
            state.step += 1
            images = state.step * train.batch
            beta = ema.decay(average, train.batch, images)
            for name in method.ema:
                ema.update(state.averaged[name], method.nets[name], beta)
            last, stopped = state.step == train.steps, at.stopped()
            if state.step % train.log_every == 0 or last:
                seconds, steps = time.monotonic() - mark[0], state.step - mark[1]
                mark = (time.monotonic(), state.step)
                values = means.take(at.group) | {
                    "steps_per_s": steps / seconds,
                    "images_per_s": steps * train.batch / seconds,
                }
                values["memory_mb"] = _memory(where)
                run.log.metrics(state.step, images, values)
                progress.update(state.step, values)
            else:
                progress.update(state.step, {})
            if last or (train.sample_every and state.step % train.sample_every == 0):
                begun = time.monotonic()
                _preview(method, state, run, train)
                mark = (mark[0] + time.monotonic() - begun, mark[1])  # pictures do not count as training time
            last = last or state.step == _end(run, train)
            if state.step % train.checkpoint_every == 0 or last or stopped:
                state.save(folder, train.keep, at.group)
                run.update(step=state.step, steps=train.steps)
                if stopped and not last:
                    at.end()
    state.averaged = state.shown()
    state.gather()
    return state


def bare(method: Trainable, *, train: Train, seed: int, where: torch.device) -> Callable[[int], None]:
    """step -> that step's updates, in this process alone: nothing is averaged, shown or saved. For benchmarks."""
    state, means, at = start(method), _Means(where), _At(Group(), StopRequest())

    def step(k: int) -> None:
        state.step = k
        for phase in method.phases(k):
            _update(method, state, phase, train, seed, where, means, at)

    return step


def _end(run: Run, train: Train) -> int:
    """The last step: the recipe's, or the one at which a preview has ended the training."""
    return min(train.steps, int(run.info.get("halted", train.steps)))


def _preview(method: Trainable, state: State, run: Run, train: Train) -> None:
    averaged = state.shown()
    state.gather()
    shown = method.preview(averaged)
    state.part()
    for name, picture in shown.pictures.items() if dist.current().first else ():
        pictures.save(picture, run.folder / "samples" / f"{name}-{state.step:08d}.png")
    if shown.metrics:
        run.log.metrics(state.step, state.step * train.batch, {f"eval/{k}": v for k, v in shown.metrics.items()})
    watch(run, state.step, shown)


def _keep_failed(run: Run, state: State, error: NotFinite, group: Group) -> RunFailed:
    """Saves the state for inspection, apart from the checkpoints that a resume would take."""
    where = state.save(run.folder / "checkpoints" / "failed", 1, group)
    failed = RunFailed(
        f"{error}; the state is kept in {where}",
        hint="lower the learning rate, set optim...clip, or --set train.nan=skip; the data may hold extreme values",
    )
    failed.shared, failed.told = group.size > 1, not group.first
    return failed
