"""Classifiers of images in [0, 1] by name, run or file, for whoever defends, attacks or trains them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from gentk.errors import GentkError, MissingAsset, RecipeError, did_you_mean
from gentk.nets import pickles
from gentk.nets.cifar_resnet import CifarResNet
from gentk.nets.classifier import SmallCnn
from gentk.nets.image_classifier import PRETRAINED, Backbone, ImageClassifier, pretrained
from gentk.nets.small_classifiers import ReluMlp, SmallResNet, TwoConv
from gentk.nets.weights import faults
from gentk.nets.wide_resnet import WideResNet
from gentk.processes.models import load as load_model
from gentk.recipe import extras
from gentk.recipe.classifiers import ARCHITECTURES, Classifier
from gentk.recipe.stamp import read_header
from gentk.recipe.store import imported, models

_TORCH = (".pt", ".pth", ".th", ".bin", ".ckpt", ".tar", ".model")
_WRAPPED = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "ema",
)  # keys under which training scripts put the weights
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True, eq=False)
class Judge:
    """A classifier: images (B, *shape) in [0, 1] -> logits (B, classes); in eval mode, frozen; `source`: what it is."""

    name: str
    net: nn.Module
    classes: int
    shape: tuple[int, ...] | None
    source: str


def load(section: Classifier, *, shape: tuple[int, ...], classes: int, where: torch.device) -> Judge:
    """The classifier of a recipe's section for images of `shape`; `classes`: those of the data, for what does not say.

    Raises RecipeError for an unknown name or architecture, weights of another shape, another image shape; MissingAsset
    for absent files and packages; GentkError for damaged files.
    """
    name = section.name
    kind, _, rest = name.partition(":")
    if kind in ("timm", "torchvision") and rest:
        judge = _packaged(section, kind, rest, classes)
    elif name in PRETRAINED:
        _nothing_stated(section)
        entry = PRETRAINED[name]
        judge = Judge(name, pretrained(name), 10, entry.shape, entry.weights.source)
    elif section.architecture is not None or _bare(name):
        judge = _from_file(section, shape, classes)
    else:
        judge = _own(section)
    if judge.shape is not None and judge.shape != shape:
        raise RecipeError(
            f"classifier: `{name}` takes images of shape {judge.shape}, the data have {shape}",
            hint="another --classifier, or another --data",
        )
    return Judge(name, judge.net.eval().requires_grad_(False).to(where), judge.classes, judge.shape, judge.source)


def located(section: Classifier) -> Path | None:
    """The file that the classifier depends on, where it is one of the user's or of the store's."""
    if section.name in PRETRAINED or section.name.partition(":")[0] in ("timm", "torchvision"):
        return None
    if section.architecture is not None or _bare(section.name):
        return Path(section.name).expanduser()
    from gentk.recipe.store import model_path

    return model_path(section.name)


def _own(section: Classifier) -> Judge:
    """One of gentk's own: its images are in [-1, 1]."""
    _nothing_stated(section)
    if section.name not in models() | imported() and not Path(section.name).expanduser().exists():
        known = [*models(), *imported(), *PRETRAINED]
        raise MissingAsset(
            f"no classifier `{section.name}`{did_you_mean(section.name, known)}",
            hint=f"a run of `gentk train classifier`, a file, or one of classifier-digits, {', '.join(PRETRAINED)}",
        )
    model = load_model(section.name, kinds=("classifier",), where=torch.device("cpu"))
    half = (0.5,) * model.shape[0]
    net = ImageClassifier(cast(Backbone, model.net), mean=half, std=half)
    return Judge(section.name, net, model.classes, model.shape, "gentk")


def _nothing_stated(section: Classifier) -> None:
    """Raises RecipeError for statements about a classifier that speaks for itself: they would be passed over."""
    for key in ("architecture", "mean", "std", "classes"):
        if getattr(section, key) is not None:
            raise RecipeError(f"classifier.{key}: `{section.name}` says itself what it is", hint="leave it out")


def _bare(name: str) -> bool:
    """Whether it is a file of weights without gentk's header."""
    path = Path(name).expanduser()
    if not path.is_file():
        return path.suffix in _TORCH
    if path.suffix != ".safetensors":
        return True
    try:
        read_header(path)
    except GentkError:
        return True
    return False


def _from_file(section: Classifier, shape: tuple[int, ...], classes: int) -> Judge:
    path, stated = Path(section.name).expanduser(), section.architecture
    if not path.is_file():
        raise MissingAsset(f"{path}: no such file", hint="classifier.name: a file of weights, a run or a name")
    if stated is None:
        raise RecipeError(
            f"{path}: weights that do not say their architecture",
            hint=f"--set classifier.architecture=NAME, one of {', '.join(ARCHITECTURES)}, timm:NAME, torchvision:NAME",
        )
    state = _state(path)
    count = section.classes or classes
    kind, _, rest = stated.partition(":")
    if kind in ("timm", "torchvision") and rest:
        net, mean, std = _package(kind, rest, count, weights=False)
    elif stated in ARCHITECTURES:
        net, mean, std = _architecture(stated, state, shape, count), (0.0,) * shape[0], (1.0,) * shape[0]
    else:
        raise RecipeError(
            f"classifier.architecture: unknown `{stated}`{did_you_mean(stated, ARCHITECTURES)}",
            hint=f"one of {', '.join(ARCHITECTURES)}, timm:NAME, torchvision:NAME",
        )
    # Batch norm counts the batches of its training; files may leave that out, and in eval mode nothing reads it.
    own = net.state_dict()
    state = {k: v for k, v in own.items() if k.endswith("num_batches_tracked")} | state
    if found := faults(own, state):
        raise RecipeError(f"{path}: holds no {stated} of {count} classes: {found}", hint="classifier.architecture")
    net.load_state_dict(state)
    return Judge(section.name, _normalised(net, section, mean, std, shape[0]), count, None, f"{stated}, {path.name}")


def _state(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a torch file, which is read as data: nothing of it is run."""
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except (safetensors.SafetensorError, OSError) as e:
            raise GentkError(f"{path}: cannot be read: {e}", hint="fetch or export it again") from e
    content: Any = pickles.read(path)
    while isinstance(content, dict) and (key := next((k for k in _WRAPPED if isinstance(content.get(k), dict)), None)):
        content = content[key]
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()) or not content:
        raise GentkError(f"{path}: holds no state dict", hint="save model.state_dict()")
    return {str(k).removeprefix("module."): v for k, v in content.items()}


def _architecture(name: str, state: Mapping[str, Tensor], shape: tuple[int, ...], classes: int) -> nn.Module:
    """The network that a name means; widths that a name leaves open are those of the weights."""
    if name.startswith("resnet") and name != "resnet4b":
        return CifarResNet(int(name.removeprefix("resnet")), classes=classes)
    if name.startswith("wrn-"):
        depth, widen = map(int, name.split("-")[1:])
        return WideResNet(depth, widen, classes=classes)
    if name in ("two-conv", "cnn_wide"):
        return TwoConv(channels=shape[0], size=shape[1], classes=classes)
    if name == "resnet4b":
        return SmallResNet(classes=classes)
    if name == "mlp":
        layers = [v for k, v in sorted(state.items(), key=_place) if k.endswith("weight") and v.dim() == 2]
        return ReluMlp((*(v.shape[1] for v in layers), classes))
    width, features = (state[k].shape[0] if k in state else 0 for k in ("body.0.weight", "head.weight"))
    if not width or not features:
        raise RecipeError("classifier.architecture: `small-cnn` has body.0.weight and head.weight; the file has not")
    hidden = state["head.weight"].shape[1]
    return SmallCnn(size=shape[1], channels=shape[0], classes=classes, width=width, features=hidden, dropout=0.0)


def _place(item: tuple[str, Tensor]) -> int:
    return int("".join(filter(str.isdigit, item[0])) or 0)


def _packaged(section: Classifier, kind: str, name: str, classes: int) -> Judge:
    """A network of timm or torchvision with the weights that they publish."""
    if section.architecture is not None:
        raise RecipeError(f"classifier.architecture: `{section.name}` says itself what it is", hint="leave it out")
    net, mean, std = _package(kind, name, section.classes, weights=True)
    count = section.classes or int(getattr(net, "num_classes", classes))
    return Judge(section.name, _normalised(net, section, mean, std, len(mean)), count, None, section.name)


def _package(
    kind: str, name: str, classes: int | None, *, weights: bool
) -> tuple[nn.Module, tuple[float, ...], tuple[float, ...]]:
    """The network and its normalisation. Raises MissingAsset without the package or, with `weights`, its file."""
    library = extras.load(kind, "eval")
    own = {} if classes is None or (weights and kind == "torchvision") else {"num_classes": classes}
    make: Callable[[], Any]
    if kind == "timm":
        known: list[str] = library.list_models()

        def make() -> Any:
            return library.create_model(name, pretrained=weights, **own)
    else:
        zoo = extras.load("torchvision.models", "eval")
        known = zoo.list_models()

        def make() -> Any:
            return zoo.get_model(name, weights="DEFAULT" if weights else None, **own)

    if name not in known:
        raise RecipeError(f"{kind} has no model `{name}`{did_you_mean(name, known)}")
    try:
        net: nn.Module = make()
    except (OSError, RuntimeError) as e:  # no network, or no weights of that name
        raise MissingAsset(
            f"{kind}:{name}: its weights cannot be had: {e}",
            hint=f"on a machine without network: --classifier FILE --set classifier.architecture={kind}:{name}",
        ) from e
    config = getattr(net, "default_cfg", {})
    return net, tuple(config.get("mean", _IMAGENET[0])), tuple(config.get("std", _IMAGENET[1]))


def _normalised(
    net: nn.Module, section: Classifier, mean: tuple[float, ...], std: tuple[float, ...], channels: int
) -> nn.Module:
    """`net` behind its normalisation: what the section says, else what is published with it."""
    mean, std = section.mean or mean, section.std or std
    for key, value in (("mean", mean), ("std", std)):
        if len(value) not in (1, channels):
            raise RecipeError(
                f"classifier.{key}: {len(value)} values, the images have {channels} channels", hint="one per channel"
            )
    return ImageClassifier(cast(Backbone, net), mean=mean, std=std)  # only called, never asked for features
