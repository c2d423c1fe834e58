"""The sections that recipes are made of: every key, its type, range, default and meaning.

All sections forbid unknown keys, are frozen and strict. YAML lists arrive as tuples (see `yaml12`). Those of networks
are in `networks`. A task's own recipe is `Head` plus its sections and lives in `gentk/tasks/TASK/__init__.py`; a
method's settings are its file's `Config`.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from gentk.recipe.networks import Adm as Adm
from gentk.recipe.networks import DdpmUNet as DdpmUNet
from gentk.recipe.networks import Mlp as Mlp
from gentk.recipe.networks import Net as Net
from gentk.recipe.networks import NoiseCnn as NoiseCnn
from gentk.recipe.networks import SmallCnn as SmallCnn
from gentk.recipe.networks import SongUNet as SongUNet
from gentk.recipe.networks import UNet as UNet
from gentk.recipe.section import Beta, Warp
from gentk.recipe.section import Fraction as Fraction
from gentk.recipe.section import Section as Section


class Expect(Section):
    """One figure that the recipe is after, with its source, beside what this code reached."""

    paper: float | None = Field(None, description="the paper's figure, or null where it has none for this setting")
    where: str | None = Field(None, description="where the paper says so: table, section or abstract")
    ours: float | None = Field(None, description="what this recipe gave here, measured")
    note: str | None = Field(None, description="how ours was measured: seeds, spread, machine")


class Needs(Section):
    """Files that must be there before the run starts."""

    weights: tuple[str, ...] = Field((), description="models, by registry name or path")
    data: tuple[str, ...] = Field((), description="data sets, by name")


class Head(Section):
    """What every recipe says about itself."""

    task: str = Field(description="the task, as in `gentk TASK`")
    about: str = Field(description="one line: what this recipe makes")
    paper: str | None = Field(None, description="the paper behind it, as arXiv:NNNN.NNNNN")
    size: Literal["smoke", "laptop", "gpu", "cluster"] = Field(description="the machine it is made for")
    default: bool = Field(False, description="whether the bare `gentk TASK METHOD` runs this recipe")
    needs: Needs = Field(Needs(), description="files that must be present")
    expect: dict[str, Expect] = Field({}, description="figures by name, as `--json` reports them")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(0, description="every random number of the run derives from it")


class Data(Section):
    """A data set and where it lies."""

    name: str = Field(description="digits | mnist | fashion-mnist | cifar10 | points:NAME | images:FOLDER")
    root: str | None = Field(None, description="folder that holds the files; else the environment variable GENTK_DATA")
    size: PositiveInt | None = Field(None, description="side in pixels that the images must have (images:FOLDER)")
    points: PositiveInt = Field(20_000, description="how many points to draw per split (points:NAME)")


class VE(Section):
    """Variance exploding, x_t = x0 + t eps: EDM's coordinates."""

    name: Literal["ve"]
    sigma_min: PositiveFloat = Field(0.002, description="smallest noise level used")
    sigma_max: PositiveFloat = Field(80.0, description="largest noise level used")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min: {self.sigma_min:g} is not below sigma_max: {self.sigma_max:g}")
        return self


class VP(Section):
    """Variance preserving with linear beta(t) on t in [0, 1] (Song et al. 2021)."""

    name: Literal["vp"]
    beta_min: PositiveFloat = Field(0.1, description="beta at t = 0")
    beta_max: PositiveFloat = Field(20.0, description="beta at t = 1")
    t_min: PositiveFloat = Field(1e-5, description="smallest time used")


class Cosine(Section):
    """Variance preserving with alpha = cos(pi t / 2), sigma = sin(pi t / 2)."""

    name: Literal["cosine"]
    t_min: PositiveFloat = Field(1e-4, description="smallest time used")
    t_max: Annotated[float, Field(gt=0, lt=1)] = Field(0.9999, description="largest time used")


class RectifiedFlow(Section):
    """Straight path x_t = (1 - t) x0 + t eps; t = 1 is noise."""

    name: Literal["rectified-flow"]
    t_min: PositiveFloat = Field(1e-4, description="smallest time used")
    t_max: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="largest time used")


class Discrete(Section):
    """Variance preserving with a finite number of betas: DDPM and Stable Diffusion."""

    name: Literal["discrete"]
    schedule: Literal["linear", "scaled-linear", "cosine"] = Field(
        "linear",
        description="even spacing of beta (DDPM) or of its root (Stable Diffusion); cosine: iDDPM's, of no ends",
    )
    beta_start: PositiveFloat = Field(1e-4, description="beta of timestep 0")
    beta_end: Annotated[float, Field(gt=0, lt=1)] = Field(0.02, description="beta of the last timestep")
    steps: Annotated[int, Field(ge=2)] = Field(1000, description="timesteps of the training")
    data_scale: PositiveFloat = Field(
        1.0, description="the network's data over data in [-1, 1]: 0.5 where it learned images in [-0.5, 0.5]"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.beta_start > self.beta_end:
            raise ValueError(f"beta_start: {self.beta_start:g} is above beta_end: {self.beta_end:g}")
        return self


Process = Annotated[VE | VP | Cosine | RectifiedFlow | Discrete, Field(discriminator="name")]
Predicts = Literal["edm", "x0", "eps", "v", "flow", "reverse-eps", "reverse-flow"]


class Inputs(Section):
    """What a network takes for the sample x_t and the noise level; the label is `factor` * value + `offset`.

    With a `centre` everything is of x0 - centre: the network sees data of mean 0, what comes out is moved back.
    """

    scale: Literal["unit", "process"] = Field("unit", description="x_t scaled to unit variance, or x_t as it is")
    label: Literal["log-ratio", "time"] = Field(
        "log-ratio", description="value of the label: ln of the noise-to-signal ratio, or process time"
    )
    factor: float = Field(0.25, description="times the value")
    offset: float = Field(0.0, description="plus this")
    centre: tuple[float, ...] = Field((), description="the data's mean in each channel, taken off before; none: 0")


class LogNormal(Section):
    """ln sigma ~ N(mean, std^2), sigma = the noise-to-signal ratio (Karras et al. 2022, table 1)."""

    name: Literal["lognormal"]
    mean: float = Field(-1.2, description="mean of ln sigma")
    std: PositiveFloat = Field(1.2, description="standard deviation of ln sigma")


class KarrasUniform(Section):
    """Uniform on EDM's rho-warped grid, cut at `t_max` / 1000 of it: SiD's law for the generator update."""

    name: Literal["karras"]
    sigma_min: PositiveFloat = Field(0.002, description="smallest noise level")
    sigma_max: PositiveFloat = Field(80.0, description="noise level at the end of the grid")
    rho: Warp = Field(7.0, description="warp of the grid")
    t_max: Annotated[float, Field(gt=0, le=1000)] = Field(800.0, description="part of the grid used, in thousandths")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min: {self.sigma_min:g} is not below sigma_max: {self.sigma_max:g}")
        return self


Clock = Literal["process", "flow"]  # whose time a law speaks of: the process's own, or t = s / (1 + s) for any process
_CLOCK = "whose time: the process's own, or flow time s / (1 + s), s the noise-to-signal ratio, for any process"
_SHIFT = "moves flow time towards noise by shift t / (1 + (shift - 1) t); 1: as it is"


class _Clocked(Section):
    name: str
    clock: Clock = Field("process", description=_CLOCK)
    shift: PositiveFloat = Field(1.0, description=_SHIFT)

    @model_validator(mode="after")
    def _shiftable(self) -> Self:
        if self.shift != 1 and self.clock != "flow":
            raise ValueError("shift is a map of flow time: set clock: flow")
        return self


class UniformTime(_Clocked):
    """Uniform in time between the process's ends."""

    name: Literal["uniform"]


class LogitNormal(_Clocked):
    """logit t ~ N(mean, std^2) in time scaled to [0, 1] between the process's ends (Esser et al. 2024)."""

    name: Literal["logit-normal"]
    mean: float = Field(0.0, description="mean of logit t")
    std: PositiveFloat = Field(1.0, description="standard deviation of logit t")


Times = Annotated[LogNormal | KarrasUniform | UniformTime | LogitNormal, Field(discriminator="name")]


class _Grid(Section):
    name: str
    to_zero: bool = Field(True, description="end with a step to 0, on the denoiser's output; false: at the last level")


class _SigmaGrid(_Grid):
    sigma_min: PositiveFloat | None = Field(
        None, description="smallest noise level above 0; null: the process's, but at least 0.002"
    )
    sigma_max: PositiveFloat | None = Field(
        None, description="largest noise level; null: the process's, but at most 80"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.sigma_min is not None and self.sigma_max is not None and self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min: {self.sigma_min:g} is not below sigma_max: {self.sigma_max:g}")
        return self


class KarrasGrid(_SigmaGrid):
    """Even in sigma^(1/rho): EDM's grid (Karras et al. 2022)."""

    name: Literal["karras"]
    rho: Warp = Field(7.0, description="warp of the grid; 1: even in sigma")


class LambdaGrid(_SigmaGrid):
    """Even in lambda = -ln sigma, the logSNR grid of DPM-Solver."""

    name: Literal["lambda"]


class ExponentialGrid(_SigmaGrid):
    """`lambda` by the name that k-diffusion and diffusers give it."""

    name: Literal["exponential"]


class TimeGrid(_Grid):
    """Even in t^(1/power), t the process's own time; of a flow, moved by a shift after that."""

    name: Literal["time"]
    power: PositiveFloat = Field(1.0, description="warp of the grid; above 1: more levels near the data")
    shift: PositiveFloat = Field(
        1.0, description="moves a flow's times, the ends included, towards noise: shift t / (1 + (shift - 1) t)"
    )
    t_min: NonNegativeFloat | None = Field(None, description="smallest time; null: the process's; 0: even down to 0")
    t_max: PositiveFloat | None = Field(None, description="largest time; null: the process's")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.t_min is not None and self.t_max is not None and self.t_min >= self.t_max:
            raise ValueError(f"t_min: {self.t_min:g} is not below t_max: {self.t_max:g}")
        return self


class LeadingGrid(_Grid):
    """Every r-th timestep of a `discrete` process from `offset` up, r = its steps over the levels rounded down."""

    name: Literal["leading"]
    offset: NonNegativeInt = Field(0, description="smallest timestep: DDIM 0, Stable Diffusion 1")


class TrailingGrid(_Grid):
    """Timesteps of a `discrete` process at even distance, from the last one down."""

    name: Literal["trailing"]


class LinspaceGrid(_Grid):
    """Timesteps of a `discrete` process at even distance, from the last one to 0."""

    name: Literal["linspace"]


class GivenGrid(_Grid):
    """Noise levels listed by hand, from noisy to clean."""

    name: Literal["given"]
    sigmas: tuple[NonNegativeFloat, ...] = Field(
        min_length=1, description="noise-to-signal ratios; a final 0 may be left out"
    )


Grid = Annotated[
    KarrasGrid | LambdaGrid | ExponentialGrid | TimeGrid | LeadingGrid | TrailingGrid | LinspaceGrid | GivenGrid,
    Field(discriminator="name"),
]


class StaticThreshold(Section):
    """Clip the denoiser's output to a fixed range."""

    name: Literal["static"]
    low: float = Field(-1.0, description="smallest value that the data have")
    high: float = Field(1.0, description="largest value that the data have")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low: {self.low:g} is not below high: {self.high:g}")
        return self


class DynamicThreshold(Section):
    """Clip every sample at a quantile of its own absolute values and scale it back to [-1, 1] (Saharia et al. 2022)."""

    name: Literal["dynamic"]
    quantile: Fraction = Field(0.995, description="share of a sample's values that stays unclipped")
    max: Annotated[float, Field(ge=1)] | None = Field(None, description="largest value to clip at; null: no limit")


Threshold = Annotated[StaticThreshold | DynamicThreshold, Field(discriminator="name")]


class Optimiser(Section):
    """One optimiser and its learning-rate schedule."""

    name: Literal["adam", "adamw"] = Field("adam", description="adam, or adamw for decoupled weight decay")
    lr: PositiveFloat = Field(description="peak learning rate")
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), description="decay of the first and second moments")
    eps: PositiveFloat = Field(1e-8, description="added to the root of the second moment")
    weight_decay: NonNegativeFloat = Field(0.0, description="L2 penalty (adam) or decoupled decay (adamw)")
    warmup: NonNegativeInt = Field(0, description="steps of linear warm-up")
    decay: Literal["constant", "cosine", "linear"] = Field(
        "constant", description="shape after warm-up, to the last step"
    )
    floor: Fraction = Field(0.0, description="final learning rate as a fraction of the peak (cosine, linear)")
    clip: PositiveFloat | None = Field(None, description="largest global gradient norm; null for no clipping")


class Ema(Section):
    """Exponential moving average of weights, counted in images (Karras et al. 2022)."""

    half_life: PositiveInt = Field(500_000, description="images after which a weight's share has halved")
    ramp_up: PositiveFloat | None = Field(
        0.05, description="cap the half-life at this fraction of the images seen; null: no"
    )


class Train(Section):
    """The loop: how long, how large, how precise, how often."""

    steps: PositiveInt = Field(description="optimiser steps")
    batch: PositiveInt = Field(128, description="images per step and phase, over all devices")
    accumulate: PositiveInt = Field(
        1, description="micro-batches that a batch is split into, each divided among the processes"
    )
    parallel: Literal["ddp", "fsdp"] = Field(
        "ddp",
        description="of several processes (torchrun): ddp: whole networks in each; fsdp: each keeps a part of weights, "
        "averages and optimiser states",
    )
    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16 runs the losses under autocast")
    compile: bool = Field(False, description="torch.compile each network")
    checkpointing: bool = Field(
        False, description="compute inner activations again in the backward pass: less memory, more time, same numbers"
    )
    nan: Literal["stop", "skip"] = Field("stop", description="on a loss or gradient that is not finite")
    log_every: PositiveInt = Field(50, description="steps between lines of metrics.jsonl")
    checkpoint_every: PositiveInt = Field(500, description="steps between checkpoints")
    keep: PositiveInt = Field(2, description="checkpoints kept")
    sample_every: NonNegativeInt = Field(0, description="steps between pictures in samples/; 0: only at the end")
    track: tuple[Literal["tensorboard", "wandb"], ...] = Field(
        (), description="optional listeners beside metrics.jsonl"
    )


class Measure(Section):
    """How the Frechet distance, precision and recall of a generative run are measured."""

    n: PositiveInt = Field(10_000, description="samples drawn")
    features: str = Field(
        description="feature network: model name, run or file; mnist-cnn, fashion-mlp or resnet20, whose weights lie "
        "in $GENTK_DATA; or `identity` for the raw values"
    )
    k: PositiveInt = Field(3, description="neighbours that define the manifolds of precision and recall")
    preview: NonNegativeInt = Field(0, description="samples for the figures along the way (`eval/...`); 0: none")
    solver: Literal["heun", "euler"] = Field("heun", description="how a many-step model is drawn from")
    grid: Literal["karras", "time"] = Field("karras", description="its levels: EDM's, or even in the process's time")
    steps: PositiveInt = Field(18, description="steps for a many-step model: NFE = steps (euler), 2 steps - 1 (heun)")
    batch: PositiveInt = Field(500, description="samples per network call")
