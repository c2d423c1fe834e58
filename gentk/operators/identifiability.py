"""What measurements alone can say of the law of the images: what is never seen stays as the learner began.

Without clean images, a prior can be learned of what some measurement sees. Of a law's second moments, pixels i and j
need an image in which both are kept; of blurred images, a frequency needs a transfer that is not 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gentk.operators import Operator, matrix, project
from gentk.operators.blur import Convolved
from gentk.operators.composed import Composed
from gentk.operators.masks import Masked

_WEAK = 0.05
"""A transfer below it: the noise there is twenty times what the image shows."""
_LARGEST = 1024


@dataclass(frozen=True)
class Identifiability:
    """`never`: share of numbers no measurement sees; `pairs`: share of pairs never seen together (masks, else that of
    the unseen directions); `smallest`: the least singular value above none, `zero`: share of directions with none.
    """

    never: float
    pairs: float
    smallest: float
    zero: float

    def warnings(self) -> list[str]:
        """What a prior learned from such measurements alone cannot know, in words; empty where there is nothing."""
        said = []
        if self.never > 0:
            said.append(f"{100 * self.never:.3g} % of the pixels are never seen: there the prior stays as it began")
        if self.pairs > self.never * (2 - self.never) + 1e-12:
            said.append(
                f"{100 * self.pairs:.3g} % of the pairs of pixels are never seen together: their correlation stays as "
                "it began"
            )
        if self.zero > 0:
            said.append(f"{100 * self.zero:.3g} % of the directions are not measured at all")
        if 0 < self.smallest < _WEAK:
            said.append(
                f"the smallest singular value is {self.smallest:.2g}: along it the noise is {1 / self.smallest:.3g} "
                "times as large as it looks, and learning slow"
            )
        return said


def report(draw: Callable[[int], Operator], n: int = 1024) -> Identifiability:
    """Of an operator; `draw(n)` makes it for n images, each with its own mask where masks are drawn."""
    op = draw(n)
    mask = _mask(op)
    if mask is not None:
        kept = mask.flatten(1).double()
        together = kept.T @ kept
        never = float((together.diagonal() == 0).double().mean())
        pairs = float((together == 0).double().mean())
        if not isinstance(op, Composed):
            return Identifiability(never, pairs, 1.0, 0.0)
        return Identifiability(never, pairs, float("nan"), 0.0)
    s = singular_values(op)
    zero = float((s < 1e-6).double().mean())
    above = s[s >= 1e-6]
    return Identifiability(0.0, 0.0, float(above.min()) if len(above) else 0.0, zero)


def singular_values(op: Operator) -> Tensor:
    """All of them, float64, as many as x has numbers; of large images those of one channel, or a few random ones."""
    if isinstance(op, Convolved):
        moduli: Tensor = torch.fft.fft2(op.kernel).abs().flatten()
        return moduli
    total = int(torch.tensor(op.shape).prod())
    if total <= _LARGEST:
        s = torch.linalg.svdvals(matrix(op))
        return torch.cat([s, s.new_zeros(total - len(s))])
    x = torch.randn(1, *op.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    share = float(project(op, x).square().sum() / x.square().sum())
    zeros = round((1 - share) * total)
    return torch.cat([torch.ones(total - zeros, dtype=torch.float64), torch.zeros(zeros, dtype=torch.float64)])


def least_eigenvalue(y: Tensor, seen: Tensor | None = None) -> float:
    """The least eigenvalue of the covariance of measurements (N, ...): below sigma^2 the sigma is too large.

    With masks `seen` (N, ...) of 0 and 1 it is the least variance of a measured number. Both scatter by about
    sqrt(D / N) of themselves.
    """
    y = y.flatten(1).double()
    if seen is not None:
        kept = seen.flatten(1).double()
        n = kept.sum(0).clamp_min(1)
        mean = (y * kept).sum(0) / n
        variance = ((y - mean).square() * kept).sum(0) / n
        return float(variance[kept.sum(0) > 1].min())
    centred = y - y.mean(0)
    return float(torch.linalg.eigvalsh(centred.T @ centred / len(y))[0])


def _mask(op: Operator) -> Tensor | None:
    """The mask of a mask operator, or of the last mask among composed ones."""
    if isinstance(op, Masked):
        return op.mask
    if isinstance(op, Composed):
        return next((part.mask for part in reversed(op.parts) if isinstance(part, Masked)), None)
    return None
