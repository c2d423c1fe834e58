"""CLIP: an image and a text encoder into one space, from an open_clip file or a transformers folder."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentk.errors import GentkError
from gentk.metrics import states
from gentk.recipe import extras, hub
from gentk.recipe.weights import BY_OPTION, Weights
from gentk.rewards import pixels


class Towers(nn.Module):
    """`image(x)`: (N, 3, side, side) in [0, 1] -> (N, D), `text(prompts)` -> (N, D), both of length 1."""

    side: int
    net: Any  # a model of open_clip or transformers, which have no types
    record: dict[str, Any]

    def image(self, x: Tensor) -> Tensor:
        """The direction of each picture, which has the network's size already."""
        return F.normalize(self._image(pixels.normalise(x)), dim=-1)

    @torch.no_grad()  # prompts have no gradient
    def text(self, prompts: Sequence[str]) -> Tensor:
        """The direction of each prompt; what is too long is cut so that its end token stays."""
        return F.normalize(self._text(list(prompts)), dim=-1)

    @property
    @abstractmethod
    def logit_scale(self) -> Tensor:
        """The learnt inverse temperature, exponentiated."""

    @abstractmethod
    def _image(self, x: Tensor) -> Tensor:
        """Normalised pictures -> (N, D) of any length."""

    @abstractmethod
    def _text(self, prompts: list[str]) -> Tensor:
        """Prompts -> (N, D) of any length."""


def load(
    given: Path | str | None,
    default: Weights,
    architecture: str,
    *,
    where: torch.device,
    offline: bool,
    remedy: str = BY_OPTION,
) -> Towers:
    """The towers `given`: None for the file `default`, an open_clip file, or a transformers folder or hub id.

    `architecture` is open_clip's name; `-quickgelu` at its end is part of what the weights mean. Raises MissingAsset
    for an absent file or package, GentkError for weights of another network.
    """
    if given is not None and (hub.is_id(given) or Path(given).is_dir()):
        place = hub.folder(given, offline=offline)
        return TransformersTowers(place, str(given), where, quick_gelu=architecture.endswith("-quickgelu"))
    path = states.locate(default, None if given is None else Path(given), offline, remedy)
    return OpenClipTowers(path, architecture, where)


class OpenClipTowers(Towers):
    """Weights in open_clip's format; its tokenizer comes with the package."""

    def __init__(self, path: Path, architecture: str, where: torch.device) -> None:
        super().__init__()
        open_clip = extras.load("open_clip", "eval")
        state = {k.removeprefix("module."): v for k, v in states.read(path).items()}
        # By hand: `create_model(name, pretrained=FILE)` builds GELU for OpenAI's weights without a word.
        net = open_clip.CLIP(**open_clip.get_model_config(architecture))
        states.fill(net, state, path)
        _check_activation(net, architecture.endswith("-quickgelu"), path)
        self.net = net
        self.tokenise = open_clip.get_tokenizer(architecture)
        self.side = int(net.visual.image_size[0])
        self.record = {"encoder": architecture, "weights": str(path)}
        states.frozen(self, where)

    @property
    def logit_scale(self) -> Tensor:
        """The learnt inverse temperature, exponentiated."""
        scale: Tensor = self.net.logit_scale.exp()
        return scale

    def _image(self, x: Tensor) -> Tensor:
        out: Tensor = self.net.encode_image(x)
        return out

    def _text(self, prompts: list[str]) -> Tensor:
        out: Tensor = self.net.encode_text(self.tokenise(prompts).to(self.net.logit_scale.device))
        return out


class TransformersTowers(Towers):
    """A CLIPModel folder, known as `name`; the tokenizer lies in it or in `tokenizer`, another folder."""

    def __init__(
        self, place: Path, name: str, where: torch.device, *, quick_gelu: bool, tokenizer: Path | None = None
    ) -> None:
        super().__init__()
        net = hub.pretrained("CLIPModel", place)
        try:
            words = hub.transformers().CLIPTokenizer.from_pretrained(tokenizer or place, local_files_only=True)
        except (OSError, ValueError) as error:
            raise GentkError(f"{tokenizer or place}: no tokenizer: {str(error).splitlines()[0]}") from error
        # Loaders of transformers 5 can come back with a vocabulary of two special tokens and no complaint.
        if len(words) != net.config.text_config.vocab_size:
            raise GentkError(
                f"{tokenizer or place}: a tokenizer of {len(words)} tokens for a model of"
                f" {net.config.text_config.vocab_size}",
                hint="the folder needs tokenizer.json, or vocab.json and merges.txt",
            )
        _check_activation(net, quick_gelu, place)
        self.net = net
        self.words = words
        self.length = net.config.text_config.max_position_embeddings
        self.side = net.config.vision_config.image_size
        self.record = {"encoder": name, "weights": str(place)}
        states.frozen(self, where)

    @property
    def logit_scale(self) -> Tensor:
        """The learnt inverse temperature, exponentiated."""
        scale: Tensor = self.net.logit_scale.exp()
        return scale

    def _image(self, x: Tensor) -> Tensor:
        return _projected(self.net.get_image_features(pixel_values=x))

    def _text(self, prompts: list[str]) -> Tensor:
        ids = self.words(prompts, padding="max_length", truncation=True, max_length=self.length, return_tensors="pt")
        return _projected(self.net.get_text_features(**ids.to(self.net.device)))


def _projected(out: Any) -> Tensor:
    """The projected embedding: before transformers 5 the output itself, since then its `pooler_output`."""
    return out if isinstance(out, Tensor) else out.pooler_output


def _check_activation(net: nn.Module, quick: bool, path: Path) -> None:
    """OpenAI's CLIPs, and no others here, were trained with x sigmoid(1.702 x) in place of GELU."""
    names = {type(m).__name__ for m in net.modules()} & {"GELU", "GELUActivation", "QuickGELU", "QuickGELUActivation"}
    if {name.startswith("Quick") for name in names} != {quick}:
        raise GentkError(f"{path}: a network with {', '.join(sorted(names))}, expected {'Quick' if quick else ''}GELU")
