"""The options that only `gentk align` has, and what they mean in a recipe."""

from typing import Any

from gentk.cli import options
from gentk.errors import RecipeError

OPTIONS: dict[str, Any] = {"reward": options.Reward, "prompts": options.Prompts}


def understood(method: str | None, given: dict[str, Any]) -> str | None:
    """The method that is meant; turns the options in `given` into keys of the recipe. Raises RecipeError."""
    reward = given.pop("reward", None)
    if reward is not None:
        words = [word.strip() for word in reward.split(",") if word.strip()]
        if not words:
            raise RecipeError("--reward: names no reward", hint="class, brightness, image-reward, MODULE:FUNCTION, ...")
        given["method.rewards"] = tuple(
            {"name": "function", "of": word} if ":" in word else {"name": word} for word in words
        )
    if given.get("prompts") is not None:
        given["prompts"] = {"file": given["prompts"]}
    return method
