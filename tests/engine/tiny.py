"""A small, honest method for tests of the engine: two networks that take turns, data, dropout and generator noise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from gentk.engine.log import Log
from gentk.engine.method import Batch, Metrics, Phase, Result
from gentk.recipe.schema import Optimiser


class Points:
    """100 fixed points; `broken` puts a NaN at index 7."""

    def __init__(self, broken: bool = False) -> None:
        self.x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
        if broken:
            self.x[7] = torch.nan

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, index: Tensor) -> tuple[Tensor, None]:
        return self.x[index], None


class Tiny:
    """`a` maps data to a noisy shift of itself, then `b` chases `a`."""

    def __init__(self, *, broken: bool = False, seed: int = 0, **optim: object) -> None:
        torch.manual_seed(seed)
        body = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Linear(8, 2))
        self.nets: dict[str, nn.Module] = {"a": body, "b": nn.Linear(2, 2)}
        self.ema = ("a",)
        section = Optimiser(**({"lr": 1e-2} | optim))  # type: ignore[arg-type]
        self.optim = {"a": section, "b": section}
        self.data = Points(broken)
        self.order: list[str] = []

    def phases(self, step: int) -> Iterator[Phase]:
        self.order.append(f"{step}:a")
        yield Phase("a", ("a",), self._a)
        self.order.append(f"{step}:b")
        yield Phase("b", ("b",), self._b)

    def _a(self, batch: Batch, gen: torch.Generator) -> tuple[Tensor, Metrics]:
        assert batch.x is not None
        noise = torch.randn(batch.x.shape, generator=gen)
        return (self.nets["a"](batch.x + 0.1 * noise) - batch.x - 1).square().mean(), {"seen": batch.x.mean()}

    def _b(self, batch: Batch, gen: torch.Generator) -> tuple[Tensor, Metrics]:
        assert batch.x is not None
        return (self.nets["b"](batch.x) - self.nets["a"](batch.x)).square().mean(), {}

    def preview(self, averaged: Mapping[str, nn.Module]) -> Result:
        return Result({"weight": float(averaged["a"][0].weight.mean())})  # type: ignore[index]

    def finish(self, averaged: Mapping[str, nn.Module]) -> Result:
        return Result()


class _Job:
    quiet = True


class Folder:
    """The parts of a `Run` that the loop uses."""

    job = _Job()

    def __init__(self, folder: Path) -> None:
        self.folder, self.warnings, self.info = folder, [], {}  # type: ignore[var-annotated]
        folder.mkdir(parents=True, exist_ok=True)
        self.log = Log(folder)

    def warn(self, line: str) -> None:
        self.warnings.append(line)

    def update(self, **facts: object) -> None:
        self.info |= facts
