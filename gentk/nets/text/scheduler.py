"""What a pipeline's scheduler says of its network: the process, what it predicts and is told, and the flow's shift."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gentk.errors import GentkError
from gentk.recipe import schema
from gentk.recipe.pipelines import read_json

_TARGETS: dict[str, schema.Predicts] = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
_SCHEDULES = {"linear": "linear", "scaled_linear": "scaled-linear", "squaredcos_cap_v2": "cosine"}
_FLOW = "FlowMatchEulerDiscreteScheduler"


@dataclass(frozen=True)
class Meaning:
    """How the network's inputs and output are read; `shift` moves grids and laws of time, never the network's label."""

    process: schema.Process
    predicts: schema.Predicts
    inputs: schema.Inputs
    shift: float = 1.0


def read(place: Path) -> Meaning:
    """The meaning that the scheduler in the pipeline folder `place` gives. Raises GentkError for one without ours."""
    path = place / "scheduler" / "scheduler_config.json"
    config = read_json(path)
    steps = int(config.get("num_train_timesteps", 1000))
    if config.get("_class_name") == _FLOW:
        if config.get("use_dynamic_shifting"):
            raise GentkError(f"{path}: its shift depends on the resolution", hint="gentk has a fixed shift")
        inputs = schema.Inputs(scale="process", label="time", factor=float(steps), offset=0.0)
        process = schema.RectifiedFlow(name="rectified-flow")
        return Meaning(process, "flow", inputs, float(config.get("shift", 1.0)))
    return Meaning(
        _discrete(path, config, steps),
        _target(path, config),
        schema.Inputs(scale="process", label="time", factor=1.0, offset=-1.0),
    )


def _discrete(path: Path, config: Mapping[str, Any], steps: int) -> schema.Discrete:
    schedule = config.get("beta_schedule", "linear")
    if schedule not in _SCHEDULES or config.get("trained_betas") is not None or config.get("rescale_betas_zero_snr"):
        raise GentkError(
            f"{path}: betas by `{schedule}`{' of its own or rescaled' if schedule in _SCHEDULES else ''}",
            hint=f"gentk has {', '.join(_SCHEDULES)}",
        )
    values = {
        "name": "discrete",
        "schedule": _SCHEDULES[schedule],
        "beta_start": float(config.get("beta_start", 1e-4)),
        "beta_end": float(config.get("beta_end", 0.02)),
        "steps": steps,
    }
    return schema.Discrete.model_validate(values)


def _target(path: Path, config: Mapping[str, Any]) -> schema.Predicts:
    target = config.get("prediction_type", "epsilon")
    if target not in _TARGETS:
        raise GentkError(f"{path}: prediction_type `{target}`", hint=f"gentk has {', '.join(_TARGETS)}")
    return _TARGETS[target]
