"""The option that only `gentk distill` has, and what it means in a recipe."""

from typing import Any

from gentk.cli import options

OPTIONS: dict[str, Any] = {"prompts": options.Prompts}


def understood(method: str | None, given: dict[str, Any]) -> str | None:
    """The method that is meant; turns the options in `given` into keys of the recipe."""
    if given.get("prompts") is not None:
        given["prompts"] = {"file": given["prompts"]}
    return method
