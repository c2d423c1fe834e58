"""Files of prompts, the names of text-to-image models, and what is said of those that are not here."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from gentk.errors import GentkError, MissingAsset, RecipeError
from gentk.recipe import pipelines, store
from gentk.recipe.prompts import PromptSource, of_file, read

Write = Callable[[str, str], Path]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.txt", " a cat\na dog, running \n"),
        ("p.txt", "a cat\na dog, running"),  # a last line without its end
        ("p.jsonl", '{"prompt": "a cat", "tag": "one"}\n{"prompt": "a dog, running"}\n'),
        ("p.json", '[{"prompt": "a cat"}, {"prompt": "a dog, running"}]'),
        ("p.csv", 'id,prompt\n1,a cat\n2,"a dog, running"\n'),
    ],
)
def test_prompts_of_every_kind_of_file(write: Write, name: str, text: str) -> None:
    found = read(PromptSource(file=str(write(name, text))))
    assert [each.text for each in found] == ["a cat", "a dog, running"]
    if name.endswith("l"):
        assert dict(found[0].values) == {"tag": "one"}


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("p.txt", "", "p.txt: empty"),
        ("p.txt", "\n \n", "p.txt: empty"),
        ("p.txt", "a cat\n\na dog\n", "line 2 is blank"),
        ("p.txt", "a cat\n   \n", "line 2 is blank"),
        ("p.jsonl", '{"prompt": "a"}\n\n{"prompt": "b"}\n', "line 2 is blank"),
        ("p.jsonl", '{"prompt": "a"}\nb\n', "line 2: not JSON"),
        ("p.jsonl", '{"prompt": "a"}\n{"caption": "b"}\n', "line 2: .* it has caption"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": " "}\n', "line 2: the prompt is blank"),
        ("p.json", "[]", "p.json: empty"),
        ("p.json", '["a"]', "record 1"),
        ("p.json", "a", "cannot be read as prompts"),
        ("p.csv", "prompt\n", "p.csv: empty"),
        ("p.csv", "caption\na cat\n", "record 1: .* it has caption"),
    ],
)
def test_bad_files_say_the_line(write: Write, name: str, text: str, said: str) -> None:
    with pytest.raises(GentkError, match=said):
        read(PromptSource(file=str(write(name, text))))


def test_other_columns_and_absent_files(write: Write, tmp_path: Path) -> None:
    path = write("p.csv", "caption\na cat\n")
    assert read(PromptSource(file=str(path), column="caption"))[0].text == "a cat"
    with pytest.raises(MissingAsset, match="no such file"):
        read(PromptSource(file=str(tmp_path / "none.txt")))
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(GentkError, match="UTF-8"):
        read(PromptSource(file=str(tmp_path / "binary.txt")))
    with pytest.raises(RecipeError, match="prompt 2 is empty"):
        read(PromptSource(text=("a", "")))
    for both in ({}, {"text": ("a",), "file": "b"}):
        with pytest.raises(ValidationError, match="one of the two"):
            PromptSource.model_validate(both)


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, an empty cache, no network."""
    monkeypatch.chdir(tmp_path)
    for name, value in {"GENTK_CACHE": "cache", "HF_HUB_CACHE": "hub", "HF_HUB_OFFLINE": "1"}.items():
        monkeypatch.setenv(name, str(tmp_path / value) if value != "1" else value)
    return tmp_path


def snapshot(root: Path, ref: str, kind: str) -> Path:
    place = root / "hub" / f"models--{ref.replace('/', '--')}" / "snapshots" / "abc"
    place.mkdir(parents=True)
    (place / pipelines.INDEX).write_text(json.dumps({"_class_name": kind}))
    (place / "scheduler").mkdir()
    return place


def test_what_names_a_text_to_image_model(alone: Path) -> None:
    for name in pipelines.BY_NAME:
        assert pipelines.is_text(name)
        assert pipelines.kin(name) == name
    assert pipelines.kin("PixArt-alpha/PixArt-XL-2-512x512") == "pixart-alpha"
    assert pipelines.is_text("hf:some/thing")
    assert pipelines.kin("hf:some/thing") is None  # of what family, only its files know
    for other in ("edm-digits", "some/thing", "runs/mine", "targets:banana"):
        assert not pipelines.is_text(other), other
        assert pipelines.kin(other) is None
    place = snapshot(alone, "some/thing", "StableDiffusion3Pipeline")
    assert pipelines.is_text("some/thing"), "it lies in the hub's cache"
    assert pipelines.BY_NAME["pixart-alpha"].here() is None
    own = snapshot(alone, "PixArt-alpha/PixArt-XL-2-512x512", "PixArtAlphaPipeline")
    assert pipelines.BY_NAME["pixart-alpha"].here() == str(own)
    for kind, target, wanted in (
        ("StableDiffusionPipeline", "epsilon", "stable-diffusion-1.5"),
        ("StableDiffusionPipeline", "v_prediction", "stable-diffusion-2.1"),
        ("PixArtAlphaPipeline", "epsilon", "pixart-alpha"),
        ("StableDiffusion3Pipeline", "epsilon", "stable-diffusion-3"),
    ):
        (place / pipelines.INDEX).write_text(json.dumps({"_class_name": kind}))
        (place / "scheduler" / "scheduler_config.json").write_text(json.dumps({"prediction_type": target}))
        assert pipelines.kin(str(place)) == wanted


def test_recipes_of_the_family_are_found(alone: Path) -> None:
    place = snapshot(alone, "some/thing", "StableDiffusion3Pipeline")
    (place / "scheduler" / "scheduler_config.json").write_text("{}")
    found, swapped = store.pick("sample", "euler", str(place))
    assert (found.stem, swapped) == ("stable-diffusion-3", True)
    assert store.pick("sample", "euler", "stable-diffusion-3") == (found, False)


def test_absent_models_come_with_their_command(alone: Path) -> None:
    with pytest.raises(MissingAsset) as found:
        pipelines.folder("stable-diffusion-3")
    assert "hf download stabilityai/stable-diffusion-3-medium-diffusers --include '*.json'" in found.value.hint
    assert "hf auth login" in found.value.hint  # behind a form
    with pytest.raises(MissingAsset) as found:
        pipelines.folder("hf:some/thing", offline=True)
    assert found.value.hint.startswith("`hf download some/thing --include")
    assert len(str(found.value)) < 200, "a list of patterns tells no user anything"
    with pytest.raises(MissingAsset, match="no folder with model_index"):
        pipelines.folder("./nowhere")


def test_weights_of_other_precisions_are_not_fetched() -> None:
    """By the files that stabilityai/stable-diffusion-3-medium-diffusers and the copy of SD 1.5 are known to hold."""
    from fnmatch import fnmatch

    def fetched(name: str) -> bool:
        return any(fnmatch(name, pattern) for pattern in pipelines._FILES)

    for name in (
        "model_index.json",
        "text_encoder_3/model-00001-of-00002.safetensors",
        "text_encoder_3/model.safetensors.index.json",
        "tokenizer/merges.txt",
        "tokenizer/spiece.model",
        "unet/diffusion_pytorch_model.safetensors",
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    ):
        assert fetched(name), name
    for name in (
        "v1-5-pruned.safetensors",
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "text_encoder_3/model.fp16-00001-of-00002.safetensors",
        "safety_checker/model.safetensors",
    ):
        assert not fetched(name), name


def test_a_column_of_a_parquet_file(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "captions.parquet"
    table = pyarrow.table({"image": [b"x", b"y"], "caption": ["a cat", " two dogs "]})
    parquet.write_table(table, path)
    assert [record.text for record in of_file(path, "caption")] == ["a cat", "two dogs"]
    with pytest.raises(GentkError, match="no column `prompt`; it has image, caption"):
        of_file(path)
    parquet.write_table(pyarrow.table({"prompt": ["a", None]}), path)
    with pytest.raises(GentkError, match="record 2"):
        of_file(path)
    parquet.write_table(table.slice(0, 0), path)
    with pytest.raises(RecipeError, match="empty"):
        of_file(path, "caption")
    path.write_bytes(b"no parquet at all")
    with pytest.raises(GentkError, match="cannot be read as prompts"):
        of_file(path)


def test_parquet_without_its_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "p.parquet").write_bytes(b"PAR1")
    with pytest.raises(MissingAsset, match=r"p\.parquet") as caught:
        of_file(tmp_path / "p.parquet")
    assert "pip install pyarrow" in str(caught.value.hint)
