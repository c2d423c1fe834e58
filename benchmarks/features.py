"""Speed of Inception features: gentk, torch-fidelity and clean-fid on the same images, in turns, in one process.

    python benchmarks/features.py [--images 64] [--rounds 3] [--threads 1] [--batch 32]

Weights are random: speed does not depend on them. clean-fid runs a TorchScript of the same network, traced here. Images
per second of processor time, which other work on the machine disturbs least: median of the rounds, and the ratio to
the peer of the same protocol. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "metrics"))
from fid_peers import admit, images, peer, write_weights

from gentk.metrics.protocols import protocol
from gentk.nets import inception

Extract = Callable[[Tensor], Tensor]


def ours(name: str, weights: Path, batch: int) -> Extract:
    return protocol(name, weights=weights, batch=batch).features


def torch_fidelity(weights: Path, batch: int) -> Extract:
    module = peer("torch_fidelity.feature_extractor_inceptionv3")
    net = module.FeatureExtractorInceptionV3("i", ["2048", "logits_unbiased"], feature_extractor_weights_path=weights)
    return lambda x: torch.cat([net(part)[0] for part in x.split(batch)])


def clean_fid(weights: Path, batch: int) -> Extract:
    resize = peer("cleanfid.resize").build_resizer("clean")
    with tempfile.TemporaryDirectory() as folder:
        net = nn.Sequential(OrderedDict(layers=inception.load(weights)))
        example = torch.zeros(1, 3, inception.SIDE, inception.SIDE)
        torch.jit.trace(net, example, check_trace=False).save(f"{folder}/inception-2015-12-05.pt")
        scripted = peer("cleanfid.inception_torchscript").InceptionV3W(folder, download=False)

    def extract(x: Tensor) -> Tensor:
        found = []
        for part in x.permute(0, 2, 3, 1).split(batch):
            resized = np.stack([resize(image) for image in part.numpy()])
            found.append(scripted(torch.from_numpy(resized).permute(0, 3, 1, 2)))
        return torch.cat(found)

    return extract


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=32)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")  # torch.jit's, which clean-fid is built on
    x = images(given.images)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        weights = write_weights(Path(folder) / "weights.pth")
        admit(patch, "INCEPTION", weights)
        rows = {
            ("edm", "torch-fidelity"): torch_fidelity(weights, given.batch),
            ("edm", "gentk"): ours("edm", weights, given.batch),
            ("clean", "clean-fid"): clean_fid(weights, given.batch),
            ("clean", "gentk"): ours("clean", weights, given.batch),
        }
        seconds: dict[tuple[str, str], list[float]] = {row: [] for row in rows}
        features: dict[tuple[str, str], Tensor] = {}
        for extract in rows.values():
            extract(x[: given.batch])  # first calls choose algorithms
        for _ in range(given.rounds):
            for row, extract in rows.items():
                start = time.process_time()
                features[row] = extract(x)
                seconds[row].append(time.process_time() - start)
    print(f"{given.images} images of 32 x 32, {given.threads} thread(s), batches of {given.batch}\n")
    print("| protocol | by | images/s | ratio | relative difference of features |\n|---|---|---|---|---|")
    speed = {row: given.images * given.threads / median(found) for row, found in seconds.items()}
    peers = {"edm": "torch-fidelity", "clean": "clean-fid"}
    for row in rows:
        other = (row[0], peers[row[0]])
        apart = (features[row] - features[other]).norm() / features[other].norm()
        print(f"| {row[0]} | {row[1]} | {speed[row]:.2f} | {speed[row] / speed[other]:.2f} | {apart:.1e} |")


if __name__ == "__main__":
    main()
