"""The options that only `gentk sample` has, and what they mean in a recipe."""

import re
from typing import Any

from gentk.cli import options
from gentk.errors import RecipeError
from gentk.recipe import registry

OPTIONS: dict[str, Any] = {
    "n": options.Count,
    "seeds": options.Seeds,
    "nfe": options.Nfe,
    "compare": options.Compare,
}


def understood(method: str | None, given: dict[str, Any]) -> str | None:
    """The method that is meant; turns the options in `given` into keys of the recipe. Raises RecipeError."""
    if method is not None and method not in registry.methods("sample"):
        from gentk.tasks.sample._aliases import command, elsewhere

        alias = elsewhere(method)
        if alias is not None:
            raise RecipeError(f"`{method}` is {alias.library}'s name", hint=f"here it is: {command(alias)}")
    seeds, nfe, compare = (given.pop(name, None) for name in ("seeds", "nfe", "compare"))
    if seeds is not None:
        if given.get("n") is not None:
            raise RecipeError("--seeds and -n both say how many samples", hint="give one of them")
        given["first"], given["n"] = _range(seeds)
    if compare is not None:
        if method not in (None, "compare"):
            raise RecipeError(f"--compare names the methods itself, `{method}` is one too many")
        method = "compare"
        given["method.solvers"] = tuple(_listed(compare))
    if nfe is not None:
        numbers = [_number(word) for word in _listed(nfe)]
        if method == "compare":
            given["method.nfe"] = tuple(numbers)
        elif len(numbers) == 1:
            given["nfe"] = numbers[0]
        else:
            raise RecipeError(f"--nfe {nfe}: one number", hint="a list is for --compare")
    return method


def _range(text: str) -> tuple[int, int]:
    """(first, how many) of `A-B` or `A`."""
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
    if last < first:
        raise RecipeError(f"--seeds {text}: not a range such as 0-63")
    return first, last - first + 1


def _listed(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _number(word: str) -> int:
    if not word.isdigit() or not int(word):
        raise RecipeError(f"--nfe {word}: not a number of evaluations")
    return int(word)
