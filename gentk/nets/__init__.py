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
    if not isinstance(section, schema.SmallCnn | schema.NoiseCnn) and section.width % 2:
        raise RecipeError(f"net.width: {section.width} is odd, the noise level's cosines and sines take an even width")
    if isinstance(section, schema.Mlp):
        from gentk.nets.mlp import Mlp

        if len(shape) != 1:
            raise RecipeError(f"net.name: `mlp` takes points, the data has shape {shape}", hint="use net.name=unet")
        return Mlp(dim=shape[0], classes=classes, **settings)
    if len(shape) != 3 or shape[1] != shape[2]:
        raise RecipeError(f"net.name: `{section.name}` takes square images, the data has shape {shape}")
    if isinstance(section, schema.DdpmUNet | schema.NoiseCnn) and classes:  # not in silence
        raise RecipeError(
            f"net.name: `{section.name}` reads no labels, the data has {classes} classes",
            hint="use net.name=unet or songunet",
        )
    channels, size = shape[:2]
    if isinstance(section, schema.SmallCnn):
        from gentk.nets.classifier import SmallCnn

        if classes < 2:
            raise RecipeError("net.name: `small-cnn` needs labelled data with at least two classes")
        return SmallCnn(size=size, channels=channels, classes=classes, **settings)
    if isinstance(section, schema.NoiseCnn):
        from gentk.nets.noise_cnn import NoiseCnn

        return NoiseCnn(size=size, channels=channels, **settings)
    _check_levels(section, size)
    try:
        match section:
            case schema.UNet():
                from gentk.nets.unet import UNet

                return UNet(size=size, channels=channels, classes=classes, **settings)
            case schema.SongUNet():
                from gentk.nets.songunet import SongUNet

                return SongUNet(size=size, channels=channels, classes=classes, **settings)
            case schema.Adm():
                from gentk.nets.adm import Adm

                return Adm(size=size, channels=channels, classes=classes, **settings)
            case schema.DdpmUNet():
                from gentk.nets.ddpm import DdpmUNet

                return DdpmUNet(size=size, channels=channels, **settings)
    except ValueError as e:  # channels that norms cannot group, or heads cannot part
        raise RecipeError(f"net.width: {section.width} does not fit: {e}", hint="use a multiple of 32") from e


def _check_levels(section: schema.UNet | schema.SongUNet | schema.Adm | schema.DdpmUNet, size: int) -> None:
    halvings = len(section.multipliers) - 1
    if size % 2**halvings:
        raise RecipeError(
            f"net.multipliers: {halvings + 1} levels need a side divisible by {2**halvings}, the images have {size}",
            hint="use fewer levels: --set net.multipliers='[1, 2]'",
        )
    sides = [size // 2**level for level in range(halvings + 1)]
    if unused := [side for side in section.attention if side not in sides]:
        raise RecipeError(f"net.attention: no level has a side of {unused[0]} pixels; the levels have {sides}")
