"""Recipes: YAML in, frozen pydantic models out. No torch anywhere in this package."""
