"""A one-step generator as a diffusers pipeline, written by `gentk models export --to diffusers`.

    from diffusers import DiffusionPipeline
    pipe = DiffusionPipeline.from_pretrained("FOLDER", trust_remote_code=True)   # runs the two .py files in FOLDER
    images = pipe(batch_size=4, class_labels=[0, 1, 2, 3]).images

This file is copied into the folder and needs torch and diffusers. SPDX-License-Identifier: Apache-2.0
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor


class OneStepPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Noise in, images out, one call of the network. `shape` is that of one image, `classes` 0 for unconditional."""

    def __init__(self, generator: torch.nn.Module, shape: Any = (), classes: int = 0) -> None:
        super().__init__()
        self.register_modules(generator=generator)
        self.register_to_config(shape=list(shape), classes=classes)
        self.processor = VaeImageProcessor(vae_scale_factor=1)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        class_labels: Any = None,
        generator: Any = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Images of `class_labels` (a list, a tensor, one number for all, or None: drawn at random).

        `latents`: unit noise (batch_size, C, H, W), drawn with `generator` when None. `output_type`: pil, np, pt, or
        latent for a tensor in [-1, 1].
        """
        shape = (batch_size, *self.config.shape)
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=self.device, dtype=torch.float32)
        if tuple(latents.shape) != shape:
            raise ValueError(f"latents have shape {tuple(latents.shape)}, not {shape}")
        inputs = [latents.to(self.device, torch.float32)]
        if self.config.classes:
            inputs.append(self._labels(class_labels, batch_size, generator))
        elif class_labels is not None:
            raise ValueError("class_labels: this model has no classes")
        images: Any = self.processor.postprocess(self.generator(*inputs), output_type=output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _labels(self, given: Any, n: int, generator: Any) -> torch.Tensor:
        classes: int = self.config.classes
        if given is None:
            source = generator[0] if isinstance(generator, list) else generator
            where = source.device if source is not None else "cpu"
            return torch.randint(classes, (n,), generator=source, device=where).to(self.device)
        labels = torch.as_tensor(given, dtype=torch.int64, device=self.device).reshape(-1)
        labels = labels.expand(n) if len(labels) == 1 else labels
        if len(labels) != n or int(labels.min()) < 0 or int(labels.max()) >= classes:
            raise ValueError(f"class_labels: {n} numbers from 0 to {classes - 1} are needed, not {labels.tolist()}")
        return labels
