"""What the tests of the distillation core share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.tasks.toys import VE, write_teacher


@pytest.fixture
def double() -> Iterator[None]:
    """Everything in float64, so that a tolerance means the formula and not the rounding."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def teacher(tmp_path: Path) -> str:
    """A class-conditional denoiser of points with random weights."""
    return str(write_teacher(tmp_path / "teacher.safetensors", process=VE, classes=3))
