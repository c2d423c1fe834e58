"""SongUNet and ADM against the published networks: names, shapes, and outputs at the same weights.

What the references gave is in `fixtures/published_unets.json` (which says how it was made), at weights and inputs by
`formula`. Errors are relative to the root mean square of the output; measured were up to 1.6e-6, the rounding of some
forty layers in float32.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gentk import nets
from gentk.errors import RecipeError
from gentk.nets import adm, blocks, keymaps, songunet
from gentk.nets.blocks import Block
from gentk.processes.denoiser import Denoiser, at_sigma
from gentk.processes.schedules import VE, VP
from gentk.recipe import schema

from .formula import fill, numbers, sample

FIXTURE = json.loads((Path(__file__).parent / "fixtures" / "published_unets.json").read_text())
TOLERANCE = 5e-6
LABELS = torch.tensor([3, 6])
NCSNPP: dict[str, Any] = {"embedding": "fourier", "encoder": "residual", "taps": (1.0, 3.0, 3.0, 1.0)}


def build(name: str) -> nn.Module:
    """The small network of a case, filled by the formula."""
    case = FIXTURE["edm"][name]
    section, shape, classes = keymaps.edm_section({**case["init"], "model_type": case["class"]})
    net = nets.build(section, shape=shape, classes=classes).eval()
    net.load_state_dict(fill(net.state_dict()))
    return net


def call(net: nn.Module, name: str, cond: Tensor | None = LABELS, augment: Tensor | None = None) -> Tensor:
    init = FIXTURE["edm"][name]["init"]
    side = init["img_resolution"]
    x, c_noise = 4 * numbers("x", (2, 3, side, side)), torch.tensor([-1.1, 0.7])
    with torch.no_grad():
        out: Tensor = net(x, c_noise, cond if init["label_dim"] else None, augment)
    return out


def error(out: Tensor, name: str, key: str = "out") -> float:
    case = FIXTURE["edm"][name]
    return float((torch.tensor(sample(out)) - torch.tensor(case[key])).abs().max()) / float(case["rms"])


def listing(net: nn.Module) -> dict[str, Any]:
    lines = sorted(f"{k} {tuple(v.shape)}" for k, v in net.state_dict().items())
    return {"entries": len(lines), "sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest()}


# --- names, shapes, counts --------------------------------------------------------------------------------------------

SONG = {"name": "songunet", "augment": 9}
FULL: dict[str, tuple[schema.SongUNet | schema.Adm, int, int]] = {
    "cifar10-uncond-vp": (schema.SongUNet(**SONG), 32, 0),
    "cifar10-cond-vp": (schema.SongUNet(**SONG), 32, 10),
    "cifar10-uncond-ve": (schema.SongUNet(**SONG, **NCSNPP), 32, 0),
    "cifar10-cond-ve": (schema.SongUNet(**SONG, **NCSNPP), 32, 10),
    "ffhq-64-vp": (schema.SongUNet(**SONG, multipliers=(1, 2, 2, 2)), 64, 0),
    "ffhq-64-ve": (schema.SongUNet(**SONG, **NCSNPP, multipliers=(1, 2, 2, 2)), 64, 0),
    "baseline-cifar10-vp": (schema.SongUNet(name="songunet", multipliers=(1, 2, 2, 2)), 32, 0),
    "imagenet-64-cond-adm": (schema.Adm(name="adm"), 64, 1000),
}
PARAMETERS = {
    "cifar10-uncond-vp": (425, 55_733_891),
    "cifar10-cond-vp": (427, 55_735_299),
    "cifar10-uncond-ve": (432, 56_397_827),
    "cifar10-cond-ve": (434, 56_400_643),
    "ffhq-64-vp": (553, 61_805_571),
    "ffhq-64-ve": (563, 62_761_091),
    "baseline-cifar10-vp": (552, 61_804_419),
    "imagenet-64-cond-adm": (553, 295_899_267),
}


@pytest.mark.parametrize("name", FULL)
def test_published_networks_key_for_key(name: str) -> None:
    section, side, classes = FULL[name]
    with torch.device("meta"):
        net = nets.build(section, shape=(3, side, side), classes=classes)
    count = sum(p.numel() for p in net.parameters())
    assert (len(net.state_dict()), count) == PARAMETERS[name]
    assert {**listing(net), "parameters": count} == FIXTURE["full"][name]


def test_guided_diffusion_256_has_its_number_of_parameters() -> None:
    section = schema.Adm(name="adm", width=256, multipliers=(1, 1, 2, 2, 4, 4), blocks=2, learned_sigma=True)
    with torch.device("meta"):
        net = nets.build(section, shape=(3, 256, 256), classes=0)
    assert sum(p.numel() for p in net.parameters()) == 552_814_086


@pytest.mark.parametrize("name", FIXTURE["edm"])
def test_small_networks_key_for_key(name: str) -> None:
    assert listing(build(name)) == FIXTURE["edm"][name]["state"]


# --- outputs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FIXTURE["edm"])
def test_output_is_the_reference_s(name: str) -> None:
    net, case = build(name), FIXTURE["edm"][name]
    assert case["rms"] > 0.3  # a silent network would agree with anything
    assert error(call(net, name), name) < TOLERANCE
    if classes := case["init"]["label_dim"]:
        assert error(call(net, name, None), name, "out_no_label") < TOLERANCE
        assert error(call(net, name, torch.full((2,), classes)), name, "out_no_label") < TOLERANCE
        assert error(call(net, name, LABELS - 1), name) > 100 * TOLERANCE
    if "augment_dim" in case["init"]:
        augment = numbers("augment", (2, 9))
        assert error(call(net, name, augment=augment), name, "out_augment") < TOLERANCE
        assert error(call(net, name, augment=torch.zeros(2, 9)), name) < TOLERANCE
        assert error(call(net, name), name, "out_augment") > 100 * TOLERANCE


def each_block(change: Callable[[Block], None]) -> Callable[[nn.Module, pytest.MonkeyPatch], None]:
    def apply(net: nn.Module, _: pytest.MonkeyPatch) -> None:
        for module in net.modules():
            if isinstance(module, Block):
                change(module)

    return apply


def cosines_first(net: nn.Module, patch: pytest.MonkeyPatch) -> None:
    layer = net.get_submodule("map_layer0")
    layer.weight.data = layer.weight.data.roll(layer.weight.shape[1] // 2, 1)


def other_frequencies(net: nn.Module, patch: pytest.MonkeyPatch) -> None:
    for module in (songunet, adm):
        patch.setattr(module, "sinusoids", lambda c, w, last: blocks.sinusoids(c, w, last=not last))


def kinds_slowest(block: Block) -> None:
    """Queries, keys and values in three runs of channels, as most networks have them."""
    if block.heads:
        c = block.proj.weight.shape[0]
        for p in (block.qkv.weight, block.qkv.bias):
            p.data = p.data.reshape(3, c, *p.shape[1:]).transpose(0, 1).reshape(p.shape)


def one_head_more_or_less(block: Block) -> None:
    if block.heads:
        block.heads = 2 if block.heads == 1 else block.heads // 2


def scale_and_shift_swapped(block: Block) -> None:
    for p in (block.affine.weight, block.affine.bias):
        p.data = p.data.roll(len(p) // 2, 0)


def unscaled_sums(block: Block) -> None:
    block.form = replace(block.form, residual=1.0 if block.form.residual != 1 else 0.5**0.5)


def norms(**settings: Any) -> Callable[[nn.Module, pytest.MonkeyPatch], None]:
    def apply(net: nn.Module, _: pytest.MonkeyPatch) -> None:
        for module in net.modules():
            if isinstance(module, nn.GroupNorm):
                other = 1e-5 if module.eps < 5e-6 else 1e-6
                module.eps = other if "eps" in settings else module.eps
                module.num_groups //= 2 if "groups" in settings else 1

    return apply


def labels_unscaled(net: nn.Module, _: pytest.MonkeyPatch) -> None:
    net.get_submodule("map_label").weight.data /= 10**0.5


def nearest_and_mean(net: nn.Module, _: pytest.MonkeyPatch) -> None:
    box = torch.zeros(1, 1, 4, 4)
    box[..., 1:3, 1:3] = 0.25
    for name, buffer in net.named_buffers():
        if name.endswith("resample_filter"):
            buffer.copy_(box)


def unscaled_aux(net: nn.Module, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(songunet, "climb", lambda enc, dec, x, emb, residual: blocks.climb(enc, dec, x, emb, 1.0))


MISTAKES: dict[str, tuple[Callable[[nn.Module, pytest.MonkeyPatch], None], tuple[str, ...]]] = {
    "sin and cos swapped": (cosines_first, ("ddpmpp", "ncsnpp-cond", "adm-cond")),
    "frequencies that end one later or earlier": (other_frequencies, ("ddpmpp", "adm-cond")),
    "q, k, v slowest": (each_block(kinds_slowest), ("ddpmpp", "adm-cond")),
    "another number of heads": (each_block(one_head_more_or_less), ("ddpmpp", "adm-three")),
    "scale and shift swapped": (each_block(scale_and_shift_swapped), ("adm-cond",)),
    "sums scaled otherwise": (each_block(unscaled_sums), ("ddpmpp", "adm-cond")),
    "eps of the other family": (norms(eps=True), tuple(FIXTURE["edm"])),
    "half the groups": (norms(groups=True), ("ddpmpp", "adm-cond")),
    "labels without their sqrt(K)": (labels_unscaled, ("ddpmpp-cond", "ncsnpp-cond")),
    "resampling without the filter": (nearest_and_mean, ("ncsnpp-cond",)),
    "the input's path unscaled": (unscaled_aux, ("ncsnpp-cond",)),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_known_mistakes_are_seen(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    break_it, names = MISTAKES[mistake]
    for name in names:
        net = build(name)
        with monkeypatch.context() as patch:
            break_it(net, patch)
            assert error(call(net, name), name) > 2 * TOLERANCE, name


# --- whole denoisers --------------------------------------------------------------------------------------------------

AROUND: dict[str, tuple[Any, ...]] = {
    "edm": (VE(), "edm", schema.Inputs()),
    "vp": (VP(), "eps", schema.Inputs(scale="process", label="time", factor=999.0)),
    "ve": (VE(), "reverse-eps", schema.Inputs(scale="process", factor=1.0, offset=-0.6931471805599453)),
}


@pytest.mark.parametrize("name", AROUND)
def test_preconditioned_networks(name: str) -> None:
    """EDMPrecond, VPPrecond and VEPrecond around the small networks, at noise levels 0.05 and 3."""
    process, predicts, inputs = AROUND[name]
    case = FIXTURE["preconditioned"][name]
    section = schema.SongUNet(
        name="songunet",
        width=16,
        multipliers=(1, 2),
        blocks=2,
        attention=(8,),
        augment=9,
        **NCSNPP if name == "ve" else {},
    )
    net = nets.build(section, shape=(3, 16, 16), classes=0).eval()
    net.load_state_dict(fill(net.state_dict()))
    s = torch.tensor(case["sigma"])
    noise = s[:, None, None, None] * numbers("noise", (2, 3, 16, 16)) * 3
    x = numbers("x", (2, 3, 16, 16)) * 2 + noise
    with torch.no_grad():
        out = at_sigma(Denoiser(net, process, predicts, 0.5, inputs), x, s)
        torch.testing.assert_close(torch.tensor(sample(out)), torch.tensor(case["out"]), rtol=1e-5, atol=1e-5)
        other = at_sigma(Denoiser(net, process, predicts, 0.5, inputs.model_copy(update={"factor": 0.99})), x, s)
        assert (other - out).abs().max() > 1e-3  # negative control: the label counts


# --- as networks of gentk ---------------------------------------------------------------------------------------------

SMALL: list[Any] = [
    schema.SongUNet(name="songunet", width=16, multipliers=(1, 2), blocks=1, attention=(4,), dropout=0.5),
    schema.SongUNet(name="songunet", width=16, multipliers=(1, 2), blocks=1, attention=(8,), **NCSNPP),
    schema.Adm(name="adm", width=16, multipliers=(1, 2), blocks=1, attention=(4,), head_width=16, dropout=0.5),
]


@pytest.mark.parametrize("section", SMALL, ids=str)
def test_a_gradient_reaches_every_parameter(section: Any) -> None:
    net = nets.build(section, shape=(1, 8, 8), classes=3)
    net.load_state_dict(fill(net.state_dict()))
    net(numbers("x", (4, 1, 8, 8)), torch.linspace(-1, 1, 4), torch.tensor([0, 1, 2, 3])).square().sum().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().max() > 1e-6, name


@pytest.mark.parametrize("section", SMALL, ids=str)
def test_dropout_acts_in_train_mode_alone_and_an_untrained_network_is_silent(section: Any) -> None:
    torch.manual_seed(0)
    net = nets.build(section, shape=(1, 8, 8), classes=0)
    args = numbers("x", (2, 1, 8, 8)), torch.tensor([-1.0, 0.5])
    assert (
        net(*args) - net.state_dict()[next(k for k in reversed(net.state_dict()) if k.endswith("bias"))]
    ).abs().max() == 0
    net.load_state_dict(fill(net.state_dict()))
    with torch.no_grad():
        assert not torch.equal(net(*args), net(*args)) or not section.dropout
        net.eval()
        assert torch.equal(net(*args), net(*args))
        assert net(*args).shape == (2, 1, 8, 8)


def test_what_is_learned_about_variances_is_dropped() -> None:
    plain, learned = (
        nets.build(SMALL[2].model_copy(update={"learned_sigma": on}), shape=(3, 8, 8), classes=0).eval()
        for on in (False, True)
    )
    state = fill(learned.state_dict())
    assert state["out_conv.weight"].shape[0] == 6
    learned.load_state_dict(state)
    plain.load_state_dict({**state, **{f"out_conv.{k}": state[f"out_conv.{k}"][:3] for k in ("weight", "bias")}})
    args = numbers("x", (2, 3, 8, 8)), torch.tensor([3.0, 900.0])
    with torch.no_grad():
        torch.testing.assert_close(learned(*args), plain(*args), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("section", "said"),
    [
        (schema.SongUNet(name="songunet", width=18, attention=()), "net.width: 18 does not fit"),
        (schema.Adm(name="adm", width=24, attention=()), "do not part into heads of 64"),
        (schema.SongUNet(name="songunet", width=15), "net.width: 15 is odd"),
        (schema.SongUNet(name="songunet", attention=(12,)), "no level has a side of 12 pixels"),
        (schema.Adm(name="adm", multipliers=(1, 1, 1, 1, 1, 1, 1)), "need a side divisible by 64"),
    ],
)
def test_what_does_not_fit_is_a_recipe_error(section: Any, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        nets.build(section, shape=(3, 32, 32), classes=0)
