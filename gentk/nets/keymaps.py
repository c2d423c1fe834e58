"""The names of published weights brought to those of our networks: state dict in, state dict out.

`net` is the network that `nets.build` makes of the section; its names and shapes are read and nothing else, so it may
be built on the meta device. Each map raises GentkError with what is missing, unexpected or misshapen: no tensor is left
out in silence, none is made up but the constant filters of the resampling blocks.

    weights                          map                                    names
    NVlabs/edm                       `edm`                                  model.enc.32x32_conv.weight
    score_sde_pytorch, RectifiedFlow `score_sde_ema`, then `score_sde`      module.all_modules.3.weight
    guided-diffusion                 `guided_diffusion`                     input_blocks.0.0.weight
    diffusers, DDPM                  `diffusers_ddpm`                       down_blocks.0.resnets.0.conv1.weight
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, cast

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from gentk.errors import GentkError
from gentk.nets.adm import Adm
from gentk.nets.blocks import AuxConv, Block, Resample, ResampleConv, resampling_filter
from gentk.nets.songunet import SongUNet
from gentk.nets.weights import faults
from gentk.recipe import schema

State = Mapping[str, Tensor]

_HINT = "the architecture's settings and the file do not belong together: choose others, or the right file"


def edm(state: State, net: nn.Module) -> dict[str, Tensor]:
    """The state of an EDM preconditioner, every name below `model.`, as that of a `SongUNet` or `Adm`."""
    if outside := [k for k in state if not k.startswith("model.")]:
        raise GentkError(
            f"EDM weights: {outside[0]} is not below `model.`", hint="hand over the preconditioner's state"
        )
    return _checked("EDM weights", {k.removeprefix("model."): v for k, v in state.items()}, net)


def score_sde_ema(shadow_params: Sequence[Tensor], state: State) -> dict[str, Tensor]:
    """A checkpoint's unnamed moving averages under the names of its `model`, what is not averaged taken from there.

    The list is in the order of the trainable parameters, which is that of `state` without the buffer `sigmas` and
    without the fixed frequencies `all_modules.0.W`. Raises GentkError when number or shapes say otherwise.
    """
    names = [k for k in state if not k.endswith(_FIXED)]
    if len(names) != len(shadow_params):
        raise GentkError(f"score_sde weights: {len(shadow_params)} averages for {len(names)} parameters", hint=_HINT)
    averages = dict(zip(names, shadow_params, strict=True))
    if found := faults({k: state[k] for k in names}, averages):
        raise GentkError(f"score_sde weights: averages: {found}", hint=_HINT)
    return {**state, **averages}


_FIXED = ("sigmas", "all_modules.0.W")


def score_sde(state: State, net: nn.Module) -> dict[str, Tensor]:
    """`[module.]all_modules.N.*` of score_sde_pytorch or RectifiedFlow as the state of a `SongUNet`.

    Their configuration is that of BigGAN blocks without an output pyramid: all of the published CIFAR-10 ones. The
    buffer `sigmas` is left out, a table of levels that networks of continuous time do not read.
    """
    assert isinstance(net, SongUNet)
    given = {k.removeprefix("module.").removeprefix("all_modules."): v for k, v in state.items()}
    given.pop("sigmas", None)
    out = _filters(net)
    for n, (to, names) in enumerate(_score_sde_modules(net)):
        for theirs, ours in names.items():
            if f"{n}.{theirs}" in given:
                out[f"{to}.{ours}"] = given.pop(f"{n}.{theirs}")
        if names is _ATTENTION:
            out |= _attention(given, n, to)
    return _checked("score_sde weights", out | {f"all_modules.{k}": v for k, v in given.items()}, net)


def guided_diffusion(state: State, net: nn.Module, order: Literal["legacy", "new"]) -> dict[str, Tensor]:
    """The state of a guided-diffusion network (scale-shift norm, resampling in blocks) as that of an `Adm`.

    `order`: of the attention's channels, "new" for networks trained with `use_new_attention_order` (64 x 64), else
    "legacy" (256 x 256, LSUN).
    """
    assert isinstance(net, Adm)
    given, out = dict(state), _filters(net)
    for theirs, ours in _guided_diffusion_names(net).items():
        for part in ("weight", "bias"):
            if (value := given.pop(f"{theirs}.{part}", None)) is not None:
                out[f"{ours}.{part}"] = value
    blocks = {name: m for name, m in net.named_modules() if isinstance(m, Block) and m.heads}
    for name, block in blocks.items():
        for part in ("weight", "bias"):
            if (value := out.get(f"{name}.qkv.{part}")) is not None and not value.shape[0] % (3 * block.heads):
                split, axis = ((block.heads, 3, -1), 1) if order == "legacy" else ((3, block.heads, -1), 0)
                value = value.reshape(*split, *value.shape[1:]).movedim(axis, 2)
                out[f"{name}.qkv.{part}"] = value.flatten(0, 2)
        for key in (f"{name}.qkv.weight", f"{name}.proj.weight"):
            if key in out and out[key].dim() == 3:  # theirs are convolutions of one dimension
                out[key] = out[key][..., None]
    if (label := given.pop("label_emb.weight", None)) is not None:
        out["map_label.weight"] = label.T.contiguous()
    return _checked("guided-diffusion weights", out | given, net)


def diffusers_ddpm(state: State, net: nn.Module) -> dict[str, Tensor]:
    """The state of a diffusers `UNet2DModel` as that of a `DdpmUNet`; older files have other names for attention."""
    old = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

    def renamed(key: str) -> str:
        head, _, tail = key.rpartition(".")
        stem, _, last = head.rpartition(".")
        return f"{stem}.{old[last]}.{tail}" if last in old and "attentions" in stem else key

    return _checked("diffusers weights", {renamed(k): v for k, v in state.items()}, net)


# --- what the maps are made of ----------------------------------------------------------------------------------------


def _checked(what: str, state: State, net: nn.Module) -> dict[str, Tensor]:
    own = net.state_dict()
    if found := faults(own, state):
        raise GentkError(f"{what}: {found}", hint=_HINT)
    return {k: state[k] for k in own}


def _filters(net: nn.Module) -> dict[str, Tensor]:
    """The resampling filters, which are constants that other packages do not store."""
    kinds = (Resample, ResampleConv, AuxConv)
    return {
        f"{name}.resample_filter": resampling_filter(m.taps) for name, m in net.named_modules() if isinstance(m, kinds)
    }


def _pairs(names: Mapping[str, str]) -> dict[str, str]:
    return {f"{theirs}.{part}": f"{ours}.{part}" for theirs, ours in names.items() for part in ("weight", "bias")}


_PLAIN = {"weight": "weight", "bias": "bias"}
_FREQUENCIES = {"W": "freqs"}
_AUX = {"Conv2d_0.weight": "weight", "Conv2d_0.bias": "bias"}
_ATTENTION = _pairs({"GroupNorm_0": "norm2"})
_BLOCK = _pairs(
    {
        "GroupNorm_0": "norm0",
        "Conv_0": "conv0",
        "Dense_0": "affine",
        "GroupNorm_1": "norm1",
        "Conv_1": "conv1",
        "Conv_2": "skip",
    }
)


def _score_sde_modules(net: SongUNet) -> Iterator[tuple[str, dict[str, str]]]:
    """Their modules in order: where each goes, and its tensors' names there and here."""
    if net.embedding == "fourier":
        yield "map_noise", _FREQUENCIES
    yield "map_layer0", _PLAIN
    yield "map_layer1", _PLAIN
    for part in ("enc", "dec"):
        for name, module in net.get_submodule(part).named_children():
            to = f"{part}.{name}"
            if isinstance(module, Block):
                yield to, _BLOCK
                if module.heads:
                    yield to, _ATTENTION
            else:
                yield to, _AUX if isinstance(module, AuxConv) else _PLAIN


def _attention(given: dict[str, Tensor], n: int, to: str) -> dict[str, Tensor]:
    """Takes the four linear maps of attention module n out of `given`: query, key and value become one convolution.

    Theirs multiply from the right. Where one is missing, what is there stays in `given` for the check to find.
    """
    keys = [f"{n}.NIN_{i}.{part}" for part in ("W", "b") for i in range(4)]
    if not all(k in given for k in keys) or len({given[k].shape for k in keys[:4]}) > 1:
        return {}
    q, k, v, proj, *biases = (given.pop(key) for key in keys)
    return {
        f"{to}.qkv.weight": torch.stack([q.T, k.T, v.T], 1).flatten(0, 1)[..., None, None],
        f"{to}.qkv.bias": torch.stack(biases[:3], 1).flatten(),
        f"{to}.proj.weight": proj.T.contiguous()[..., None, None],
        f"{to}.proj.bias": biases[3],
    }


_RESIDUAL = {
    "in_layers.0": "norm0",
    "in_layers.2": "conv0",
    "emb_layers.1": "affine",
    "out_layers.0": "norm1",
    "out_layers.3": "conv1",
    "skip_connection": "skip",
}
_ATTENDING = {"norm": "norm2", "qkv": "qkv", "proj_out": "proj"}


def _guided_diffusion_names(net: Adm) -> dict[str, str]:
    """Their modules with weights, and where each goes."""
    names = {"time_embed.0": "map_layer0", "time_embed.2": "map_layer1", "out.0": "out_norm", "out.2": "out_conv"}

    def block(theirs: str, first: int, ours: str) -> int:
        """Notes the block and its attention at the entries from `first`; returns the next free one."""
        names.update({f"{theirs}.{first}.{k}": f"{ours}.{v}" for k, v in _RESIDUAL.items()})
        if not cast(Block, net.get_submodule(ours)).heads:
            return first + 1
        names.update({f"{theirs}.{first + 1}.{k}": f"{ours}.{v}" for k, v in _ATTENDING.items()})
        return first + 2

    for i, (name, module) in enumerate(net.enc.named_children()):
        if isinstance(module, Block):
            block(f"input_blocks.{i}", 0, f"enc.{name}")
        else:
            names[f"input_blocks.{i}.0"] = f"enc.{name}"
    i, free = -1, 0
    for name, _ in net.dec.named_children():
        if name.endswith("_in0"):
            free = block("middle_block", 0, f"dec.{name}")
        elif name.endswith("_in1"):
            block("middle_block", free, f"dec.{name}")
        elif name.endswith("_up"):  # what doubles the side is the last entry of the level below
            block(f"output_blocks.{i}", free, f"dec.{name}")
        else:
            i += 1
            free = block(f"output_blocks.{i}", 0, f"dec.{name}")
    return names


def edm_section(
    kwargs: Mapping[str, object],
) -> tuple[schema.SongUNet | schema.Adm, tuple[int, int, int], int]:
    """Section, shape of the data and number of classes of an EDM network, by the arguments it was built with.

    `kwargs`: `_init_kwargs` of the preconditioner (EDMPrecond, VPPrecond, VEPrecond) with its `model_type`. Raises
    GentkError for an architecture that gentk does not have.
    """
    given = {**kwargs}
    kind = given.pop("model_type", "DhariwalUNet")  # EDMPrecond's own default
    size, channels = given.pop("img_resolution", None), given.pop("img_channels", 3)
    classes = given.pop("label_dim", 0)
    for name in _ELSEWHERE:
        given.pop(name, None)
    table: dict[str, tuple[str, object]] = {
        "model_channels": ("width", 128 if kind == "SongUNet" else 192),
        "channel_mult": ("multipliers", (1, 2, 2, 2) if kind == "SongUNet" else (1, 2, 3, 4)),
        "num_blocks": ("blocks", 4 if kind == "SongUNet" else 3),
        "attn_resolutions": ("attention", (16,) if kind == "SongUNet" else (32, 16, 8)),
        "augment_dim": ("augment", 0),
        "dropout": ("dropout", 0.1),
    }
    fixed: dict[str, object] = {"channel_mult_emb": 4}
    if kind == "SongUNet":
        table |= {
            "embedding_type": ("embedding", "positional"),
            "encoder_type": ("encoder", "standard"),
            "resample_filter": ("taps", (1, 1)),
        }
        fixed["decoder_type"] = "standard"
        fixed["channel_mult_noise"] = 2 if given.get("embedding_type") == "fourier" else 1
    settings = {ours: given.pop(theirs, default) for theirs, (ours, default) in table.items()}
    odd = {k: v for k, v in given.items() if k not in fixed or v != fixed[k]}
    if kind not in ("SongUNet", "DhariwalUNet") or not isinstance(size, int) or odd:
        said = f"model_type {kind}, img_resolution {size}" + (f", {odd}" if odd else "")
        raise GentkError(f"EDM network: not an architecture that gentk has: {said}", hint=_HINT)
    sides = [size >> level for level in range(len(cast(Sequence[int], settings["multipliers"])))]
    settings["attention"] = [r for r in cast(Sequence[int], settings["attention"]) if r in sides]
    if kind == "SongUNet":
        settings["taps"] = [float(tap) for tap in cast(Sequence[float], settings["taps"])]
    kind_of: type[schema.SongUNet | schema.Adm] = schema.SongUNet if kind == "SongUNet" else schema.Adm
    try:  # through JSON, where the strict schemas take arrays for tuples
        section = kind_of.model_validate_json(
            json.dumps({"name": "songunet" if kind == "SongUNet" else "adm", **settings})
        )
    except ValidationError as e:
        (fault, *_) = e.errors()
        raise GentkError(f"EDM network: {fault['loc'][0]}: {fault['msg']}", hint=_HINT) from e
    return section, (cast(int, channels), size, size), cast(int, classes)


_ELSEWHERE = (
    "use_fp16",
    "sigma_min",
    "sigma_max",
    "sigma_data",
    "beta_d",
    "beta_min",
    "M",
    "epsilon_t",
    "label_dropout",
)
