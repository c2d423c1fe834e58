"""Prompts to embeddings, by a pipeline's text encoders: CLIP (Stable Diffusion), T5 (PixArt), two CLIPs and T5 (SD3).

Each prompt is embedded by itself, so that its embedding does not depend on its neighbours, and kept on disk under
`prompts/` of gentk's cache: the encoders, up to 19 GB, are loaded for the first prompt that is not there.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional

from gentk.errors import GentkError
from gentk.nets.text.prompts import Prompts
from gentk.recipe import hub, store, weights
from gentk.recipe.pipelines import INDEX, Family, read_json

Kind = Literal["clip", "clip-pooled", "t5"]
_BLOB = re.compile(r"[0-9a-f]{64}")  # how the hub's cache names a file of weights: by its sha256
_FORM = 1  # of the embeddings on disk


@dataclass(frozen=True)
class Encoder:
    """One text encoder of a pipeline: the end of its folders' names, its kind, and how many tokens it is given."""

    end: str
    kind: Kind
    tokens: int | None = None  # None: as many as its tokenizer says


# PixArt's 120 and SD3's 256 tokens are their pipelines', the models' own limit is 512.
ENCODERS: dict[Family, tuple[Encoder, ...]] = {
    "unet": (Encoder("", "clip"),),
    "pixart": (Encoder("", "t5", 120),),
    "sd3": (Encoder("", "clip-pooled"), Encoder("_2", "clip-pooled"), Encoder("_3", "t5", 256)),
}
_MODELS = {"clip": "CLIPTextModel", "clip-pooled": "CLIPTextModelWithProjection", "t5": "T5EncoderModel"}


class Prompter:
    """The text encoders in the pipeline folder `place`. `width`: what SD3's network takes, for zeros in T5's place.

    `cut` counts, by encoder, the prompts that were longer than it takes and so were cut.
    """

    def __init__(
        self, place: Path, family: Family, *, dtype: torch.dtype, width: int = 0, t5: bool = True, cache: bool = True
    ) -> None:
        index = read_json(place / INDEX)
        self.place, self.family, self.dtype, self.width, self.cache = place, family, dtype, width, cache
        self.encoders = tuple(
            each
            for each in ENCODERS[family]
            if family != "sd3" or each.kind != "t5" or (t5 and index.get(f"text_encoder{each.end}", [None])[0])
        )
        self.cut: dict[str, int] = {}
        self._counted: set[str] = set()
        self._classes = {each.end: str(index[f"tokenizer{each.end}"][1]) for each in self.encoders}
        self._tokenizers: dict[str, Any] = {}
        self._loaded: dict[str, Any] = {}
        self._fingerprint = ""

    @property
    def limits(self) -> dict[str, int]:
        """Tokens that each encoder takes, its marks of beginning and end among them."""
        return {f"text_encoder{each.end}": self._limit(each) for each in self.encoders}

    def encode(self, texts: Sequence[str], where: torch.device | str = "cpu") -> Prompts:
        """The embeddings of `texts`, in order, on device `where`. Raises GentkError for unreadable encoders."""
        self.count(texts)
        known = {text: self._kept(text, where) for text in dict.fromkeys(texts)}
        return Prompts.cat([known[text].to(where) for text in texts])

    def count(self, texts: Sequence[str]) -> None:
        """Adds to `cut` those of `texts` that it has not counted before and that are too long."""
        for text in texts:
            if text in self._counted:
                continue
            self._counted.add(text)
            for each in self.encoders:
                tokens = self._tokenizer(each)(self._written(text), verbose=False).input_ids
                if len(tokens) > self._limit(each):
                    name = f"text_encoder{each.end}"
                    self.cut[name] = self.cut.get(name, 0) + 1

    def null(self, where: torch.device | str = "cpu") -> Prompts:
        """The embedding of the empty prompt (B = 1): what classifier-free guidance leads away from."""
        return self.encode([""], where)

    def release(self) -> None:
        """Frees the encoders' memory; the next prompt that is not on disk loads them again."""
        self._loaded.clear()

    def fingerprint(self) -> str:
        """A hash of all that an embedding depends on but the prompt: weights, tokenizers, dtype, the place of each."""
        if not self._fingerprint:
            whole = hashlib.sha256(repr((_FORM, self.family, self.dtype, self.width, self.encoders)).encode())
            for each in self.encoders:
                for name in (f"tokenizer{each.end}", f"text_encoder{each.end}"):
                    for path in sorted(p for p in (self.place / name).rglob("*") if p.is_file()):
                        whole.update(f"{name}/{path.name}\0{_digest(path)}\0".encode())
            self._fingerprint = whole.hexdigest()
        return self._fingerprint

    def _kept(self, text: str, where: torch.device | str) -> Prompts:
        if not self.cache:
            return self._embed(text, where)
        key = hashlib.sha256(text.encode()).hexdigest()
        path = store.cache() / "prompts" / self.fingerprint()[:32] / key[:2] / f"{key}.safetensors"
        try:
            return Prompts(**safetensors.torch.load_file(path))
        except (FileNotFoundError, SafetensorError, TypeError):  # absent, or left half-written by another program
            pass
        found = self._embed(text, where)
        tensors = {name: x.cpu().contiguous() for name, x in found.tensors().items()}
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(safetensors.torch.save(tensors, {"prompt": text}))
        temporary.replace(path)
        return found

    @torch.no_grad()  # encoders are never trained here
    def _embed(self, text: str, where: torch.device | str) -> Prompts:
        match self.family:
            case "unet":
                return Prompts(self._run(self.encoders[0], text, where)[0])
            case "pixart":
                embeds, mask = self._run(self.encoders[0], text, where)
                return Prompts(embeds, mask)
            case "sd3":
                return self._three(text, where)

    def _three(self, text: str, where: torch.device | str) -> Prompts:
        """SD3's: CLIPs side by side, padded to T5's width, then T5; without T5, zeros."""
        clips = [self._run(each, text, where) for each in self.encoders if each.kind != "t5"]
        t5 = [self._run(each, text, where)[0] for each in self.encoders if each.kind == "t5"]
        first = torch.cat([embeds for embeds, _ in clips], -1)
        tokens = next(each.tokens for each in ENCODERS["sd3"] if each.kind == "t5")
        second = t5[0] if t5 else first.new_zeros(1, int(tokens or 0), self.width)
        embeds = torch.cat([functional.pad(first, (0, second.shape[-1] - first.shape[-1])), second.to(first)], 1)
        return Prompts(embeds, pooled=torch.cat([pooled for _, pooled in clips], -1))

    def _run(self, each: Encoder, text: str, where: torch.device | str) -> tuple[Tensor, Tensor]:
        """Embeddings (1, L, D), and by kind: the mask (1, L) of T5, the pooled vector (1, P) of a CLIP."""
        ids = self._ids(each, text)
        tokens, mask = ids.input_ids.to(where), ids.attention_mask.to(where)
        net = self._net(each).to(where)
        match each.kind:
            case "clip":
                use = getattr(net.config, "use_attention_mask", None)
                return net(tokens, attention_mask=mask if use else None)[0], mask
            case "clip-pooled":
                out = net(tokens, output_hidden_states=True)
                return out.hidden_states[-2], out[0]
            case "t5":  # SD3 lets it see the padding, PixArt does not
                return net(tokens, attention_mask=mask if self.family == "pixart" else None)[0], mask

    def _ids(self, each: Encoder, text: str) -> Any:
        return self._tokenizer(each)(
            self._written(text),
            padding="max_length",
            max_length=self._limit(each),
            truncation=True,
            add_special_tokens=True,
            return_tensors="pt",
        )

    def _written(self, text: str) -> str:
        return text.lower().strip() if self.family == "pixart" else text  # as its pipeline does without bs4 and ftfy

    def _limit(self, each: Encoder) -> int:
        if each.tokens is not None:
            return each.tokens
        first = ENCODERS[self.family][0]  # SD3 asks its first tokenizer for both CLIPs
        return int(self._tokenizer(first).model_max_length)

    def _tokenizer(self, each: Encoder) -> Any:
        if each.end not in self._tokenizers:
            place = self.place / f"tokenizer{each.end}"
            try:
                made = getattr(hub.transformers(), self._classes[each.end]).from_pretrained(
                    place, local_files_only=True
                )
            except (OSError, ValueError, RuntimeError, TypeError, AttributeError) as error:
                raise GentkError(
                    f"{place}: no tokenizer: {str(error).splitlines()[0]}", hint="fetch or copy the folder again"
                ) from error
            self._tokenizers[each.end] = made
        return self._tokenizers[each.end]

    def _net(self, each: Encoder) -> Any:
        if each.end not in self._loaded:
            net = hub.pretrained(_MODELS[each.kind], self.place / f"text_encoder{each.end}")
            self._loaded[each.end] = net.to(self.dtype).requires_grad_(False)
        return self._loaded[each.end]


def _digest(path: Path) -> str:
    """The sha256 of a file; in the hub's cache the name of what a link points to says it without reading gigabytes."""
    own = path.resolve().name
    return own if path.is_symlink() and _BLOB.fullmatch(own) else weights.digest(path)
