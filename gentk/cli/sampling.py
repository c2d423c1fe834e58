"""The options that only `gentk sample` has, and what they mean in a recipe."""

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from gentk.cli import options
from gentk.errors import RecipeError
from gentk.recipe import registry

_Prompt = Annotated[
    list[str] | None, typer.Option("--prompt", help="What to show, for text-to-image models; repeatable.")
]
_PerPrompt = Annotated[int | None, typer.Option(min=1, help="Images of each prompt.")]
_Scale = Annotated[
    float | None, typer.Option(min=0, help="Classifier-free guidance as diffusers counts it: 1 is none.")
]
_Omega = Annotated[float | None, typer.Option(min=-1, help="The same as papers count it: 0 is none; scale - 1.")]

OPTIONS: dict[str, Any] = {
    "n": options.Count,
    "seeds": options.Seeds,
    "nfe": options.Nfe,
    "compare": options.Compare,
    "prompt": _Prompt,
    "prompts": options.Prompts,
    "per_prompt": _PerPrompt,
    "guidance_scale": _Scale,
    "omega": _Omega,
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
    _prompted(given)
    _guided(given)
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


def _prompted(given: dict[str, Any]) -> None:
    """The prompts of the command, in place of the recipe's, and as many samples as they ask for."""
    texts, file, each = (given.pop(name, None) for name in ("prompt", "prompts", "per_prompt"))
    if not texts and file is None:
        if each is not None:
            given["prompts.per_prompt"] = each
        return
    if texts and file is not None:
        raise RecipeError("--prompt and --prompts both say what to show", hint="give one of them")
    from gentk.recipe.prompts import PromptSource, read

    source = PromptSource(text=tuple(texts or ()), file=file, per_prompt=each or 1)
    if given.get("n") is None:
        given["n"] = len(read(source)) * source.per_prompt
    elif file is not None and not Path(file).expanduser().is_file():
        read(source)  # says so before torch is loaded
    given["prompts"] = source.model_dump(exclude_unset=True, exclude_none=True)


def _guided(given: dict[str, Any]) -> None:
    scale, omega = given.pop("guidance_scale", None), given.pop("omega", None)
    if scale is not None and omega is not None:
        raise RecipeError("--guidance-scale and --omega both say how strong guidance is", hint="scale = 1 + omega")
    if scale is not None or omega is not None:
        given["guidance"] = scale if scale is not None else 1 + omega


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
