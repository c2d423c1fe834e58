"""Text-to-image pipelines of diffusers, small enough for a test, with random weights and tokenizers made here."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import pytest
import torch

from gentk.nets import weights
from gentk.processes import latent

LETTERS = [c for c in string.printable if c.isprintable() and c != " "]
MARKS = ["<|startoftext|>", "<|endoftext|>"]
WORDS = [*LETTERS, *(c + "</w>" for c in LETTERS), *MARKS]
SEED = 0


def packages() -> tuple[Any, Any]:
    """diffusers and transformers, without progress bars; skips the test where one is absent."""
    diffusers, transformers = pytest.importorskip("diffusers"), pytest.importorskip("transformers")
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.set_verbosity_error()  # what it says of absent packages is not about this code
    return diffusers, transformers


def clip_tokenizer(transformers: Any) -> Any:
    # with `vocab_file` it would know no word and take all prompts for one
    return transformers.CLIPTokenizer(vocab={w: i for i, w in enumerate(WORDS)}, merges=[], model_max_length=77)


def t5_tokenizer(transformers: Any) -> Any:
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((c, -3.0) for c in LETTERS)]
    return transformers.T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=77)


def clip(transformers: Any, kind: str, **more: Any) -> Any:
    ids = {"bos_token_id": len(WORDS) - 2, "eos_token_id": len(WORDS) - 1, "pad_token_id": len(WORDS) - 1}
    config = {
        "vocab_size": len(WORDS),
        "hidden_size": 32,
        "intermediate_size": 37,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 77,
        "projection_dim": 32,
    }
    return getattr(transformers, kind)(transformers.CLIPTextConfig(**config, **ids, **more)).eval()


def t5(transformers: Any) -> Any:
    config = transformers.T5Config(
        vocab_size=128, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
    )
    return transformers.T5EncoderModel(config).eval()


def vae(diffusers: Any, **more: Any) -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=8,
        **more,
    ).eval()


def unet(diffusers: Any, **more: Any) -> Any:
    return diffusers.UNet2DConditionModel(
        **{
            "block_out_channels": (32, 64),
            "layers_per_block": 1,
            "sample_size": 8,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "cross_attention_dim": 32,
            "attention_head_dim": 4,
            "norm_num_groups": 8,
        }
        | more
    ).eval()


def _stable_diffusion(folder: Path, prediction: str, **more: Any) -> Path:
    diffusers, transformers = packages()
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        scheduler = diffusers.DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=True,
            steps_offset=1,
            prediction_type=prediction,
        )
        diffusers.StableDiffusionPipeline(
            vae=vae(diffusers),
            text_encoder=clip(transformers, "CLIPTextModel"),
            tokenizer=clip_tokenizer(transformers),
            unet=unet(diffusers, **more),
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ).save_pretrained(folder)
    return folder


def sd15(folder: Path) -> Path:
    """Stable Diffusion 1.5: predicts noise; 16-pixel images."""
    return _stable_diffusion(folder, "epsilon")


def sd2(folder: Path) -> Path:
    """Stable Diffusion 2.1: predicts v."""
    return _stable_diffusion(folder, "v_prediction", use_linear_projection=True)


def pixart(folder: Path) -> Path:
    """PixArt-alpha: predicts noise and variances; 16-pixel images."""
    diffusers, transformers = packages()
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        transformer = diffusers.PixArtTransformer2DModel(
            sample_size=8,
            num_layers=2,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=3,
            caption_channels=32,
            in_channels=4,
            out_channels=8,
            cross_attention_dim=24,
            attention_bias=True,
            activation_fn="gelu-approximate",
            norm_type="ada_norm_single",
            norm_elementwise_affine=False,
            use_additional_conditions=False,
        ).eval()
        _wake(transformer)
        diffusers.PixArtAlphaPipeline(
            tokenizer=t5_tokenizer(transformers),
            text_encoder=t5(transformers),
            vae=vae(diffusers),
            transformer=transformer,
            scheduler=diffusers.DDIMScheduler(
                beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=False, set_alpha_to_one=True
            ),
        ).save_pretrained(folder)
    return folder


def sd3(folder: Path, t5_too: bool = True) -> Path:
    """Stable Diffusion 3: predicts velocity, shift 3, VAE with a shift; 32-pixel images; with or without T5."""
    diffusers, transformers = packages()
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        transformer = diffusers.SD3Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=32,
            caption_projection_dim=32,
            pooled_projection_dim=64,
            pos_embed_max_size=16,
        ).eval()
        _wake(transformer)
        diffusers.StableDiffusion3Pipeline(
            transformer=transformer,
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=vae(
                diffusers, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.0609, scaling_factor=1.5035
            ),
            text_encoder=clip(transformers, "CLIPTextModelWithProjection", hidden_act="quick_gelu"),
            tokenizer=clip_tokenizer(transformers),
            text_encoder_2=clip(transformers, "CLIPTextModelWithProjection", hidden_act="gelu"),
            tokenizer_2=clip_tokenizer(transformers),
            text_encoder_3=t5(transformers) if t5_too else None,
            tokenizer_3=t5_tokenizer(transformers) if t5_too else None,
        ).save_pretrained(folder)
    return folder


def generator(base: Path, path: Path, sigma_init: float | str, seed: int = 1) -> Path:
    """A one-step generator as `distill` would export one: the pipeline's own network, moved by some noise."""
    model = latent.load(str(base), where=torch.device("cpu"))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for p in model.denoiser.parameters():
            p += 0.02 * torch.randn_like(p)
    header = model.header | {"kind": "generator", "sigma_init": sigma_init}
    weights.save(path, model.denoiser.net, header)
    return path


@torch.no_grad()
def _wake(net: Any) -> None:
    """Some weights of transformers start at zero, so that prompts and times would not show."""
    for p in net.parameters():
        p += 0.05 * torch.randn_like(p)
