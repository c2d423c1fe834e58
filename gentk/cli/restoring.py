"""The options that only `gentk restore` has, and what they mean in a recipe."""

from typing import Annotated, Any

import typer

from gentk.errors import RecipeError, did_you_mean

OPTIONS: dict[str, Any] = {
    "model": Annotated[str | None, typer.Option(help="The prior: a denoiser or flow model's name, run or file.")],
    "operator": Annotated[
        str | None,
        typer.Option(
            help="noise, inpaint, box, blur, motion-blur, downsample, grey; its settings by --set operator.KEY."
        ),
    ],
    "sigma": Annotated[float | None, typer.Option(min=0, help="Deviation of the noise, images being in [-1, 1].")],
    "input": Annotated[str | None, typer.Option(help="Folder of measured pictures, restored by their names.")],
    "draws": Annotated[int | None, typer.Option(min=1, help="Results per image: mean, deviation, coverage.")],
    "steps": Annotated[int | None, typer.Option(min=2, help="Evaluations of the model per result.")],
    "n": Annotated[int | None, typer.Option("-n", min=1, help="How many images, the first ones.")],
}


def understood(method: str | None, given: dict[str, Any]) -> str | None:
    """The method; turns the options in `given` into keys of the recipe. RecipeError for an unknown operator."""
    from gentk.recipe.operators import NAMES

    operator = given.get("operator")
    if operator is not None:
        if operator not in NAMES:
            raise RecipeError(
                f"--operator {operator}: unknown{did_you_mean(operator, NAMES)}", hint=f"one of {', '.join(NAMES)}"
            )
        given["operator"] = {"name": operator}  # a section of its own: the settings of another would mean nothing to it
    return method
