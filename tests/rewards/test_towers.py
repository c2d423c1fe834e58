"""CLIP from both libraries: what is loaded, which activation, how long prompts are cut, which tokenizer."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gentk.errors import GentkError
from gentk.metrics.registry import CLIP_VITL14
from gentk.rewards import towers
from tests.rewards.conftest import CPU, noise

LONG = "a b c d e f g h i j " * 12  # 120 tokens


def of_file(path: Path, architecture: str = "tiny-quickgelu") -> towers.OpenClipTowers:
    return towers.OpenClipTowers(path, architecture, CPU)


def of_folder(place: Path, quick_gelu: bool = True) -> towers.TransformersTowers:
    return towers.TransformersTowers(place, place.name, CPU, quick_gelu=quick_gelu)


@pytest.fixture(params=["open_clip", "transformers"])
def clip(request: pytest.FixtureRequest) -> towers.Towers:
    if request.param == "open_clip":
        return of_file(request.getfixturevalue("clip_file")("tiny-quickgelu"))
    return of_folder(request.getfixturevalue("clip_folder")())


def test_directions_have_length_one(clip: towers.Towers) -> None:
    image, text = clip.image(noise(3, 3, 32, 32)), clip.text(["a cat", "a dog"])
    torch.testing.assert_close(image.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(text.norm(dim=-1), torch.ones(2))
    assert not torch.allclose(text[0], text[1], atol=1e-3)
    assert clip.side == 32
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in clip.parameters())
    assert not clip.training


def test_long_prompts_are_cut_before_the_end_token(clip: towers.Towers) -> None:
    # The end token is where the text is read off: the first 75 words and it are what counts, the rest nothing.
    words = LONG.split()
    expected = clip.text([" ".join(words[:75])])
    torch.testing.assert_close(clip.text([LONG]), expected)
    assert not torch.allclose(clip.text([" ".join(words[:74])]), expected, atol=1e-3)


def test_the_control_of_cutting_the_end_token(clip_file: Callable[..., Path]) -> None:
    clip = of_file(clip_file("tiny-quickgelu"))
    tokens = clip.tokenise([LONG])
    blunt = clip.tokenise.encode(LONG)[:76]
    wrong = clip.net.encode_text(torch.tensor([[tokens[0, 0], *blunt]]))
    assert torch.cosine_similarity(wrong, clip.text([LONG])).item() < 0.99


def test_quick_gelu_and_gelu_are_two_networks(clip_file: Callable[..., Path]) -> None:
    path = clip_file("tiny")
    x = noise(1, 3, 32, 32)
    assert (of_file(path).image(x) - of_file(path, "tiny").image(x)).abs().max() > 1e-3


def test_a_wrong_activation_is_refused(
    open_clip: Any, clip_file: Callable[..., Path], clip_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What open_clip builds of OpenAI's weights by the name without -quickgelu.
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-quickgelu", open_clip.get_model_config("tiny"))
    with pytest.raises(GentkError, match="with GELU, expected QuickGELU"):
        of_file(clip_file("tiny"))
    with pytest.raises(GentkError, match="with GELUActivation, expected QuickGELU"):
        of_folder(clip_folder("gelu"))
    with pytest.raises(GentkError, match="with QuickGELUActivation, expected GELU"):
        of_folder(clip_folder("quick_gelu"), quick_gelu=False)


def test_the_architectures_that_weights_are_published_for(open_clip: Any) -> None:
    expected = {"ViT-B-32-quickgelu": True, "ViT-L-14-quickgelu": True, "ViT-g-14": False, "ViT-H-14": False}
    for name, quick in expected.items():
        with torch.device("meta"):
            net = open_clip.CLIP(**open_clip.get_model_config(name))
        towers._check_activation(net, quick, Path(name))
        with pytest.raises(GentkError):
            towers._check_activation(net, not quick, Path(name))
        assert net.visual.image_size == (224, 224)


def test_a_tokenizer_that_came_back_empty_is_refused(clip_folder: Callable[..., Path]) -> None:
    transformers = pytest.importorskip("transformers")
    place = clip_folder()
    assert of_folder(place).text(["a"]).shape == (1, 16)
    # The trap itself: since version 5, files given by name are ignored, and every prompt reads alike.
    if "vocab_file" not in inspect.signature(transformers.CLIPTokenizer.__init__).parameters:
        files = {"vocab_file": str(place / "vocab.json"), "merges_file": str(place / "merges.txt")}
        assert len(transformers.CLIPTokenizer(**files)) == 2
    for name in ("vocab.json", "merges.txt"):
        (place / name).unlink()
    with pytest.raises(GentkError, match=r"a tokenizer of 2 tokens for a model of 82|no tokenizer"):
        of_folder(place)


def test_a_folder_of_something_else_is_refused(clip_folder: Callable[..., Path]) -> None:
    transformers = pytest.importorskip("transformers")
    place = clip_folder()
    # transformers would load this, and fill the image encoder with noise.
    model = transformers.CLIPModel.from_pretrained(place)
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("vision_model")}
    model.save_pretrained(place, state_dict=state)
    with pytest.raises(GentkError, match="no CLIPModel: missing vision_model"):
        of_folder(place)
    (place / "model.safetensors").unlink()
    with pytest.raises(GentkError, match="no CLIPModel"):
        of_folder(place)


def test_weights_of_another_network_are_named(clip_file: Callable[..., Path], tmp_path: Path) -> None:
    path = clip_file("tiny")
    content = torch.load(path)
    del content["state_dict"]["visual.proj"]
    content["state_dict"]["more"] = torch.zeros(1)
    torch.save(content, path)
    with pytest.raises(GentkError, match=r"another network: missing visual.proj; unexpected more"):
        of_file(path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torchscript_as_openai_published_it(clip_file: Callable[..., Path], tmp_path: Path) -> None:
    path = clip_file("tiny-quickgelu")
    archive = torch.nn.Module()
    # OpenAI's archives have three entries that are settings.
    for key, value in (torch.load(path)["state_dict"] | {"input_resolution": torch.tensor(32)}).items():
        *parents, name = key.split(".")
        place = archive
        for parent in parents:
            if not hasattr(place, parent):
                place.add_module(parent, torch.nn.Module())
            place = getattr(place, parent)
        place.register_buffer(name, value)
    torch.jit.save(torch.jit.script(archive), tmp_path / "script.pt")
    x = noise(2, 3, 32, 32, seed=1)
    torch.testing.assert_close(of_file(tmp_path / "script.pt").image(x), of_file(path).image(x), rtol=0, atol=0)


def test_files_folders_and_published_checksums(
    clip_folder: Callable[..., Path], clip_file: Callable[..., Path]
) -> None:
    kinds = {"where": CPU, "offline": True}
    folder = towers.load(clip_folder(), CLIP_VITL14, "tiny-quickgelu", **kinds)
    assert isinstance(folder, towers.TransformersTowers)
    # Another suffix than the published file's: converted weights, for which there is no checksum.
    file = towers.load(clip_file("tiny-quickgelu", "clip.bin"), CLIP_VITL14, "tiny-quickgelu", **kinds)
    assert file.record == {"encoder": "tiny-quickgelu", "weights": file.record["weights"]}
    with pytest.raises(GentkError, match="sha256"):
        towers.load(clip_file("tiny-quickgelu", "ViT-L-14.pt"), CLIP_VITL14, "tiny-quickgelu", **kinds)
