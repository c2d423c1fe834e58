"""State dicts in the formats in which networks are published."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from torch import Tensor, nn

from gentk.errors import GentkError, MissingAsset
from gentk.recipe.weights import BY_OPTION, Weights, find

State = dict[str, Tensor]
Net = TypeVar("Net", bound=nn.Module)


def locate(weights: Weights, given: Path | None, offline: bool, remedy: str = BY_OPTION) -> Path:
    """The file `given`, or `weights` as `gentk.recipe.weights.find` finds it; raises what that raises.

    A file of another format than the published one, converted by somebody, has no checksum to be held to.
    """
    if given is None or given.suffix == Path(weights.name).suffix:
        return find(weights, given, offline, remedy=remedy)
    if not given.is_file():
        raise MissingAsset(f"{given}: no such file", hint=f"expected is {weights} from {weights.url}")
    return given


def read(path: Path) -> State:
    """The tensors of a safetensors file, of a `torch.save`d state dict (bare or under `state_dict`), of TorchScript.

    Of a pickle nothing but tensors and plain containers is read. Raises GentkError for what is none of these.
    """
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        content: Any = _torchscript(path) if _is_torchscript(path) else _pickled(path)
    except (safetensors.SafetensorError, pickle.UnpicklingError, OSError, RuntimeError, EOFError) as error:
        raise GentkError(
            f"{path}: cannot be read as weights: {str(error).splitlines()[0]}", hint="fetch it again"
        ) from error
    if isinstance(content, dict):
        content = content.get("state_dict", content)
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise GentkError(f"{path}: holds no state dict", hint="give the weights of the network, not of a training run")
    return content


def fill(net: nn.Module, state: State, path: Path) -> None:
    """Loads `state` into `net`; raises GentkError naming what `path` has too many or too few of."""
    own = net.state_dict()
    faults = [f"missing {k}" for k in own if k not in state] + [f"unexpected {k}" for k in state if k not in own]
    faults += [
        f"{k} has shape {tuple(v.shape)}, expected {tuple(own[k].shape)}"
        for k, v in state.items()
        if k in own and own[k].shape != v.shape
    ]
    if faults:
        more = f"; and {len(faults) - 4} more" if len(faults) > 4 else ""
        raise GentkError(f"{path}: weights of another network: {'; '.join(faults[:4])}{more}")
    net.load_state_dict(state)


def frozen(net: Net, where: torch.device) -> Net:
    """`net` on `where`, in evaluation mode, in float32, without gradients to its weights."""
    return net.to(where, torch.float32).eval().requires_grad_(False)


def _pickled(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def _torchscript(path: Path) -> State:
    """OpenAI published CLIP so; the code in the archive is loaded, but never run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch means to give TorchScript up
        module: nn.Module = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
    settings = {"input_resolution", "context_length", "vocab_size"}
    return {k: v for k, v in module.state_dict().items() if k not in settings}
