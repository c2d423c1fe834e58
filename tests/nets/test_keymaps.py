"""Key maps: the references' own names and outputs; and what does not belong together is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gentk import nets
from gentk.errors import GentkError
from gentk.nets import keymaps
from gentk.recipe import schema

from .formula import fill, numbers, sample, weight

FIXTURE = json.loads((Path(__file__).parent / "fixtures" / "published_unets.json").read_text())
TOLERANCE = 1e-5  # of the output's root mean square; measured up to 5.4e-6
SONG: dict[str, Any] = {"name": "songunet", "width": 16, "multipliers": (1, 2), "blocks": 2, "attention": (8,)}
SECTIONS = {
    "ddpmpp": schema.SongUNet(**SONG),
    "ncsnpp": schema.SongUNet(**SONG, embedding="fourier", encoder="residual", taps=(1.0, 3.0, 3.0, 1.0)),
    "ddpmpp-three": schema.SongUNet(**{**SONG, "multipliers": (1, 1, 2), "blocks": 1, "attention": (4, 16)}),
}


def song(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """Our network, and the reference's state by the formula."""
    net = nets.build(SECTIONS[name], shape=(3, 16, 16), classes=0).eval()
    return net, {key: weight(key, shape) for key, shape in FIXTURE["score_sde"][name]["state"]}


def guided(order: str) -> tuple[nn.Module, dict[str, Tensor]]:
    case = FIXTURE["guided_diffusion"][order]
    section = schema.Adm(
        name="adm", width=128, multipliers=(1, 1), blocks=1, attention=(8,), learned_sigma=case["learned_sigma"]
    )
    net = nets.build(section, shape=(3, 16, 16), classes=case["classes"]).eval()
    return net, {key: weight(key, shape) for key, shape in case["state"]}


def error(net: nn.Module, state: dict[str, Tensor], case: dict[str, Any], cond: Tensor | None = None) -> float:
    net.load_state_dict(state)
    with torch.no_grad():
        out = net(4 * numbers("x", (2, 3, 16, 16)), torch.tensor(case["label"]), cond)
    return float((torch.tensor(sample(out)) - torch.tensor(case["out"])).abs().max()) / float(case["rms"])


@pytest.mark.parametrize("name", SECTIONS)
def test_score_sde_gives_the_reference_s_output(name: str) -> None:
    net, state = song(name)
    case = FIXTURE["score_sde"][name]
    assert case["rms"] > 0.3
    assert error(net, keymaps.score_sde(state, net), case) < TOLERANCE
    assert error(net, keymaps.score_sde({f"module.{k}": v for k, v in state.items()}, net), case) < TOLERANCE
    # negative controls: linear maps not transposed, query and key exchanged for value and key
    for swap in (lambda k, v: v.T if "NIN" in k and k.endswith("W") else v, None):
        if swap:
            wrong = {k: swap(k, v) for k, v in state.items()}
        else:
            wrong = {k: state[k.replace("NIN_0", "NIN_2") if "NIN_0" in k else k] for k in state}
        assert error(net, keymaps.score_sde(wrong, net), case) > 10 * TOLERANCE


@pytest.mark.parametrize("name", SECTIONS)
def test_averages_get_their_names(name: str) -> None:
    """The list is that of the trainable parameters in the order of the state: not the levels, not the frequencies."""
    net, state = song(name)
    shadow = [v for k, v in state.items() if not k.endswith(("sigmas", "all_modules.0.W"))]
    raw = {f"module.{k}": torch.zeros_like(v) if not k.endswith("all_modules.0.W") else v for k, v in state.items()}
    named = keymaps.score_sde_ema(shadow, raw)
    assert list(named) == list(raw)
    assert error(net, keymaps.score_sde(named, net), FIXTURE["score_sde"][name]) < TOLERANCE
    with pytest.raises(GentkError, match=f"{len(shadow) - 1} averages for {len(shadow)} parameters"):
        keymaps.score_sde_ema(shadow[1:], raw)
    with pytest.raises(GentkError, match=r"averages: .*has shape"):
        keymaps.score_sde_ema([*shadow[1:], shadow[0]], raw)


@pytest.mark.parametrize("order", ["legacy", "new"])
def test_guided_diffusion_gives_the_reference_s_output(order: Any) -> None:
    net, state = guided(order)
    case = FIXTURE["guided_diffusion"][order]
    cond = torch.tensor([3, 6]) if case["classes"] else None
    assert case["rms"] > 0.3
    assert error(net, keymaps.guided_diffusion(state, net, order), case, cond) < TOLERANCE
    other: Any = "new" if order == "legacy" else "legacy"
    assert error(net, keymaps.guided_diffusion(state, net, other), case, cond) > 10 * TOLERANCE


def test_edm_names_lose_their_prefix_and_nothing_else() -> None:
    net = nets.build(SECTIONS["ncsnpp"], shape=(3, 16, 16), classes=5)
    state = fill(net.state_dict())
    mapped = keymaps.edm({f"model.{k}": v for k, v in state.items()}, net)
    assert mapped.keys() == state.keys()
    assert all(mapped[k] is v for k, v in state.items())
    with pytest.raises(GentkError, match=r"sigma is not below `model\.`"):
        keymaps.edm({**{f"model.{k}": v for k, v in state.items()}, "sigma": torch.ones(1)}, net)


def test_a_network_on_the_meta_device_will_do() -> None:
    net, state = song("ncsnpp")
    with torch.device("meta"):
        empty = nets.build(SECTIONS["ncsnpp"], shape=(3, 16, 16), classes=0)
    want, got = keymaps.score_sde(state, net), keymaps.score_sde(state, empty)
    assert want.keys() == got.keys()
    assert all(torch.equal(got[k], v) for k, v in want.items())
    assert got["enc.8x8_down.conv0.resample_filter"].sum().item() == pytest.approx(1)


def maps() -> dict[str, tuple[Any, dict[str, Tensor], str, str]]:
    """By name: the map of a state, the state, a key of a matrix in it, and our name for the same."""
    net, state = song("ddpmpp")
    adm, guided_state = guided("new")
    ddpm = nets.build(DDPM, shape=(3, 8, 8), classes=0)
    return {
        "edm": (
            lambda s: keymaps.edm(s, net),
            {f"model.{k}": v for k, v in net.state_dict().items()},
            "model.map_layer0.weight",
            "map_layer0.weight",
        ),
        "score_sde": (lambda s: keymaps.score_sde(s, net), state, "all_modules.0.weight", "map_layer0.weight"),
        "score_sde attention": (lambda s: keymaps.score_sde(s, net), state, ATTENDING, "enc.8x8_block0.qkv.weight"),
        "guided-diffusion": (
            lambda s: keymaps.guided_diffusion(s, adm, "new"),
            guided_state,
            "time_embed.0.weight",
            "map_layer0.weight",
        ),
        "guided-diffusion attention": (
            lambda s: keymaps.guided_diffusion(s, adm, "new"),
            guided_state,
            "input_blocks.3.1.qkv.weight",
            "enc.8x8_block0.qkv.weight",
        ),
        "diffusers": (
            lambda s: keymaps.diffusers_ddpm(s, ddpm),
            ddpm.state_dict(),
            "time_embedding.linear_1.weight",
            "time_embedding.linear_1.weight",
        ),
    }


DDPM = schema.DdpmUNet(name="ddpm-unet", width=8, multipliers=(1, 2), blocks=1, attention=(4,), groups=4)
ATTENDING = "all_modules.7.NIN_0.W"


@pytest.mark.parametrize("name", maps())
def test_what_is_missing_unexpected_or_misshapen_is_named(name: str) -> None:
    mapped, state, key, ours = maps()[name]
    mapped(state)
    with pytest.raises(GentkError, match=f"missing {ours}") as failure:
        mapped({k: v for k, v in state.items() if k != key})
    assert failure.value.hint
    prefix = "model." if name == "edm" else ""
    with pytest.raises(GentkError, match=r"unexpected .*else\.weight"):
        mapped({**state, f"{prefix}else.weight": torch.zeros(2)})
    with pytest.raises(GentkError, match=r"weight has shape|missing .*qkv.weight"):
        mapped({**state, key: torch.zeros(3, *state[key].shape[1:])})


def test_score_sde_weights_of_another_depth_are_refused() -> None:
    net, _ = song("ddpmpp")
    _, other = song("ddpmpp-three")
    with pytest.raises(GentkError, match=r"score_sde weights: .*; and [0-9]+ more"):
        keymaps.score_sde(other, net)


# --- settings of EDM's networks ---------------------------------------------------------------------------------------

VP: dict[str, Any] = {
    "img_resolution": 32,
    "img_channels": 3,
    "label_dim": 10,
    "use_fp16": False,
    "model_type": "SongUNet",
    "embedding_type": "positional",
    "encoder_type": "standard",
    "decoder_type": "standard",
    "channel_mult_noise": 1,
    "resample_filter": [1, 1],
    "model_channels": 128,
    "channel_mult": [2, 2, 2],
    "augment_dim": 9,
    "dropout": 0.13,
}
VE: dict[str, Any] = {"embedding_type": "fourier", "encoder_type": "residual", "channel_mult_noise": 2}


def test_settings_of_the_published_networks() -> None:
    want = schema.SongUNet(name="songunet", augment=9, dropout=0.13)
    assert keymaps.edm_section(VP) == (want, (3, 32, 32), 10)
    section, _, _ = keymaps.edm_section({**VP, **VE, "resample_filter": [1, 3, 3, 1]})
    assert section == want.model_copy(
        update={"embedding": "fourier", "encoder": "residual", "taps": (1.0, 3.0, 3.0, 1.0)}
    )
    adm = {"img_resolution": 64, "img_channels": 3, "label_dim": 1000, "use_fp16": True, "model_type": "DhariwalUNet"}
    imagenet = {**adm, "model_channels": 192, "channel_mult": [1, 2, 3, 4], "dropout": 0.1}
    assert keymaps.edm_section(imagenet) == (schema.Adm(name="adm", dropout=0.1), (3, 64, 64), 1000)


@pytest.mark.parametrize(
    "changes",
    [
        {"decoder_type": "skip"},
        {"channel_mult_noise": 2},
        {"channel_mult_emb": 2},
        {"model_type": "UNet"},
        {"img_resolution": None},
        {"C_1": 0.001},
        {"encoder_type": "skip"},
    ],
)
def test_settings_that_gentk_lacks_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(GentkError, match="EDM network"):
        keymaps.edm_section({**VP, **changes})
