"""Methods that learn from measurements: checked, warned of what cannot be learned, and run through the one loop."""

from __future__ import annotations

import sys

import torch

from gentk.engine import session
from gentk.engine.run import Job, Outcome
from gentk.errors import RecipeError
from gentk.operators.identifiability import Identifiability, least_eigenvalue, report
from gentk.recipe.registry import method_module
from gentk.tasks.restore._corrupted import Corrupted

_MOST = 4096  # measurements that sigma is checked on


def execute(job: Job) -> Outcome:
    """Learns the method of the job's recipe. RecipeError for a sigma of 0; warnings on stderr."""
    recipe = job.recipe
    if recipe.sigma == 0:
        raise RecipeError(
            "sigma: 0: the likelihood divides by it", hint="--sigma 0.01 is 1.3 bytes of 255: nothing for the eye"
        )
    if not job.quiet:
        for line in warnings(recipe):
            print(f"warning: {line}", file=sys.stderr)
    return session.execute(job, method_module("restore", recipe.method.name).build)


def warnings(recipe: object) -> list[str]:
    """What such measurements cannot teach, and a sigma that they contradict, in words."""
    held = Corrupted(recipe, "train", torch.device("cpu"))
    return [*identifiable(held).warnings(), *_sigma(held)]


def identifiable(held: Corrupted) -> Identifiability:
    """What the operator of these measurements shows of a law."""
    return report(lambda n: held.operator(torch.arange(min(n, len(held)))))


def _sigma(held: Corrupted) -> list[str]:
    """A warning where the measurements vary less than their noise alone would."""
    sigma = held.recipe.sigma
    y, op, _ = held.first(_MOST)
    seen = op.seen(torch.ones_like(y))
    numbers = y[0].numel()
    hidden = bool((seen == 0).any())
    least = least_eigenvalue(y, seen) if hidden else least_eigenvalue(y)
    # the least of D sample eigenvalues of pure noise lies at sigma^2 (1 - sqrt(D / N))^2 (Marchenko and Pastur)
    edge = 1 - 5 * (2 / len(y)) ** 0.5 if hidden else (1 - (numbers / len(y)) ** 0.5) ** 2 * 0.9
    if numbers >= len(y) or least >= sigma**2 * max(edge, 0):
        return []
    return [
        f"sigma: {sigma:g} is too large: in some direction the measurements vary by {max(least, 0) ** 0.5:.3g} only, "
        "noise and all; the learned prior has nothing there"
    ]
