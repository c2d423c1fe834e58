"""A classifier behind a purifier, as attacks and evaluations see it (`gentk.attacks.victim.Victim`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Self

import torch
from torch import Tensor, nn

from gentk.attacks.victim import Grad, Tape, in_eval_mode, in_range
from gentk.defences import Purifier
from gentk.defences.noise import Noise
from gentk.defences.walk import State, walk, whole_graph
from gentk.errors import RecipeError

Clamp = Literal["hard", "straight-through"]


class PurifiedClassifier(nn.Module):
    """`classifier` (images in [0, 1], its normalisation inside, -> logits) behind `purifier`; frozen, eval-only.

    One answer is the mean of the logits of `votes` purifications. `chunk`: rows that go through the purifier at a time;
    with gradients, one chunk's step is all that is ever held as a graph, or one chunk's steps without `checkpoint`, a
    pass less. `clamp`: the last step to [0, 1]; straight-through lets the gradient pass where it clips. Raises
    RecipeError where the classifier is in train mode.
    """

    def __init__(
        self,
        classifier: nn.Module,
        classes: int,
        purifier: Purifier,
        *,
        votes: int = 1,
        chunk: int | None = None,
        clamp: Clamp = "hard",
        checkpoint: bool = True,
    ) -> None:
        super().__init__()
        in_eval_mode(classifier)
        self.classifier = classifier.requires_grad_(False)
        self.classes, self.purifier, self.votes, self.chunk, self.clamp = classes, purifier, votes, chunk, clamp
        self.checkpoint = checkpoint
        super().train(False)

    @property
    def random(self) -> bool:
        """Whether the defence draws noise."""
        return self.purifier.random

    @property
    def modes(self) -> tuple[Grad, ...]:
        """The gradients that tell different things of this defence."""
        return self.purifier.modes

    @property
    def nfe(self) -> int:
        """Evaluations of the denoiser per answer."""
        return self.votes * self.purifier.nfe

    def train(self, mode: bool = True) -> Self:
        """Nothing: attack libraries that put their victim back into train mode would make another network of it."""
        return self

    def tape(self, ids: Tensor, seed: int, draw: int = 0) -> Tape:
        """The noise of images `ids`: row i depends on (ids[i], seed, draw) only."""
        return Tape.of(ids, seed, draw)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a draw of its own, draw 0 of seed 0 of images 0 to B: for a look, not for a figure."""
        return self.logits(x, self.tape(torch.arange(len(x)), 0))

    def logits(self, x: Tensor, tape: Tape, grad: Grad = "full") -> Tensor:
        """x (B, C, H, W) float32 in [0, 1] -> logits (B, classes), differentiable in x by the gradient `grad` names.

        full: exact; bpda: the purifier's backward is the identity; surrogate: the surrogate's logits and gradient in
        the purifier's place; blind: the classifier's own. Raises RecipeError for values outside of [0, 1] and another
        dtype, RunFailed for logits that are not finite.
        """
        in_range(x)
        return torch.cat([self._part(x[rows], tape[rows], grad) for rows in self._chunks(len(x))])

    @torch.no_grad()
    def purify(self, x: Tensor, tape: Tape) -> Tensor:
        """What the classifier is shown in place of x (the first of its votes): (B, C, H, W) in [0, 1]."""
        in_range(x)
        parts = [self._through(self.purifier, x[rows], tape[rows], 0) for rows in self._chunks(len(x))]
        return torch.cat(parts)

    def _chunks(self, n: int) -> list[slice]:
        size = self.chunk or max(n, 1)
        return [slice(i, i + size) for i in range(0, max(n, 1), size)]

    def _part(self, x: Tensor, tape: Tape, grad: Grad) -> Tensor:
        if grad == "blind":
            return self._judged(x)
        total = torch.zeros(0)
        for vote in range(self.votes):
            shown = self._shown(x, tape, grad, vote)
            total = self._judged(shown) if vote == 0 else total + self._judged(shown)
        return total / self.votes

    def _shown(self, x: Tensor, tape: Tape, grad: Grad, vote: int) -> Tensor:
        if grad == "surrogate":
            return self._through(self.purifier.surrogate, x, tape, vote)
        if grad == "full":
            return self._through(self.purifier, x, tape, vote)
        with torch.no_grad():
            shown = self._through(self.purifier, x, tape, vote)
        return shown + (x - x.detach())  # its value exactly, the gradient of x

    def _through(self, purify: Callable[[Tensor, Noise], Tensor], x: Tensor, tape: Tape, vote: int) -> Tensor:
        if not self.purifier.nfe:
            return x  # not through z and back: nothing at all is to be done
        with whole_graph(not self.checkpoint):
            out = (purify(2 * x - 1, Noise(tape, f"{vote}/")) + 1) / 2
        kept = out.clamp(0, 1)
        return kept if self.clamp == "hard" else out + (kept - out).detach()

    def _judged(self, x: Tensor) -> Tensor:
        """The classifier's logits, its graph made again on the way back where there is more than one chunk."""
        if self.chunk is None:
            out: Tensor = self.classifier(x)
            return out

        def step(_: int, state: State) -> State:
            return (self.classifier(state[0]),)

        (out,) = walk(step, 1, (x,))
        return out


def fitting(classes: int, wanted: int, name: str, data: str) -> None:
    """Raises RecipeError where a classifier tells other classes apart than the data have."""
    if classes != wanted:
        raise RecipeError(
            f"classifier: `{name}` tells {classes} classes apart, `{data}` has {wanted}",
            hint="another --classifier, or another --data",
        )
