"""Networks, built from the `net:` section of a recipe or of a safetensors header."""

from __future__ import annotations

from torch import nn

from gentk.errors import RecipeError
from gentk.recipe import schema


def build(section: schema.Net, *, shape: tuple[int, ...], classes: int) -> nn.Module:
    """The network of a section for samples of `shape`: (C, S, S) for images or (D,) for points.

    Raises RecipeError when the network cannot take such samples.
    """
    # imported here: a run needs one of them
    settings = section.model_dump(exclude={"name"})
    if not isinstance(section, schema.SmallCnn) and section.width % 2:
        raise RecipeError(f"net.width: {section.width} is odd, the noise level's cosines and sines take an even width")
    if isinstance(section, schema.Mlp):
        from gentk.nets.mlp import Mlp

        if len(shape) != 1:
            raise RecipeError(f"net.name: `mlp` takes points, the data has shape {shape}", hint="use net.name=unet")
        return Mlp(dim=shape[0], classes=classes, **settings)
    if len(shape) != 3 or shape[1] != shape[2]:
        raise RecipeError(f"net.name: `{section.name}` takes square images, the data has shape {shape}")
    if isinstance(section, schema.SmallCnn):
        from gentk.nets.classifier import SmallCnn

        if classes < 2:
            raise RecipeError("net.name: `small-cnn` needs labelled data with at least two classes")
        return SmallCnn(size=shape[1], channels=shape[0], classes=classes, **settings)
    from gentk.nets.unet import UNet

    halvings = len(section.multipliers) - 1
    if shape[1] % 2**halvings:
        raise RecipeError(
            f"net.multipliers: {halvings + 1} levels need a side divisible by {2**halvings}, "
            f"the images have {shape[1]}",
            hint="use fewer levels: --set net.multipliers='[1, 2]'",
        )
    sides = [shape[1] // 2**level for level in range(halvings + 1)]
    if unused := [side for side in section.attention if side not in sides]:
        raise RecipeError(f"net.attention: no level has a side of {unused[0]} pixels; the levels have {sides}")
    return UNet(size=shape[1], channels=shape[0], classes=classes, **settings)
