"""Published diffusion and flow models that `gentk models import NAME` brings: where each lies and what it is.

Nobody publishes checksums of these files. What was fetched is therefore told by its sha256 in the imported model's
header, and held to the row's where one is known. Licences are those that the publishers state for the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from gentk.errors import MissingAsset, RecipeError, did_you_mean


@dataclass(frozen=True)
class Teacher:
    """One published model. `source` is a URL, a hub id OWNER/NAME, or a page where no file has a lasting address.

    `settings` are what the file itself does not say, as `gentk models import --set` takes them. `size` in bytes and
    `sha256` are None and empty where they are not known.
    """

    name: str
    format: str
    source: str
    file: str
    licence: str
    data: str
    note: str
    settings: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    size: int | None = None
    sha256: str = ""

    @property
    def fetchable(self) -> bool:
        """Whether gentk can bring it; else it must be fetched by hand."""
        return bool(self.file)

    def absent(self, place: Path, why: str = "") -> MissingAsset:
        """The error of its absence: what it is and the commands that bring it; `place`: where it is looked for."""
        size = f", {self.size:,} bytes" if self.size else ""
        file, name = self.file.rpartition("/")[2] or "FILE", self.name
        by_hand = f"`gentk models import {file} --as {self.format} --name {name}`"
        remedy = (
            f"with a network: `gentk models import {name}`; without: run `gentk models import {name} --out "
            f"{name}.safetensors` on another machine and name that file, or bring {file} and {by_hand}"
            if self.fetchable
            else f"fetch it by hand as {self.source} says, then {by_hand}"
        )
        return MissingAsset(
            f"teacher `{name}` is not here ({place}){f': {why}' if why else ''}; it is {self.note}: "
            f"{self.source}{size}, {self.licence}",
            hint=remedy,
        )


FORMATS = {
    "edm": "pickle of NVlabs/edm and of what descends from it",
    "score-sde": ".pth of score_sde_pytorch, continuous DDPM++ or NCSN++",
    "rectified-flow": ".pth of RectifiedFlow",
    "guided-diffusion": ".pt of openai/guided-diffusion",
    "diffusers": "folder or hub id of a UNet2DModel in DDPM's form",
    "ddpm": "the same",
    "noise-cnn": "safetensors of hot_vs_cold_diffusion's MNIST noise predictor",
}


def check_format(form: str) -> None:
    """Raises RecipeError, with a suggestion, for a format that cannot be imported."""
    if form not in FORMATS:
        raise RecipeError(f"unknown format `{form}`{did_you_mean(form, FORMATS)}", hint=f"one of {', '.join(FORMATS)}")


_EDM = "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/"
_EDM_LICENCE = "CC BY-NC-SA 4.0 (NVIDIA, non-commercial)"


def _edm(name: str, file: str, data: str, note: str, folder: str = "") -> Teacher:
    return Teacher(name, "edm", f"{_EDM}{folder}{file}", file, _EDM_LICENCE, data, note)


def _settings(**values: Any) -> Mapping[str, Any]:
    return MappingProxyType({name.replace("__", "."): value for name, value in values.items()})


# In EDM's file names -vp and -ve are the architectures, DDPM++ and NCSN++; all but the baselines are EDM's process.
TEACHERS = (
    _edm("edm-cifar10", "edm-cifar10-32x32-uncond-vp.pkl", "cifar10", "EDM's DDPM++ for CIFAR-10"),
    _edm("edm-cifar10-cond", "edm-cifar10-32x32-cond-vp.pkl", "cifar10", "EDM's DDPM++ for CIFAR-10 with classes"),
    _edm("edm-cifar10-ve", "edm-cifar10-32x32-uncond-ve.pkl", "cifar10", "EDM's NCSN++ for CIFAR-10"),
    _edm("edm-cifar10-cond-ve", "edm-cifar10-32x32-cond-ve.pkl", "cifar10", "EDM's NCSN++ for CIFAR-10 with classes"),
    _edm("edm-ffhq", "edm-ffhq-64x64-uncond-vp.pkl", "ffhq-64", "EDM's DDPM++ for FFHQ at 64 pixels"),
    _edm("edm-ffhq-ve", "edm-ffhq-64x64-uncond-ve.pkl", "ffhq-64", "EDM's NCSN++ for FFHQ at 64 pixels"),
    _edm("edm-afhqv2", "edm-afhqv2-64x64-uncond-vp.pkl", "afhqv2-64", "EDM's DDPM++ for AFHQv2 at 64 pixels"),
    _edm("edm-afhqv2-ve", "edm-afhqv2-64x64-uncond-ve.pkl", "afhqv2-64", "EDM's NCSN++ for AFHQv2 at 64 pixels"),
    _edm("edm-imagenet64", "edm-imagenet-64x64-cond-adm.pkl", "imagenet-64", "EDM's ADM for ImageNet at 64 pixels"),
    _edm(
        "baseline-cifar10",
        "baseline-cifar10-32x32-uncond-vp.pkl",
        "cifar10",
        "score_sde's DDPM++ for CIFAR-10 in EDM's layout",
        "baseline/",
    ),
    Teacher(
        "ddpm-cifar10",
        "diffusers",
        "google/ddpm-cifar10-32",
        "google/ddpm-cifar10-32",
        "Apache-2.0",
        "cifar10",
        "DDPM for CIFAR-10",
    ),
    Teacher(
        "rectified-flow-cifar10",
        "rectified-flow",
        "https://github.com/gnobitab/RectifiedFlow",
        "",
        "see its repository",
        "cifar10",
        "1-Rectified Flow for CIFAR-10, a checkpoint on Google Drive",
    ),
    Teacher(
        "guided-diffusion-imagenet256",
        "guided-diffusion",
        "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/256x256_diffusion_uncond.pt",
        "256x256_diffusion_uncond.pt",
        "MIT",
        "imagenet-256",
        "guided-diffusion for ImageNet at 256 pixels, without classes",
        _settings(
            size=256,
            net__width=256,
            net__multipliers=(1, 1, 2, 2, 4, 4),
            net__blocks=2,
            net__attention=(32, 16, 8),
            net__learned_sigma=True,
            attention_order="legacy",
        ),
    ),
    Teacher(
        "guided-diffusion-imagenet64",
        "guided-diffusion",
        "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/64x64_diffusion.pt",
        "64x64_diffusion.pt",
        "MIT",
        "imagenet-64",
        "guided-diffusion for ImageNet at 64 pixels with classes",
        _settings(
            size=64,
            net__width=192,
            net__multipliers=(1, 2, 3, 4),
            net__blocks=3,
            net__attention=(32, 16, 8),
            net__learned_sigma=True,
            net__dropout=0.1,
            attention_order="new",
            process__schedule="cosine",
        ),
    ),
)
NAMES = tuple(teacher.name for teacher in TEACHERS)
BY_NAME = {teacher.name: teacher for teacher in TEACHERS}
BY_FILE = {teacher.file: teacher for teacher in TEACHERS if teacher.file}

# (shape of one image, classes) of the data sets that gentk reads: a model must fit the one that it is said to be of.
SHAPES: dict[str, tuple[tuple[int, int, int], int]] = {
    "digits": ((1, 8, 8), 10),
    "mnist": ((1, 28, 28), 10),
    "fashion-mnist": ((1, 28, 28), 10),
    "cifar10": ((3, 32, 32), 10),
}
