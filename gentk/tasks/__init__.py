"""Tasks: one folder each, one file per method. `gentk.recipe.registry` finds them."""
