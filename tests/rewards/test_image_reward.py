"""ImageReward against BLIP written down here from its description, under the published names of the tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gentk.errors import GentkError
from gentk.rewards import image_reward, pixels
from gentk.rewards.aesthetic import Head
from tests.rewards.conftest import CPU, noise, pictures

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij", *(f"##{c}" for c in "abcdefghij"), "cat", ","]
PROMPTS = ["A cat, a", "dab cat"]
VISION, TEXT, DEPTH, SIDE, PATCH = 128, 192, 2, 32, 16  # heads of 64: 2 and 3
State = dict[str, Tensor]


def published(seed: int = 0) -> State:
    """Random tensors under the names of ImageReward.pt."""
    generator = torch.Generator().manual_seed(seed)
    state: State = {}

    def put(name: str, *shape: int) -> None:
        state[name] = 0.3 / math.sqrt(shape[-1]) * torch.randn(shape, generator=generator) * 3

    def linear(name: str, to: int, of: int) -> None:
        put(f"{name}.weight", to, of)
        put(f"{name}.bias", to)

    def norm(name: str, width: int) -> None:
        state[f"{name}.weight"] = 1 + 0.2 * torch.randn(width, generator=generator)
        state[f"{name}.bias"] = 0.2 * torch.randn(width, generator=generator)

    v = "blip.visual_encoder."
    put(v + "cls_token", 1, 1, VISION)
    put(v + "pos_embed", 1, (SIDE // PATCH) ** 2 + 1, VISION)
    put(v + "patch_embed.proj.weight", VISION, 3, PATCH, PATCH)
    put(v + "patch_embed.proj.bias", VISION)
    for i in range(DEPTH):
        norm(f"{v}blocks.{i}.norm1", VISION)
        linear(f"{v}blocks.{i}.attn.qkv", 3 * VISION, VISION)
        linear(f"{v}blocks.{i}.attn.proj", VISION, VISION)
        norm(f"{v}blocks.{i}.norm2", VISION)
        linear(f"{v}blocks.{i}.mlp.fc1", 4 * VISION, VISION)
        linear(f"{v}blocks.{i}.mlp.fc2", VISION, 4 * VISION)
    norm(v + "norm", VISION)
    t = "blip.text_encoder."
    put(t + "embeddings.word_embeddings.weight", len(WORDS) + 2, TEXT)
    put(t + "embeddings.position_embeddings.weight", 64, TEXT)
    state[t + "embeddings.position_ids"] = torch.arange(64)[None]
    norm(t + "embeddings.LayerNorm", TEXT)
    for i in range(DEPTH):
        layer = f"{t}encoder.layer.{i}."
        for kind, of in (("attention", TEXT), ("crossattention", VISION)):
            linear(f"{layer}{kind}.self.query", TEXT, TEXT)
            linear(f"{layer}{kind}.self.key", TEXT, of)
            linear(f"{layer}{kind}.self.value", TEXT, of)
            linear(f"{layer}{kind}.output.dense", TEXT, TEXT)
            norm(f"{layer}{kind}.output.LayerNorm", TEXT)
        linear(f"{layer}intermediate.dense", 4 * TEXT, TEXT)
        linear(f"{layer}output.dense", TEXT, 4 * TEXT)
        norm(f"{layer}output.LayerNorm", TEXT)
    for name, value in Head(TEXT).state_dict().items():
        put(f"mlp.{name}", *value.shape)
    put("blip.vision_proj.weight", 4, VISION)  # of the pre-training, not used in scores
    put("blip.text_encoder_m.embeddings.word_embeddings.weight", 3, TEXT)
    return state


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, width: int = 64) -> Tensor:
    q, k, v = (x.unflatten(-1, (-1, width)).transpose(1, 2) for x in (q, k, v))
    logits = q @ k.transpose(-1, -2) / math.sqrt(width)
    if mask is not None:
        logits = logits.masked_fill(~mask[:, None, None], -math.inf)
    return (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)


def reference(s: State, images: Tensor, ids: Tensor, mask: Tensor, *, eps: float = 1e-6, width: int = 64) -> Tensor:
    """The score of prepared images and tokens: ViT (pre-norm), BERT (post-norm) with cross-attention, head."""

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, s[f"{name}.weight"], s[f"{name}.bias"])

    def norm(x: Tensor, name: str, eps: float) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], s[f"{name}.weight"], s[f"{name}.bias"], eps)

    v = "blip.visual_encoder."
    x = F.conv2d(images, s[v + "patch_embed.proj.weight"], s[v + "patch_embed.proj.bias"], stride=PATCH)
    x = torch.cat([s[v + "cls_token"].expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], 1) + s[v + "pos_embed"]
    for i in range(DEPTH):
        block = f"{v}blocks.{i}."
        x = x + linear(
            attend(*linear(norm(x, block + "norm1", eps), block + "attn.qkv").chunk(3, -1)), block + "attn.proj"
        )
        x = x + linear(F.gelu(linear(norm(x, block + "norm2", eps), block + "mlp.fc1")), block + "mlp.fc2")
    seen = norm(x, v + "norm", eps)
    t = "blip.text_encoder."
    y = s[t + "embeddings.word_embeddings.weight"][ids] + s[t + "embeddings.position_embeddings.weight"][: ids.shape[1]]
    y = norm(y, t + "embeddings.LayerNorm", 1e-12)
    for i in range(DEPTH):
        layer = f"{t}encoder.layer.{i}."
        for kind, of, where in (("attention", None, mask), ("crossattention", seen, None)):
            own = y if of is None else of
            q, k, w = (linear(x, f"{layer}{kind}.self.{n}") for x, n in ((y, "query"), (own, "key"), (own, "value")))
            y = norm(
                y + linear(attend(q, k, w, where, width), f"{layer}{kind}.output.dense"),
                f"{layer}{kind}.output.LayerNorm",
                1e-12,
            )
        inner = F.gelu(linear(y, f"{layer}intermediate.dense"))
        y = norm(y + linear(inner, f"{layer}output.dense"), f"{layer}output.LayerNorm", 1e-12)
    z = y[:, 0]
    for i in (0, 2, 4, 6, 7):
        z = linear(z, f"mlp.layers.{i}")
    return (z[:, 0] - 0.16717362830052426) / 1.0333394966054072


def tokens(ids: list[list[int]]) -> tuple[Tensor, Tensor]:
    padded = torch.tensor([row + [0] * (35 - len(row)) for row in ids])
    return padded, padded > 0


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    pytest.importorskip("transformers")

    def _write(state: State, words: list[str] = WORDS) -> Path:
        torch.save(state, tmp_path / "ImageReward.pt")
        (tmp_path / "words.text").write_text("\n".join(words) + "\n")
        return tmp_path / "ImageReward.pt"

    return _write


def build(path: Path) -> image_reward.ImageReward:
    return image_reward.build(path, where=CPU, offline=True, vocabulary=path.with_name("words.text"))


def prepared(x: Tensor) -> Tensor:
    return pixels.normalise(pixels.crop(x, SIDE))


def of(word: str) -> int:
    return WORDS.index(word)


def test_the_map_of_names(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    state = published()
    score = build(write(state))
    # "A cat, a" and "dab cat", lower case, words of pieces, between [CLS] and [SEP].
    first = [2, of("a"), of("cat"), of(","), of("a"), 3]
    second = [2, of("d"), of("##a"), of("##b"), of("cat"), 3]
    ids, mask = tokens([first, second])
    x = noise(2, 3, 48, 40).double()
    single = score(x, PROMPTS)
    # In float64, where the settings show that move a score by less than float32 rounds.
    monkeypatch.setattr(pixels, "check", lambda images, prompts: images)
    score.double()
    state = {k: v.double() if v.is_floating_point() else v for k, v in state.items()}
    expected = reference(state, prepared(x), ids, mask)
    tolerance = 1e-12 * expected.abs().max().item()  # 4 layers of sums of at most 768 terms, in another order
    torch.testing.assert_close(score(x, PROMPTS), expected, rtol=0, atol=tolerance)
    torch.testing.assert_close(single.double(), expected, rtol=0, atol=1e-4)
    assert (expected[0] - expected[1]).abs() > 0.01
    # The controls: the library's own settings, and reading the padding.
    for wrong in (
        reference(state, prepared(x), ids, mask, eps=1e-5),
        reference(state, prepared(x), ids, mask, width=48),  # 4 heads for 3
        reference(state, prepared(x), ids, torch.ones_like(mask)),
    ):
        assert (wrong - expected).abs().max() > 1e6 * tolerance


def test_settings_that_the_library_has_otherwise(write: Callable[..., Path]) -> None:
    score = build(write(published()))
    assert score.vision.config.layer_norm_eps == 1e-6  # 1e-5
    assert {m.eps for m in score.vision.modules() if isinstance(m, torch.nn.LayerNorm)} == {1e-6}
    assert score.text.config.num_attention_heads == TEXT // 64  # 8
    x = pictures()
    straight = score(x, PROMPTS)
    forward = score.text.forward

    def causal(**kwargs: Any) -> Any:
        return forward(**kwargs | {"is_decoder": True})

    score.text.forward = causal
    assert (score(x, PROMPTS) - straight).abs().max() > 1e-2


def test_prompts_are_cut_at_35_tokens_with_their_end(write: Callable[..., Path]) -> None:
    state = published()
    score = build(write(state))
    ids, mask = tokens([[2, *[of("a")] * 33, 3]])
    expected = reference(state, prepared(pictures(1)), ids, mask)
    torch.testing.assert_close(score(pictures(1), ["a " * 60]), expected, rtol=0, atol=1e-4)
    blunt, mask = tokens([[2, *[of("a")] * 34]])
    assert not torch.allclose(reference(state, prepared(pictures(1)), blunt, mask), expected, atol=1e-3)


def test_gradient(write: Callable[..., Path]) -> None:
    score = build(write(published()))
    x = noise(2, 3, SIDE, SIDE).requires_grad_()
    (grad,) = torch.autograd.grad(score(x, PROMPTS).sum(), x)
    assert (grad != 0).all()
    assert not any(p.requires_grad for p in score.parameters())


def test_the_tokenizer_of_transformers_5(write: Callable[..., Path]) -> None:
    transformers = pytest.importorskip("transformers")
    path = write(published())
    words = build(path).words
    assert words("Cát zebra").input_ids == [2, of("cat"), 1, 3]  # accents go, unknown words are [UNK]
    assert len(words) == len(WORDS)
    if int(transformers.__version__.split(".")[0]) >= 5:  # the trap: by the old name, the file is ignored
        assert len(transformers.BertTokenizer(vocab_file=str(path.with_name("words.text")))) == 5


def test_a_vocabulary_beside_the_weights_is_found(write: Callable[..., Path]) -> None:
    path = write(published())
    path.with_name("vocab.txt").write_text("\n".join(WORDS[:-1]) + "\n")
    with pytest.raises(GentkError, match=r"sha256|words for a network"):  # found, and refused
        image_reward.build(path, where=CPU, offline=True)


def test_refusals(write: Callable[..., Path]) -> None:
    with pytest.raises(GentkError, match=f"{len(WORDS) - 1} words for a network of {len(WORDS)}"):
        build(write(published(), WORDS[:-1]))
    for key in ("blip.visual_encoder.pos_embed", "blip.visual_encoder.blocks.1.attn.qkv.bias", "mlp.layers.4.bias"):
        with pytest.raises(GentkError, match=r"another network.*missing"):
            build(write({k: v for k, v in published().items() if k != key}))
    with pytest.raises(GentkError, match="unexpected"):
        build(write(published() | {"blip.visual_encoder.head.weight": torch.zeros(1)}))
