"""Prompts as batches, their encoders' cache and limits, the VAE's dtypes, and what a folder may lack."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from gentk.errors import GentkError, MissingAsset, RecipeError, RunFailed
from gentk.nets import text
from gentk.nets.text import codec, encoders, pixart
from gentk.nets.text.encoders import Prompter
from gentk.nets.text.prompts import Null, Prompts
from gentk.processes import latent
from gentk.recipe import pipelines
from gentk.recipe.prompts import Latent
from tests.nets import tiny_pipelines

CPU = torch.device("cpu")


def batch(n: int, seed: int = 0) -> Prompts:
    gen = torch.Generator().manual_seed(seed)
    return Prompts(
        torch.randn(n, 3, 4, generator=gen), torch.ones(n, 3, dtype=torch.int64), torch.randn(n, 5, generator=gen)
    )


def same(a: Prompts, b: Prompts) -> bool:
    return a.tensors().keys() == b.tensors().keys() and all(
        torch.equal(x, b.tensors()[name]) for name, x in a.tensors().items()
    )


def test_prompts_are_chosen_joined_and_hidden() -> None:
    p, null = batch(4), batch(1, seed=1)
    assert len(p) == 4
    assert same(p[[2, 0, 2]], Prompts.cat([p[2:3], p[:1], p[torch.tensor([2])]]))
    hidden = torch.tensor([True, False, False, True])
    assert same(p.where(hidden, null), Prompts.cat([null, p[1:3], null]))
    assert same(null.expand(3), Prompts.cat([null] * 3))
    half = p.to(torch.float16)
    assert (half.embeds.dtype, half.pooled.dtype) == (torch.float16, torch.float16)  # type: ignore[union-attr]
    assert half.tensors()["mask"].dtype == torch.int64  # a mask is no measured quantity
    bare = Prompts(p.embeds)
    assert bare.where(hidden, Prompts(null.embeds)).tensors().keys() == {"embeds"}


def test_a_null_prompt_is_told_where_nothing_is() -> None:
    null, p, x = Null(), batch(2), torch.zeros(2, 1)
    with pytest.raises(ValueError, match="no null prompt"):
        null(None, x)
    with pytest.raises(ValueError, match="2 null prompts"):
        null.set(p)
    null.set(batch(1, seed=1))
    assert same(null(None, x), batch(1, seed=1).expand(2))
    assert same(null(p, x), p)
    with pytest.raises(ValueError, match="2 prompts for 3 samples"):
        null(p, torch.zeros(3, 1))
    assert not null.state_dict(), "it is a pipeline's, not one of the weights that are trained and exported"
    assert null.to(torch.float64).embeds.dtype == torch.float64  # type: ignore[union-attr]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GENTK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders that no test changes."""
    root = tmp_path_factory.mktemp("made")
    tiny_pipelines.sd15(root / "sd15")
    tiny_pipelines.sd3(root / "sd3")
    return root


def prompter(place: Path, **more: Any) -> Prompter:
    return Prompter(place, pipelines.family_of(place), dtype=torch.float32, width=32, **more)


def cached(home: Path) -> list[Path]:
    return sorted((home / "cache" / "prompts").rglob("*.safetensors"))


def test_prompts_are_embedded_once(made: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prompter(made / "sd15").encode(["a cat", "a dog", "a cat"])
    assert len(cached(home)) == 2
    loads: list[str] = []
    monkeypatch.setattr(encoders.hub, "pretrained", lambda name, place: loads.append(name))
    assert same(prompter(made / "sd15").encode(["a cat", "a dog", "a cat"]), first)
    assert loads == [], "the encoder was loaded for prompts that are on the disk"
    monkeypatch.undo()
    monkeypatch.setenv("GENTK_CACHE", str(home / "cache"))
    broken = cached(home)[0]
    broken.write_bytes(broken.read_bytes()[:20])  # a file cut off by a full disk
    assert same(prompter(made / "sd15").encode(["a cat", "a dog", "a cat"]), first)
    assert same(prompter(made / "sd15", cache=False).encode(["a bird"]), prompter(made / "sd15").encode(["a bird"]))
    assert len(cached(home)) == 3


def test_the_cache_knows_other_weights_and_dtypes(made: Path, home: Path) -> None:
    """The same prompt under another encoder is another embedding: the name of its folder is a hash of all files."""
    one = prompter(made / "sd15")
    names = {one.fingerprint(), Prompter(made / "sd15", "unet", dtype=torch.bfloat16).fingerprint()}
    other = shutil.copytree(made / "sd15", home / "other")
    tokens = other / "tokenizer" / "tokenizer_config.json"
    tokens.write_text(tokens.read_text() + "\n")
    names.add(prompter(other).fingerprint())
    names |= {prompter(made / "sd3").fingerprint(), prompter(made / "sd3", t5=False).fingerprint()}
    assert len(names) == 5
    assert prompter(shutil.copytree(made / "sd15", home / "copy")).fingerprint() == one.fingerprint()


def test_an_embedding_does_not_depend_on_its_neighbours(made: Path, home: Path) -> None:
    together = prompter(made / "sd3", cache=False).encode(["a cat", "a much longer prompt than that", "two dogs"])
    for k, each in enumerate(["a cat", "a much longer prompt than that", "two dogs"]):
        assert same(prompter(made / "sd3", cache=False).encode([each]), together[[k]])


def test_long_prompts_are_counted(made: Path, home: Path) -> None:
    """The tokenizers of these tests have a token for each letter: CLIP takes 75 of them and its two marks."""
    letters = ["x" * 75, "x" * 76, "x" * 200]
    own = prompter(made / "sd15", cache=False)
    assert own.limits == {"text_encoder": 77}
    own.encode(letters[:1])
    assert own.cut == {}
    own.encode(letters)
    assert own.cut == {"text_encoder": 2}
    three = prompter(made / "sd3", cache=False)
    assert three.limits == {"text_encoder": 77, "text_encoder_2": 77, "text_encoder_3": 256}
    three.encode([*letters, "y" * 300])
    assert three.cut == {"text_encoder": 3, "text_encoder_2": 3, "text_encoder_3": 1}


def test_overflow_of_the_vae_is_named(made: Path) -> None:
    """A decoder of which one image reaches beyond float16's 65504 inside, as those of Stable Diffusion XL do."""
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    z[0] *= 1e-3  # the other one alone is too much

    def decoded(dtype: torch.dtype) -> torch.Tensor:
        own = codec.load(made / "sd15", torch.float32)
        with torch.no_grad():
            own.vae.post_quant_conv.bias.zero_()
            own.vae.decoder.conv_in.weight *= 3e4
            own.vae.to(dtype)
            return own.decode(z)

    assert torch.isfinite(decoded(torch.float32)).all()
    assert torch.isfinite(decoded(torch.bfloat16)).all()
    with pytest.raises(RunFailed, match="overflow in float16: 1 of 2 images") as found:
        decoded(torch.float16)
    assert "latent.decode" in found.value.hint
    z[0] = torch.nan
    with pytest.raises(RunFailed, match="what it was given is not finite"):  # not the VAE's fault
        decoded(torch.float32)


def test_vae_and_network_compute_in_the_dtypes_asked_for(made: Path, home: Path) -> None:
    section = Latent(dtype="bfloat16", decode="float32")
    model = latent.load(str(made / "sd15"), where=CPU, section=section)
    assert {p.dtype for p in model.denoiser.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model.codec.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in (*model.denoiser.parameters(), *model.codec.parameters()))
    x = torch.randn(1, *model.shape, generator=torch.Generator().manual_seed(0))
    x0 = model.denoiser(x, torch.tensor(500.0), model.prompter.encode(["a cat"]))
    assert x0.dtype == torch.float32
    exact = latent.load(str(made / "sd15"), where=CPU)
    wide = exact.denoiser(x, torch.tensor(500.0), exact.prompter.encode(["a cat"]))
    # bfloat16 keeps 8 bits; the 30 layers in a row, each rounding its output to 2^-9, may add up to 30 x 2^-9 = 6 %
    assert float((x0 - wide).abs().max() / wide.abs().max()) < 0.06


@pytest.mark.parametrize(
    ("kind", "size", "said", "remedy"),
    [("sd15", 17, "17 pixels are no whole number of 2", "16"), ("sd3", 34, "of 4 (2 pixels a latent, 2 latents", "32"),
     ("sd3", 128, "32 patches wide", "64")],
)  # fmt: skip
def test_sizes_that_do_not_fit(made: Path, home: Path, kind: str, size: int, said: str, remedy: str) -> None:
    with pytest.raises(RecipeError) as found:
        latent.load(str(made / kind), where=CPU, section=Latent(size=size))
    assert said in str(found.value)
    assert f"latent.size={remedy}" in found.value.hint
    assert latent.load(str(made / kind), where=CPU, section=Latent(size=64)).pixels == 64


def test_folders_that_are_not_whole(made: Path, home: Path) -> None:
    def without(*names: str) -> str:
        place = shutil.copytree(made / "sd15", home / "-".join(names).replace("/", "-"))
        for name in names:
            (place / name).unlink()
        return str(place)

    weights = "unet/diffusion_pytorch_model.safetensors"
    with pytest.raises(MissingAsset, match=r"no diffusion_pytorch_model\.safetensors"):
        latent.load(without(weights), where=CPU)
    place = Path(without(weights, "unet/config.json"))
    with pytest.raises(MissingAsset, match="config"):
        latent.load(str(place), where=CPU)
    with pytest.raises(MissingAsset, match="scheduler_config"):
        latent.load(without("scheduler/scheduler_config.json"), where=CPU)
    with pytest.raises(GentkError, match="no CLIPTextModel"):
        latent.load(without("text_encoder/model.safetensors"), where=CPU)


@pytest.mark.parametrize(
    ("file", "changes", "said"),
    [
        ("model_index.json", {"_class_name": "FluxPipeline"}, "a FluxPipeline"),
        ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}, "rescaled"),
        ("scheduler/scheduler_config.json", {"prediction_type": "flow_prediction"}, "flow_prediction"),
        ("unet/config.json", {"_class_name": "UNet2DModel"}, "a UNet2DModel, not a UNet2DConditionModel"),
    ],
)
def test_models_of_other_kinds(made: Path, home: Path, file: str, changes: dict[str, Any], said: str) -> None:
    place = shutil.copytree(made / "sd15", home / "odd")
    value = json.loads((place / file).read_text()) | changes
    (place / file).write_text(json.dumps(value))
    with pytest.raises(GentkError, match=said):
        latent.load(str(place), where=CPU)


def test_networks_that_ask_for_more_are_refused() -> None:
    diffusers, _ = tiny_pipelines.packages()
    config = dict(tiny_pipelines.unet(diffusers, in_channels=9, out_channels=4).config)
    with pytest.raises(GentkError, match="9 channels in, 4 out"):
        text.build("unet", config)


# Where the published models differ from diffusers' defaults, and their numbers of parameters.
PUBLISHED: dict[str, tuple[str, dict[str, Any], int]] = {
    "Stable Diffusion 1.5": ("unet", {"cross_attention_dim": 768, "sample_size": 64}, 859_520_964),
    "PixArt-alpha, 512 pixels": (
        "pixart",
        {"sample_size": 64, "use_additional_conditions": False, "caption_channels": 4096},
        610_856_096,
    ),
    "Stable Diffusion 3 medium": (
        "sd3",
        {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 192},
        2_028_328_000,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_networks_of_the_published_size(name: str) -> None:
    tiny_pipelines.packages()
    family, config, parameters = PUBLISHED[name]
    with torch.device("meta"):
        net = text.build(family, config)  # type: ignore[arg-type]
    assert sum(p.numel() for p in net.parameters()) == parameters


def test_the_large_pixart_is_told_the_size_of_the_image() -> None:
    """PixArt for 1024 pixels takes height and width in pixels and their ratio; its pipeline gives them as here."""
    diffusers, _ = tiny_pipelines.packages()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        core = diffusers.PixArtTransformer2DModel(
            sample_size=128, num_layers=1, patch_size=2, attention_head_dim=8, num_attention_heads=3,
            caption_channels=4, in_channels=4, out_channels=8, cross_attention_dim=24, attention_bias=True,
            activation_fn="gelu-approximate", norm_type="ada_norm_single", norm_elementwise_affine=False,
        ).eval()  # fmt: skip
        tiny_pipelines._wake(core)
    net, p = pixart.Net(core), batch(2)
    x, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([3.0, 700.0])

    def told(side: float) -> torch.Tensor:
        sizes = {"resolution": torch.full((2, 2), side), "aspect_ratio": torch.ones(2, 1)}
        return core(
            x, p.embeds, timestep=t, encoder_attention_mask=p.mask, added_cond_kwargs=sizes
        ).sample[:, :4]  # fmt: skip

    with torch.no_grad():
        assert torch.equal(net(x, t, p), told(64.0))
        assert float((net(x, t, p) - told(8.0)).abs().max()) > 1e-3  # latents for pixels
