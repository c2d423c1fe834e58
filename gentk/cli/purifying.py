"""The options that only `gentk purify` has, and what they mean in a recipe."""

from typing import Annotated, Any

import typer

from gentk.errors import RecipeError

_Text, _Number = str | None, int | None


def _option(kind: Any, *words: str, **more: Any) -> Any:
    return Annotated[kind, typer.Option(*words, **more)]


OPTIONS: dict[str, Any] = {
    "model": _option(_Text, help="Denoiser (or generator) that purifies: a name, a run folder or a file."),
    "classifier": _option(_Text, help="Classifier: a name, a run, a file, timm:NAME or torchvision:NAME."),
    "attack": _option(
        _Text,
        help="none, blind, bpda, pgd, pgd-eot, surrogate, frozen, square, autoattack, suite, torchattacks:NAME,"
        " stored:RUN.",
    ),
    "grad": _option(_Text, help="Gradient that pgd and AutoAttack follow: full, bpda, surrogate, blind."),
    "norm": _option(_Text, help="linf or l2."),
    "eps": _option(_Text, help="Largest change of an image in [0, 1]: 8/255 or 0.2."),
    "steps": _option(_Number, min=1, help="Steps of the attack."),
    "eot": _option(_Number, min=1, help="Draws of the defence that a gradient is averaged over."),
    "restarts": _option(_Number, min=1, help="Starts of the attack."),
    "subset": _option(_Number, "--subset", "-n", min=1, help="Images attacked, drawn at random."),
    "subset_seed": _option(_Number, min=0, help="Which ones."),
    "votes": _option(_Number, min=1, help="Purifications that one answer averages, clean and attacked alike."),
    "eval_draws": _option(_Number, min=1, help="Fresh draws of the defence that every image is answered on."),
    "attack_seed": _option(_Number, min=0, help="Of the attack's draws."),
    "eval_seed": _option(_Number, min=0, help="Of the answers' draws: never the attack's."),
}

_KEYS = {
    "grad": "attack.grad",
    "norm": "threat.norm",
    "eps": "threat.eps",
    "steps": "attack.steps",
    "eot": "attack.eot",
    "restarts": "attack.restarts",
    "subset": "scoring.images",
    "subset_seed": "scoring.subset_seed",
    "eval_draws": "scoring.draws",
    "attack_seed": "attack.seed",
    "eval_seed": "scoring.seed",
}


def understood(method: str | None, given: dict[str, Any]) -> str | None:
    """The method; turns the options in `given` into keys of the recipe. RecipeError for a `stored:` without RUN."""
    attack = given.get("attack")
    if isinstance(attack, str) and attack.partition(":")[0] == "stored":
        given["attack"], given["stored"] = None, attack.partition(":")[2]
        if not given["stored"]:
            raise RecipeError("--attack stored: of which run?", hint="--attack stored:RUN")
    for option, key in _KEYS.items():
        if (value := given.pop(option, None)) is not None:
            given[key] = value
    draws = given.get("scoring.draws")
    if draws is not None and draws < 10:  # worst-of-10 needs ten; a smaller number is what the user asked for
        given["scoring.worst_of"] = draws
    return method
