"""ImageReward v1.0 (Xu et al. 2023, arXiv:2304.05977): BLIP reads the prompt beside the picture, a head scores.

transformers' BLIP holds the published weights; the map of names is `_vision` below. Widths and depths are read off the
tensors, and heads are 64 wide in both encoders.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gentk.errors import GentkError
from gentk.metrics import states
from gentk.metrics.registry import IMAGE_REWARD
from gentk.recipe import hub
from gentk.recipe.weights import Weights
from gentk.rewards import pixels
from gentk.rewards.aesthetic import Head

VOCABULARY = Weights(
    name="bert-base-uncased-vocab.txt",
    url="https://huggingface.co/google-bert/bert-base-uncased/resolve/main/vocab.txt",
    size=231_508,
    sha256="07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    licence="Apache-2.0",
    note="vocabulary of BERT",
)
MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of raw scores, from the official code
LENGTH = 35  # prompts are cut and padded to so many tokens
_HEAD_WIDTH = 64
_EXTRA_TOKENS = 2  # BLIP's [DEC] and [ENC] follow BERT's vocabulary; neither is used here


class ImageReward(nn.Module):
    """`score(images, prompts)` -> (N,) float32, mean 0 and deviation 1 over the authors' data."""

    def __init__(self, path: Path, vocabulary: Path, where: torch.device) -> None:
        super().__init__()
        state = states.read(path)
        for key in ("blip.visual_encoder.pos_embed", "blip.text_encoder.embeddings.word_embeddings.weight"):
            if key not in state:
                raise GentkError(f"{path}: weights of another network: missing {key}")
        vision, text = _vision(state), _part(state, "blip.text_encoder.")
        text.pop("embeddings.position_ids", None)
        head = _part(state, "mlp.")
        self.vision, self.side = _vision_net(vision)
        self.text = _text_net(text, vision["embeddings.class_embedding"].shape[-1])
        self.head = Head(text["embeddings.word_embeddings.weight"].shape[1])
        for net, own in ((self.vision, vision), (self.text, text), (self.head, head)):
            states.fill(net, own, path)
        self.words = _tokenizer(vocabulary, len(text["embeddings.word_embeddings.weight"]))
        states.frozen(self, where)
        self.record = {"metric": "image-reward", "weights": str(path)}

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Images (N, 3, H, W), uint8 or float in [0, 1], and N prompts -> (N,)."""
        x = pixels.normalise(pixels.crop(pixels.check(images, prompts), self.side))
        tokens = self.words(
            list(prompts), padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt"
        ).to(x.device)
        seen = self.vision(pixel_values=x).last_hidden_state
        read = self.text(
            input_ids=tokens.input_ids,
            attention_mask=tokens.attention_mask,
            encoder_hidden_states=seen,
            encoder_attention_mask=seen.new_ones(seen.shape[:2], dtype=torch.long),
            is_decoder=False,  # words see those after them, too
        ).last_hidden_state
        out: Tensor = (self.head(read[:, 0]) - MEAN) / STD
        return out

    def cut(self, prompts: Sequence[str]) -> int:
        """How many of the prompts are longer than what is read of them."""
        return sum(len(ids) > LENGTH for ids in self.words(list(prompts))["input_ids"]) if prompts else 0


def build(
    weights: Path | None = None, *, where: torch.device, offline: bool = False, vocabulary: Path | None = None
) -> ImageReward:
    """The score by the checkpoint `weights` and BERT's `vocabulary`, which is looked for beside it as vocab.txt, too.

    Raises MissingAsset for what is absent, GentkError for weights of another network.
    """
    path = states.locate(IMAGE_REWARD, weights, offline)
    beside = path.with_name("vocab.txt")
    if vocabulary is None and beside.is_file():
        vocabulary = beside
    words = states.locate(VOCABULARY, vocabulary, offline, f"to {beside}")
    return ImageReward(path, words, where)


def _part(state: states.State, prefix: str) -> states.State:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _vision(state: states.State) -> states.State:
    """The image encoder's tensors under transformers' names."""
    rules = (
        (r"^cls_token$", "embeddings.class_embedding"),
        (r"^pos_embed$", "embeddings.position_embedding"),
        (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
        (r"^norm\.", "post_layernorm."),
        (r"^blocks\.(\d+)\.norm([12])\.", r"encoder.layers.\1.layer_norm\2."),
        (r"^blocks\.(\d+)\.attn\.qkv\.", r"encoder.layers.\1.self_attn.qkv."),
        (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.\1.self_attn.projection."),
        (r"^blocks\.(\d+)\.mlp\.", r"encoder.layers.\1.mlp."),
    )

    def renamed(key: str) -> str:
        for pattern, name in rules:
            key, found = re.subn(pattern, name, key)
            if found:
                break
        return key

    return {renamed(k): v for k, v in _part(state, "blip.visual_encoder.").items()}


def _depth(state: states.State, prefix: str) -> int:
    found = [int(m[1]) for k in state if (m := re.match(rf"{re.escape(prefix)}(\d+)\.", k))]
    return max(found, default=-1) + 1


def _vision_net(state: states.State) -> tuple[nn.Module, int]:
    """A ViT of the shapes of `state`, and the side of its pictures."""
    transformers = hub.transformers()
    width, _, patch, _ = state["embeddings.patch_embedding.weight"].shape
    side = patch * round((state["embeddings.position_embedding"].shape[1] - 1) ** 0.5)
    config = transformers.BlipVisionConfig(
        hidden_size=width,
        intermediate_size=len(state["encoder.layers.0.mlp.fc1.weight"]),
        num_hidden_layers=_depth(state, "encoder.layers."),
        num_attention_heads=width // _HEAD_WIDTH,
        image_size=side,
        patch_size=patch,
        layer_norm_eps=1e-6,  # the library's 1e-5 is not what these weights were trained with
    )
    return transformers.BlipVisionModel(config), side


def _text_net(state: states.State, vision_width: int) -> nn.Module:
    """A BERT of the shapes of `state` that attends to a picture's tokens."""
    transformers = hub.transformers()
    vocabulary, width = state["embeddings.word_embeddings.weight"].shape
    config = transformers.BlipTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        encoder_hidden_size=vision_width,
        intermediate_size=len(state["encoder.layer.0.intermediate.dense.weight"]),
        num_hidden_layers=_depth(state, "encoder.layer."),
        num_attention_heads=width // _HEAD_WIDTH,  # 12 in BERT-base; the library's default is 8
        max_position_embeddings=len(state["embeddings.position_embeddings.weight"]),
        is_decoder=True,  # this builds the cross-attention
        bos_token_id=None,
        eos_token_id=None,
        sep_token_id=None,
    )
    net: nn.Module = transformers.BlipTextModel(config, add_pooling_layer=False)
    return net


def _tokenizer(vocabulary: Path, rows: int) -> Any:
    """BERT's lower-casing tokenizer over the words of `vocabulary`."""
    transformers = hub.transformers()
    words = {word: i for i, word in enumerate(vocabulary.read_text(encoding="utf-8").splitlines())}
    if len(words) + _EXTRA_TOKENS != rows:
        raise GentkError(
            f"{vocabulary}: {len(words)} words for a network of {rows - _EXTRA_TOKENS}",
            hint=f"expected is the vocabulary of bert-base-uncased: {VOCABULARY.url}",
        )
    # By name, a file is silently ignored since transformers 5: every prompt would read alike.
    tokenizer = transformers.BertTokenizer(vocab=words)
    assert len(tokenizer) == len(words)
    return tokenizer
