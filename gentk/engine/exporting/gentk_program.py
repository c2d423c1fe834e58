"""The generator of a folder that `gentk models export --to diffusers` wrote: a torch.export program.

This file is copied into the folder and needs torch alone. SPDX-License-Identifier: Apache-2.0
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.export.passes import move_to_device_pass


class GentkProgram(nn.Module):
    """z (B, C, H, W) float32, labels (B,) int64 of a model with classes -> images (B, C, H, W) in [-1, 1]."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        super().__init__()
        self.program = program
        self.module = program.module()
        self.device = torch.device("cpu")
        self.dtype = torch.float32

    @classmethod
    def from_pretrained(cls, folder: str, torch_dtype: Any = None, **_: Any) -> Self:
        """The program in the folder; what diffusers has to say about memory does not apply to it."""
        if torch_dtype not in (None, "auto", torch.float32):
            raise ValueError(f"the program computes in float32, not in {torch_dtype}")
        return cls(torch.export.load(Path(folder) / "program.pt2"))

    def to(self, device: Any = None, dtype: Any = None, **_: Any) -> Self:  # type: ignore[override]
        """The program on another device; constants in it move along, which those of a plain module would not."""
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        if dtype not in (None, torch.float32):
            raise ValueError(f"the program computes in float32, not in {dtype}")
        if device is not None and torch.device(device) != self.device:
            self.program = move_to_device_pass(self.program, torch.device(device))
            self.module, self.device = self.program.module(), torch.device(device)
        return self

    def forward(self, *inputs: Tensor) -> Tensor:
        """The images, not rounded."""
        images: Tensor = self.module(*inputs)
        return images
