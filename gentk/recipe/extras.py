"""Optional packages: imported where they are needed, named with their remedy where they are absent."""

from __future__ import annotations

import importlib
from typing import Any

from gentk.errors import MissingAsset


def load(module: str, extra: str) -> Any:
    """The module named, which `pip install 'gentk[EXTRA]'` brings.

    Raises MissingAsset if it, or what it imports, is absent or does not fit the installed torch.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingAsset(
            f"{module} cannot be imported ({error})", hint=f"pip install 'gentk[{extra}]' (quotes for the shell)"
        ) from error
    except RuntimeError as error:  # what torchvision raises beside a torch that it was not built for
        raise MissingAsset(
            f"{module} cannot be imported ({error})",
            hint="install the torchvision that belongs to the installed torch, CPU or CUDA alike; none is better than"
            " a mismatched one",
        ) from error
