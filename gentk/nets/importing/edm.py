"""Pickles of NVlabs/edm: the preconditioner's class and arguments say all.

    class         process                    D = c_skip x + c_out F, as arXiv:2206.00364, table 1 has it
    EDMPrecond    ve                         EDM's own
    VPPrecond     vp, beta of the file       x - s F(x / sqrt(1 + s^2), (M - 1) t)
    VEPrecond     ve                         x + s F(x, ln(s / 2))

iDDPMPrecond is refused: its label is the index of the nearest of M levels, a staircase that no label of ours is.
Snapshots of Diff-Instruct, SiD and others keep their network in the same place, `ema`.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from gentk.errors import GentkError
from gentk.nets import keymaps, pickles
from gentk.nets.importing import Imported, empty
from gentk.nets.importing.settings import Settings
from gentk.nets.inert import Record, what
from gentk.recipe import schema

_CLASSES = ("EDMPrecond", "VPPrecond", "VEPrecond")
_ATTRIBUTES = (
    *("sigma_min", "sigma_max", "sigma_data", "beta_d", "beta_min", "M", "epsilon_t"),
    *("img_resolution", "img_channels", "label_dim", "use_fp16"),
)


def read(path: Path, settings: Settings) -> Imported:
    """The network `ema` of the pickle. Raises GentkError for another class or architecture."""
    content = pickles.read(path)
    if not isinstance(content, dict) or not isinstance(content.get("ema"), Record):
        kind = f"the keys {', '.join(map(str, list(content)[:6]))}" if isinstance(content, dict) else what(content)
        raise GentkError(
            f"{path}: no network under `ema` as in NVlabs/edm's snapshots, but {kind}", hint="is --as another format?"
        )
    record: Record = content["ema"]
    if record.name not in _CLASSES:
        why = "its labels are the nearest of its own levels" if record.name == "iDDPMPrecond" else "not known here"
        raise GentkError(
            f"{path}: preconditioner {record.name}: {why}", hint=f"what can be imported: {', '.join(_CLASSES)}"
        )
    kwargs = record.get("_init_kwargs")
    if not isinstance(kwargs, dict) or record.get("_init_args"):
        raise GentkError(f"{path}: {record.name} does not keep its arguments by name")
    section, shape, classes = keymaps.edm_section(kwargs)
    state = keymaps.edm(pickles.state_dict(record), empty(section, shape, classes))
    attributes = {name: record.get(name) for name in _ATTRIBUTES if isinstance(record.get(name), int | float)}
    process, predicts, inputs = _form(record.name, attributes, settings, path)
    facts = {"format": "edm", "class": record.name, "init_kwargs": _plain(kwargs), "attributes": _plain(attributes)}
    more = {"label_dropout": float(kwargs.get("label_dropout", 0))} if classes else {}
    return Imported(
        net=section,
        shape=shape,
        classes=classes,
        process=process,
        predicts=predicts,
        inputs=inputs,
        state=state,
        facts=facts,
        sigma_data=float(attributes.get("sigma_data", 0.5)),
        more=more,
    )


def _form(
    name: str, attributes: dict[str, Any], settings: Settings, path: Path
) -> tuple[schema.Process, schema.Predicts, schema.Inputs]:
    """Process, prediction and inputs of a preconditioner."""
    if name == "VPPrecond":
        if missing := [k for k in ("beta_d", "beta_min", "M", "epsilon_t") if k not in attributes]:
            raise GentkError(f"{path}: VPPrecond without {', '.join(missing)}")
        low = float(attributes["beta_min"])
        vp = settings.section(
            schema.VP,
            "process",
            name="vp",
            beta_min=low,
            beta_max=low + float(attributes["beta_d"]),
            t_min=float(attributes["epsilon_t"]),
        )
        return vp, "eps", schema.Inputs(scale="process", label="time", factor=float(attributes["M"] - 1))
    # EDMPrecond takes any sigma; its sampler keeps to 0.002 to 80
    low, high = (0.002, 80.0) if name == "EDMPrecond" else (0.02, 100.0)
    low, high = max(low, attributes.get("sigma_min", low)), min(high, attributes.get("sigma_max", high))
    ve = settings.section(schema.VE, "process", name="ve", sigma_min=float(low), sigma_max=float(high))
    if name == "EDMPrecond":
        return ve, "edm", schema.Inputs()
    return ve, "reverse-eps", schema.Inputs(scale="process", label="log-ratio", factor=1.0, offset=-math.log(2))


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """What JSON can hold of them: infinities and all else become text."""
    found = {}
    for name, value in values.items():
        try:
            found[name] = json.loads(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError):
            found[name] = str(value)
    return found
