"""What a training run will want of the disk, known before its first step.

At most `keep` + 1 checkpoints lie there at once, the new one beside those that it will replace. One holds every
network, every average and two moments of Adam per parameter. Models are written twice at most, into `export/` and
`best/`.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from gentk.engine.method import Trainable
from gentk.errors import RunFailed

_SPARE = 2**20  # bytes: logs, pictures and a report


@dataclass(frozen=True)
class Room:
    """Bytes: of one checkpoint, of the models that are kept, and how many checkpoints lie there at once."""

    checkpoint: int
    models: int
    count: int

    @property
    def total(self) -> int:
        """What the run folder holds at most."""
        return self.checkpoint * self.count + 2 * self.models + _SPARE

    def __str__(self) -> str:
        return f"{self.count} checkpoints of {size(self.checkpoint)} at most, models {size(self.models)}"


def wanted(method: Trainable, keep: int) -> Room:
    """The room that a run of `method` takes with `train.keep` = keep."""
    moments = sum(2 * p.numel() * p.element_size() for net in method.nets.values() for p in net.parameters())
    models = sum(_bytes(method.nets[name]) for name in method.ema)
    return Room(moments + sum(map(_bytes, method.nets.values())) + models, models, keep + 1)


def check(folder: Path, room: Room) -> None:
    """Raises RunFailed where the disk of the run folder cannot hold what is still to come."""
    here = sum(file.stat().st_size for file in folder.glob("checkpoints/*/*") if file.is_file())
    free = shutil.disk_usage(folder).free
    if free + here < room.total:
        raise RunFailed(
            f"{folder}: the disk has {size(free)} free, the run needs {size(room.total - here)}: {room}",
            hint="free disk space, lower train.keep, or choose another disk with --out",
        )


def size(count: int) -> str:
    """Bytes for eyes: `512 KiB`, `3.4 GiB`."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:,.1f} TiB"


def _bytes(net: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in net.state_dict().values())
