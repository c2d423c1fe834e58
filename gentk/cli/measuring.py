"""The options that only `gentk evaluate` has, and what they mean in a recipe."""

from pathlib import Path
from typing import Any

from gentk.cli import options
from gentk.errors import RecipeError

OPTIONS: dict[str, Any] = {
    "runs": options.Runs,
    "reference": options.Reference,
    "weights": options.Weights,
    "prompts": options.Prompts,
}


def understood(method: str | None, given: dict[str, Any]) -> str | None:
    """The method, unchanged; turns the options in `given` into keys of the recipe."""
    runs = given.pop("runs", None) or []
    if method == "compare" and runs:
        if len(runs) != 2:
            raise RecipeError(
                f"gentk evaluate compare takes two runs, not {len(runs)}", hint="evaluate compare RUN RUN"
            )
        given["samples"], given["method.against"] = runs
    elif runs:
        raise RecipeError(f"gentk evaluate {method}: unexpected `{runs[0]}`", hint="what is measured: --samples")
    for name in ("weights", "prompts"):
        if (value := given.pop(name, None)) is not None:
            given[f"method.{name}"] = value
    if (reference := given.pop("reference", None)) is not None:
        kind = "stats:" if reference.endswith(".npz") else "images:" if Path(reference).is_dir() else ""
        given["reference.name"] = kind + reference
    return method
