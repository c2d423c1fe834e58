"""Models as `torch.export` programs: one file that torch loads and runs without gentk.

    kind        call                           result
    generator   forward(z, labels)             samples: D(s z, s, labels), s = sigma_init; images clamped to [-1, 1]
    denoiser    forward(x, sigma, labels)      x0 of x = x0 + sigma eps, whatever the process of the model

z, x (B, *shape) float32 with any B, sigma (B,) float32, labels (B,) int64, or no such input for a model without
classes. A denoiser's label `classes` means "no label".
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from gentk.engine.draw import labels as cycled
from gentk.engine.draw import starts
from gentk.engine.exporting import Source, Written
from gentk.processes.denoiser import Denoiser, at_sigma
from gentk.processes.grids import CAPS, to_times
from gentk.processes.models import Model, load
from gentk.processes.process import ratio
from gentk.solvers import one_step

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TOLERANCE = 1e-6  # the same kernels; what the two sides round differently is a coefficient
FACTS = "gentk.json"  # the program's extra file: the model's header

Call = Callable[..., Tensor]


class Generate(nn.Module):
    """A one-step generator as a function of unit noise: z (B, *shape), labels (B,) or None -> samples (B, *shape)."""

    def __init__(self, denoiser: Denoiser, sigma_init: float, *, images: bool) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.images = images
        (t, _) = to_times(denoiser.process, torch.tensor([sigma_init, 0.0], dtype=torch.float64))
        self.t: Tensor
        self.register_buffer("t", t.clone(), persistent=False)  # of its own: archives warn of a part of a storage
        self.scale = float(denoiser.process.sigma(t))

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """The samples; images are clamped to [-1, 1], as writing them to a file would."""
        x: Tensor = self.denoiser(self.scale * z, self.t, labels)
        return x.clamp(-1, 1) if self.images else x


class Denoise(nn.Module):
    """A denoiser in variance-exploding coordinates: x (B, *shape), sigma (B,), labels (B,) or None -> x0."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """The expected clean sample, not clamped: solvers need it as it is."""
        return at_sigma(self.denoiser, x, sigma, labels)


def write(source: Source, place: Path) -> Written:
    """Writes the program to the file `place`, loads it and compares."""
    model = load(str(source.path), kinds=("denoiser", "generator"), where=torch.device("cpu"))
    buffer = io.BytesIO()
    with quiet():
        torch.export.save(program(model), buffer, extra_files={FACTS: json.dumps(source.own_header, sort_keys=True)})
    place.write_bytes(buffer.getvalue())
    with quiet():
        loaded = torch.export.load(place).module()
    return Written(difference(model, loaded), TOLERANCE)


def program(model: Model) -> ExportedProgram:
    """The exported program of a model, its first dimension dynamic."""
    inputs, called, batch = examples(model, 2), module(model), Dim("batch")
    with torch.no_grad(), quiet():
        called(*inputs)  # what a process tabulates on its first call must not be tabulated while tracing
        made = torch.export.export(called, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs))
    for node in made.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    return made


def module(model: Model) -> nn.Module:
    """`Generate` or `Denoise`, after the model's kind."""
    assert isinstance(model.net, Denoiser)
    if model.header["kind"] == "generator":
        return Generate(model.net, model.header["sigma_init"], images=len(model.shape) == 3).eval()
    return Denoise(model.net).eval()


def names(model: Model) -> tuple[list[str], str]:
    """Names of the inputs in order, and of the output."""
    generator = model.header["kind"] == "generator"
    given = ["z"] if generator else ["x", "sigma"]
    made = ("images" if len(model.shape) == 3 else "points") if generator else "x0"
    return given + (["labels"] if model.classes else []), made


def examples(model: Model, n: int) -> tuple[Tensor, ...]:
    """Inputs of n samples, in the order of `names`: noise 0 to n of seed 0, levels from the largest to the smallest."""
    z, cond = starts(0, 0, n, model.shape), cycled(0, n, tuple(range(model.classes)))
    given: tuple[Tensor, ...] = (z,)
    if model.header["kind"] != "generator":
        sigma = torch.logspace(*_levels(model), n)
        given = (z * sigma.reshape(-1, *(1 for _ in model.shape)), sigma)
    return given if cond is None else (*given, cond)


def _levels(model: Model) -> tuple[float, float]:
    """log10 of the largest and smallest noise level in use."""
    assert isinstance(model.net, Denoiser)
    process = model.net.process
    low, high = ratio(process, torch.tensor([process.t_min, process.t_max], dtype=torch.float64)).tolist()
    ends = torch.tensor([min(high, CAPS[1]), max(low, CAPS[0])], dtype=torch.float64).log10()
    first, last = ends.tolist()
    return first, last


def expected(model: Model, *inputs: Tensor) -> Tensor:
    """What the model itself makes of the inputs; a generator by the path that `gentk sample one-step` takes."""
    denoiser = model.net
    assert isinstance(denoiser, Denoiser)
    if model.header["kind"] != "generator":
        return at_sigma(denoiser, *inputs)
    z, cond = inputs[0], inputs[1] if model.classes else None
    process = denoiser.process
    grid = to_times(process, torch.tensor([model.header["sigma_init"], 0.0], dtype=torch.float64))
    x = one_step.solve(denoiser, process, z * process.sigma(grid[0]).float(), grid, _no_noise, cond=cond)
    return x.clamp(-1, 1) if len(model.shape) == 3 else x


def _no_noise(*_: Any) -> Tensor:
    raise AssertionError("one step draws no noise")


def trials(model: Model) -> list[tuple[Tensor, ...]]:
    """The inputs that exports are compared on: four samples together, and the first of them alone."""
    inputs = examples(model, 4)
    return [tuple(each[:n] for each in inputs) for n in (4, 1)]


@torch.no_grad()
def difference(model: Model, call: Call, wanted: Call | None = None) -> float:
    """The largest difference of `call` from `wanted` (None: `expected`) on the `trials`; NaN if any is.

    That of a denoiser is over max(1, sigma).
    """
    worst = []
    for given in trials(model):
        target = wanted(*given) if wanted else expected(model, *given)
        gap = (call(*given) - target).abs().flatten(1).amax(1)
        worst.append((gap if model.header["kind"] == "generator" else gap / given[1].clamp_min(1)).max())
    return float(torch.stack(worst).max())


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warning that torch's own serialiser of programs sets off in torch's own tree library."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*LeafSpec.* is deprecated", category=FutureWarning)
        yield
