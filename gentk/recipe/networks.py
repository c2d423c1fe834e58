"""The `net:` section of recipes and headers: every network that `gentk.nets.build` makes, with its settings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from gentk.recipe.section import Section


class UNet(Section):
    """Class-conditional U-Net for images (gentk/nets/unet.py)."""

    name: Literal["unet"]
    width: PositiveInt = Field(32, description="channels at full resolution; the levels multiply it")
    multipliers: tuple[PositiveInt, ...] = Field((1, 2), description="channel multiplier per level, finest first")
    blocks: PositiveInt = Field(1, description="residual blocks per level")
    attention: tuple[PositiveInt, ...] = Field((), description="sides in pixels at which self-attention is used")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="dropout inside the residual blocks")


class Mlp(Section):
    """Residual multilayer perceptron for points (gentk/nets/mlp.py)."""

    name: Literal["mlp"]
    width: PositiveInt = Field(128, description="hidden units")
    blocks: PositiveInt = Field(3, description="residual blocks")


class SmallCnn(Section):
    """Small convolutional classifier whose last hidden layer serves as features (gentk/nets/classifier.py)."""

    name: Literal["small-cnn"]
    width: PositiveInt = Field(32, description="channels of the first convolution")
    features: PositiveInt = Field(64, description="width of the feature layer")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="dropout before the feature layer")


class SongUNet(Section):
    """DDPM++ and NCSN++, the U-Net of score_sde and EDM, by their published weights (gentk/nets/songunet.py)."""

    name: Literal["songunet"]
    width: PositiveInt = Field(128, description="channels at full resolution; the levels multiply it")
    multipliers: tuple[PositiveInt, ...] = Field((2, 2, 2), description="channel multiplier per level, finest first")
    blocks: PositiveInt = Field(4, description="residual blocks per level")
    attention: tuple[PositiveInt, ...] = Field((16,), description="sides in pixels at which self-attention is used")
    embedding: Literal["positional", "fourier"] = Field(
        "positional", description="of the noise label: sinusoids (DDPM++) or random frequencies (NCSN++)"
    )
    encoder: Literal["standard", "residual"] = Field(
        "standard", description="residual: the input comes in at each level (NCSN++)"
    )
    taps: tuple[PositiveFloat, ...] = Field(
        (1.0, 1.0), description="resampling filter: (1, 1) (DDPM++) or (1, 3, 3, 1) (NCSN++)"
    )
    augment: NonNegativeInt = Field(0, description="numbers about an augmentation that it takes: 9 in EDM's own files")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="dropout inside the residual blocks")


class Adm(Section):
    """ADM, the U-Net of guided-diffusion and of EDM's ImageNet-64, by their published weights (gentk/nets/adm.py)."""

    name: Literal["adm"]
    width: PositiveInt = Field(192, description="channels at full resolution; the levels multiply it")
    multipliers: tuple[PositiveInt, ...] = Field((1, 2, 3, 4), description="channel multiplier per level, finest first")
    blocks: PositiveInt = Field(3, description="residual blocks per level")
    attention: tuple[PositiveInt, ...] = Field(
        (32, 16, 8), description="sides in pixels at which self-attention is used"
    )
    head_width: PositiveInt = Field(64, description="channels of an attention head")
    augment: NonNegativeInt = Field(0, description="numbers about an augmentation that it takes")
    learned_sigma: bool = Field(False, description="it also makes variances, which are dropped (guided-diffusion)")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="dropout inside the residual blocks")


class DdpmUNet(Section):
    """DDPM's U-Net in the form of diffusers' google/ddpm-cifar10-32 (gentk/nets/ddpm.py)."""

    name: Literal["ddpm-unet"]
    width: PositiveInt = Field(128, description="channels at full resolution; the levels multiply it")
    multipliers: tuple[PositiveInt, ...] = Field((1, 2, 2, 2), description="channel multiplier per level, finest first")
    blocks: PositiveInt = Field(2, description="residual blocks per level")
    attention: tuple[PositiveInt, ...] = Field((16,), description="sides in pixels at which self-attention is used")
    head_width: PositiveInt | None = Field(None, description="channels of an attention head; null: one head")
    groups: PositiveInt = Field(32, description="groups of the norms")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="dropout inside the residual blocks")


class NoiseCnn(Section):
    """Small convolutional noise predictor for images of one size (gentk/nets/noise_cnn.py)."""

    name: Literal["noise-cnn"]
    widths: tuple[PositiveInt, ...] = Field(
        (16, 32, 32, 16), min_length=1, description="channels of the 7x7 convolutions"
    )
    embedding: PositiveInt = Field(128, description="hidden units of the time's network")


Net = Annotated[
    UNet | Mlp | SmallCnn | SongUNet | Adm | DdpmUNet | NoiseCnn,
    Field(discriminator="name"),
]


class EnergyMlp(Section):
    """Multilayer perceptron for the energy of points (gentk/nets/energy.py)."""

    name: Literal["energy-mlp"]
    width: PositiveInt = Field(128, multiple_of=2, description="hidden units")
    depth: PositiveInt = Field(3, description="hidden layers")
    waves: NonNegativeInt = Field(32, description="fixed directions whose cosines and sines are inputs too; 0: none")
    frequency: PositiveFloat = Field(3.0, description="their angular frequency, in a standard deviation of the data")
    spectral: bool = Field(False, description="spectral norm on every layer, with one learned factor for all")
    tail: PositiveFloat | None = Field(
        10.0, description="a wide Gaussian in it, of so many standard deviations of the data; null: none"
    )


class EnergyConv(Section):
    """Residual convolutions without norms for the energy of images (gentk/nets/energy.py)."""

    name: Literal["energy-conv"]
    width: PositiveInt = Field(32, multiple_of=2, description="channels at full resolution; the levels multiply it")
    multipliers: tuple[PositiveInt, ...] = Field((1, 2), description="channel multiplier per level, finest first")
    blocks: PositiveInt = Field(1, description="residual blocks per level")
    spectral: bool = Field(False, description="spectral norm on every layer, with one learned factor for all")
    tail: PositiveFloat | None = Field(
        10.0, description="a wide Gaussian in it, of so many standard deviations of the data; null: none"
    )


class EnergyUNet(Section):
    """A U-Net F as energy <x, x - D> / 2 t^2 of images noised to t, D the denoiser of F (gentk/nets/energy.py)."""

    name: Literal["energy-unet"]
    width: PositiveInt = Field(32, multiple_of=2, description="channels at full resolution; the levels multiply it")
    multipliers: tuple[PositiveInt, ...] = Field((1, 2), description="channel multiplier per level, finest first")
    blocks: PositiveInt = Field(1, description="residual blocks per level")
    attention: tuple[PositiveInt, ...] = Field((), description="sides in pixels at which self-attention is used")


EnergyNet = Annotated[EnergyMlp | EnergyConv | EnergyUNet, Field(discriminator="name")]


class Plain(Section):
    """Linear layers with SiLU between: sampler or score of a density (gentk/nets/implicit.py)."""

    name: Literal["plain"]
    width: PositiveInt = Field(64, description="hidden units")
    depth: PositiveInt = Field(3, description="hidden layers")
