"""Defend a classifier by a generative model, attack it, and say what is left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, Literal, TypeVar

from pydantic import Field, PositiveFloat, PositiveInt

from gentk.recipe.attacking import Attack, Distance, Scoring, Threat
from gentk.recipe.classifiers import Classifier
from gentk.recipe.schema import Data, Head, Section

if TYPE_CHECKING:
    from gentk.engine.run import Job, Outcome

M = TypeVar("M", bound=Section)
SUBJECT = "data"


class Sweep(Section):
    """Curves of accuracy under one attack, each over one key, the others as the recipe says; empty: not drawn."""

    attack: Literal["blind", "bpda", "surrogate", "pgd", "pgd-eot"] | None = Field(
        None, description="the attack; null: surrogate where the defence has one and masks gradients, else pgd-eot"
    )
    eps: tuple[Distance, ...] = Field((), description="budgets: the accuracy must fall with them, and end near 0")
    eot: tuple[PositiveInt, ...] = Field((), description="draws that a gradient is averaged over")
    steps: tuple[PositiveInt, ...] = Field((), description="gradient steps")
    t_star: tuple[PositiveFloat, ...] = Field((), description="noise levels (times for diffpure) of the defence")
    images: PositiveInt = Field(64, description="of the subset, the first ones")


class Recipe(Head, Generic[M]):
    """A `purify` recipe."""

    task: Literal["purify"]
    data: Data = Field(description="the images that are attacked, of the test split")
    split: Literal["test", "train"] = Field("test", description="the split")
    model: str | None = Field(None, description="the denoiser (or generator) that purifies; null where none is needed")
    classifier: Classifier = Field(description="the classifier that is defended")
    method: M = Field(description="the defence and its settings")
    votes: PositiveInt = Field(
        1, description="purifications whose logits one answer averages, for clean and attacked images alike"
    )
    clamp: Literal["hard", "straight-through"] = Field(
        "hard",
        description="the purifier's last step into [0, 1]; straight-through lets the gradient pass where it cuts",
    )
    checkpoint: bool = Field(
        True,
        description="gradients hold one step of the purifier and do each step again (memory of one step); false: they "
        "hold all steps, a quarter faster where attack.chunk rows of them fit into memory",
    )
    threat: Threat = Field(description="what the attacker may do")
    attack: Attack = Field(Attack(), description="what the attacker does")
    scoring: Scoring = Field(Scoring(), description="which images, and when one counts as right")
    stored: str | None = Field(
        None, description="run (or file) whose adversarial images are answered again; no attack is made"
    )
    sweep: Sweep = Field(Sweep(), description="curves over eps, EOT draws, steps and t*")
    batch: PositiveInt = Field(256, description="images attacked at a time: what a stopped run keeps")


def run(job: Job) -> Outcome:
    """Attacks and answers as the job's recipe says."""
    from gentk.tasks.purify._measuring import execute

    return execute(job)
