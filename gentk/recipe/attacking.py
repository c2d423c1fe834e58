"""The sections of a robustness evaluation: the threat, the attack, and how success is counted. No torch here."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator

from gentk.errors import RecipeError
from gentk.recipe.section import Section

NAMES = ("none", "blind", "bpda", "pgd", "pgd-eot", "surrogate", "frozen", "square", "autoattack", "suite")


def distance(value: Any) -> Any:
    """A number from `8/255`, `0.03` or a number; what is neither is left for the schema to refuse."""
    if isinstance(value, str):
        above, slash, below = value.partition("/")
        try:
            value = float(above) / (float(below) if slash else 1.0)
        except (ValueError, ZeroDivisionError):
            raise ValueError(f"`{value}` is no number and no fraction such as 8/255") from None
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _most_one(value: float) -> float:
    if value > 1:
        raise ValueError(
            f"{value:g} is above 1: distances are in units of [0, 1], write {value:g}/255 for {value:g} bytes"
        )
    return value


Distance = Annotated[float, BeforeValidator(distance), Field(ge=0)]


class Threat(Section):
    """What the attacker may do to an image in [0, 1]: every budget is in these units."""

    norm: Literal["linf", "l2"] = Field(
        "linf", description="how a change is measured: largest pixel, or root of squares"
    )
    eps: Distance = Field(description="largest change, as 8/255 or a number; linf: at most 1")

    @field_validator("eps", mode="after")
    @classmethod
    def _in_units(cls, value: float, info: Any) -> float:
        return _most_one(value) if info.data.get("norm") == "linf" else value


class Attack(Section):
    """One attack, or the suite of them; each is only as strong as what it knows."""

    name: str = Field("suite", description=f"{' | '.join(NAMES)} | torchattacks:NAME")
    grad: Literal["full", "bpda", "surrogate", "blind"] = Field(
        "full",
        description="gradient that pgd, autoattack and torchattacks follow; the other names say theirs themselves",
    )
    steps: PositiveInt = Field(100, description="gradient steps")
    step: Distance | None = Field(None, description="size of a step in units of [0, 1]; null: eps / 4")
    eot: PositiveInt = Field(20, description="draws of the defence that a gradient is averaged over")
    restarts: PositiveInt = Field(1, description="starts, the best of which counts")
    random_start: bool = Field(True, description="start anywhere in the ball, not at the image")
    queries: PositiveInt = Field(1000, description="candidates of the square attack")
    autoattack: Literal["full", "surrogate"] | None = Field(
        None,
        description="gradient that autoattack follows within the suite, 2,000 and more of them per image; null: the "
        "surrogate's where the defence has one, else full",
    )
    version: Literal["standard", "rand"] | None = Field(
        None, description="of AutoAttack; null: rand where the defence draws noise, else standard"
    )
    seed: NonNegativeInt = Field(0, description="of all that the attack draws, the defence's noise in it included")
    chunk: PositiveInt = Field(1024, description="rows (images times draws) per pass: less needs less memory")

    @field_validator("name", mode="after")
    @classmethod
    def _known(cls, value: str) -> str:
        kind, colon, rest = value.partition(":")
        if value not in NAMES and not (kind == "torchattacks" and colon and rest):
            raise ValueError(f"`{value}` is none of {', '.join(NAMES)}, torchattacks:NAME")
        return value

    def size(self, eps: float) -> float:
        """The size of a step, for a ball of radius `eps`."""
        return self.step if self.step is not None else eps * max(0.25, 1 / self.steps)


class Scoring(Section):
    """Which images are attacked, and when one counts as right."""

    images: PositiveInt | None = Field(None, description="test images used, drawn at random; null: all")
    subset_seed: NonNegativeInt = Field(0, description="which ones")
    draws: PositiveInt = Field(20, description="fresh draws of the defence that every image is answered on")
    worst_of: PositiveInt = Field(
        10, description="draws that must all be right under `worst-of`: an attacker who retries"
    )
    seed: NonNegativeInt = Field(10_000, description="of these draws: never an attack's")
    level: Annotated[float, Field(gt=0, lt=1)] = Field(0.95, description="of the intervals")


class AdversarialTraining(Section):
    """Training on images of an attack that runs inside of the loop (Madry et al. 2018; TRADES: Zhang et al. 2019)."""

    norm: Literal["linf", "l2"] = Field("linf", description="how a change is measured")
    eps: Distance = Field(description="largest change in units of [0, 1], as 8/255 or a number")
    steps: PositiveInt = Field(10, description="gradient steps of the inner attack")
    step: Distance | None = Field(None, description="size of a step; null: eps / 4")
    random_start: bool = Field(True, description="start anywhere in the ball (madry; trades always starts 0.001 away)")
    loss: Literal["madry", "trades"] = Field(
        "madry",
        description="cross-entropy of the attacked image, or clean cross-entropy plus beta times the divergence",
    )
    beta: PositiveFloat = Field(6.0, description="weight of the divergence (trades)")

    @field_validator("eps", mode="after")
    @classmethod
    def _in_units(cls, value: float, info: Any) -> float:
        return _most_one(value) if info.data.get("norm") == "linf" else value

    def size(self) -> float:
        """The size of a step."""
        return self.step if self.step is not None else self.eps * max(0.25, 1 / self.steps)


def disjoint_seeds(attack: int, scoring: int) -> None:
    """Raises RecipeError where attack and evaluation would draw the same noise: the attacker would know it."""
    if attack == scoring:
        raise RecipeError(
            f"attack.seed and scoring.seed are both {attack}: images fitted to the noise that they are judged by look"
            " more harmful than they are",
            hint="choose two seeds; the attack that does know the noise is --attack frozen",
        )
