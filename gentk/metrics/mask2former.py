"""Mask2Former (Cheng et al. 2022, arXiv:2112.01527) through transformers, as GenEval's detector.

The network and data of the official detector, trained by others: figures with it are GenEval-compatible, not GenEval.
Preparation and scores follow the official stack (mmdet): shorter side 800 but longer at most 1333, ImageNet's mean and
deviation, the 100 best pairs of query and class, score = class probability times mean probability inside the mask,
which is cut at 0.5 in the picture's own resolution.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentk.errors import GentkError, RunFailed
from gentk.metrics.geneval import Detection, Objects
from gentk.recipe import hub

MODEL = "facebook/mask2former-swin-small-coco-instance"
# GenEval's names of COCO's 80 classes, in COCO's order.
# fmt: off
CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "computer mouse", "tv remote", "computer keyboard", "cell phone", "microwave", "oven", "toaster",
    "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)
# fmt: on
_MEAN, _STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
_DIVISOR = 32  # sides are padded to a multiple


class Mask2Former:
    """`detector(images)`: uint8 (N, 3, H, W) -> the detections of each picture, with boxes and masks in its pixels."""

    def __init__(self, net: nn.Module, name: str, *, shorter: int = 800, longer: int = 1333, best: int = 100) -> None:
        self.net, self.name = net.eval().requires_grad_(False), name
        self.shorter, self.longer, self.best = shorter, longer, best

    @torch.no_grad()  # a measurement
    def __call__(self, images: Tensor) -> list[Objects]:
        """uint8 (N, 3, H, W) -> for each picture, detections by class. Raises RunFailed for other images."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise RunFailed(f"images are {images.dtype} {tuple(images.shape)}, expected uint8 (N, 3, H, W)")
        where = next(self.net.parameters()).device
        # One at a time, as the official tool does: a picture's figure must not depend on its neighbours.
        return [self._detect(image.to(where)) for image in images]

    def _detect(self, image: Tensor) -> Objects:
        height, width = image.shape[1:]
        scale = min(self.shorter / min(height, width), self.longer / max(height, width))
        size = (round(height * scale), round(width * scale))
        x = F.interpolate(image[None].float(), size, mode="bilinear", align_corners=False)
        mean, std = (x.new_tensor(v).view(3, 1, 1) for v in (_MEAN, _STD))
        x = F.pad((x - mean) / std, (0, -size[1] % _DIVISOR, 0, -size[0] % _DIVISOR))
        out = self.net(pixel_values=x, pixel_mask=x.new_ones(1, *x.shape[2:], dtype=torch.long))
        masks = F.interpolate(out.masks_queries_logits, x.shape[2:], mode="bilinear", align_corners=False)
        masks = masks[..., : size[0], : size[1]]
        masks = F.interpolate(masks, (height, width), mode="bilinear", align_corners=False)[0]
        return _objects(out.class_queries_logits[0].softmax(-1)[:, :-1], masks, self.best)  # the last class: nothing


def build(weights: Path | str | None = None, *, where: torch.device, offline: bool = False) -> Mask2Former:
    """The detector of a transformers folder or hub id.

    Raises MissingAsset for what is absent, GentkError for another model.
    """
    place = hub.folder(weights or MODEL, offline=offline)
    net = hub.pretrained("Mask2FormerForUniversalSegmentation", place)
    if (count := net.config.num_labels) != len(CLASSES):
        raise GentkError(
            f"{place}: a detector of {count} classes, expected COCO's {len(CLASSES)}", hint=f"as in {MODEL}"
        )
    return Mask2Former(net.to(where, torch.float32), str(weights or MODEL))


def _objects(probabilities: Tensor, logits: Tensor, best: int) -> Objects:
    """Probabilities (Q, K) and masks (Q, H, W) of the queries -> detections by class; empty masks are none."""
    count = probabilities.shape[1]
    scores, pairs = probabilities.flatten().topk(min(best, probabilities.numel()))
    found: dict[str, list[Detection]] = {}
    for score, pair in zip(scores.tolist(), pairs.tolist(), strict=True):
        inside = logits[pair // count] > 0
        if not inside.any():
            continue
        certainty = logits[pair // count].sigmoid()[inside].mean().item()
        rows, columns = inside.any(1).nonzero().flatten(), inside.any(0).nonzero().flatten()
        left, top, right, bottom = (v.item() for v in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
        found.setdefault(CLASSES[pair % count], []).append(
            Detection((left, top, right, bottom), score * certainty, inside.cpu())
        )
    return found
