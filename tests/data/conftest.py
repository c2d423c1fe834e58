"""No test here sees the machine's own data, cache or torchvision."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty cache (returned), no GENTK_DATA and no torchvision."""
    home = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    monkeypatch.delenv("GENTK_DATA", raising=False)
    for module in ("torchvision", "torchvision.datasets"):
        monkeypatch.setitem(sys.modules, module, None)
    return home / "gentk" / "data"
