"""Networks of the published formats, small enough for a test, with random weights that it makes itself."""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

SIDE = 32
CPU = torch.device("cpu")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def pictures(n: int = 2, height: int = 48, width: int = 40, seed: int = 0) -> Tensor:
    return (noise(n, 3, height, width, seed=seed) * 255).round().to(torch.uint8)


def random_net(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """What `build` returns, with random weights that are large enough for each of them to show."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        net = build()
        for name, p in net.named_parameters():
            if name != "logit_scale":
                p += 0.2 * torch.randn_like(p)
    return net


@pytest.fixture
def open_clip() -> Any:
    """The package with the architectures `tiny` and `tiny-quickgelu`."""
    package = pytest.importorskip("open_clip")
    factory = pytest.importorskip("open_clip.factory")
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": SIDE, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
    }
    factory._MODEL_CONFIGS |= {"tiny": config, "tiny-quickgelu": config | {"quick_gelu": True}}
    yield package
    for name in ("tiny", "tiny-quickgelu"):
        del factory._MODEL_CONFIGS[name]


@pytest.fixture
def clip_file(open_clip: Any, tmp_path: Path) -> Callable[..., Path]:
    """Writes open_clip weights of an architecture and returns the file, one of half precision under `state_dict`."""

    def _write(architecture: str, name: str = "clip.pt") -> Path:
        net = random_net(lambda: open_clip.CLIP(**open_clip.get_model_config(architecture)))
        state = {k: v.half() for k, v in net.state_dict().items()}
        torch.save({"state_dict": state, "epoch": 1}, tmp_path / name)
        return tmp_path / name

    return _write


@pytest.fixture
def clip_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes a CLIP folder as the hub has them, of the activation asked for."""
    transformers = pytest.importorskip("transformers")
    letters = [*string.ascii_lowercase, *string.digits, *",.'-"]
    words = [*letters, *(c + "</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    ends = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1, "pad_token_id": len(words) - 1}

    def _write(activation: str = "quick_gelu", seed: int = 0) -> Path:
        place = tmp_path / f"clip-{activation}"
        tower = {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "hidden_act": activation,
        }
        config = transformers.CLIPConfig(
            text_config=tower | ends | {"vocab_size": len(words)},
            vision_config=tower | {"image_size": SIDE, "patch_size": 16},
            projection_dim=16,
        )
        transformers.utils.logging.disable_progress_bar()
        random_net(lambda: transformers.CLIPModel(config), seed).save_pretrained(place)
        (place / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
        (place / "merges.txt").write_text("#version: 0.2\n")
        return place

    return _write
