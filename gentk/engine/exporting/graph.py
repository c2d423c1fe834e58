"""Models as ONNX graphs, made from their `torch.export` program: inputs, outputs and meaning as in `program`.

    input    z | x       float32 (batch, *shape)
             sigma       float32 (batch,)            of a denoiser
             labels      int64 (batch,)              of a model with classes
    output   images | points | x0                    float32 (batch, *shape)

The model's header is in the graph's metadata, key by key: licence, sigma_init, recipe and the rest.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gentk.engine.exporting import Source, Written, refuse
from gentk.engine.exporting.program import difference, names, program, quiet
from gentk.processes.models import Model, load
from gentk.recipe import extras

TOLERANCE = 1e-5  # other kernels that sum in another order

_LIMIT = 2**31 - 1  # bytes that one protobuf message can have


def write(source: Source, place: Path) -> Written:
    """Writes the graph to the file `place`, runs it by onnxruntime and compares.

    MissingAsset without the packages of gentk[export], RecipeError for a model too large for the format.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        extras.load(package, "export")
    model = load(str(source.path), kinds=("denoiser", "generator"), where=torch.device("cpu"))
    if 4 * source.header["parameters"] > _LIMIT:
        raise refuse(source, "onnx", "one file of this format holds at most 2 GiB")
    place.write_bytes(_graph(source, model))
    return Written(difference(model, _session(place, model)), TOLERANCE)


def _graph(source: Source, model: Model) -> bytes:
    given, made = names(model)
    made_program = program(model)
    try:
        with quiet(), _without_torchvision():
            found = torch.onnx.export(
                made_program,
                dynamo=True,
                input_names=given,
                output_names=[made],
                dynamic_shapes=({0: "batch"}, *({} for _ in given[1:])),  # for the name: one symbol is in all of them
                custom_translation_table={torch.ops.aten.searchsorted.Tensor: _searchsorted},
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as e:
        last = str(e.__cause__ or e).strip().splitlines()[0]
        raise refuse(source, "onnx", f"torch cannot translate its network: {last}") from e
    assert found is not None
    for node in found.model.graph.all_nodes():
        node.metadata_props.clear()  # where in the source it comes from, with paths of this machine
    found.model.metadata_props.update(source.facts)
    found.model.doc_string = f"{model.header['kind']}: ({', '.join(given)}) -> {made}, by gentk"
    data: bytes = found.model_proto.SerializeToString()
    return data


def _searchsorted(ordered: Any, values: Any, **_: Any) -> Any:
    """How many of `ordered` (N,) are below each value, float64 (B,) -> int64 (B,): torch.searchsorted's default side.

    The bisection of the discrete process, which torch translates to no operator of ONNX.
    """
    from onnxscript import INT64
    from onnxscript import opset20 as op

    last: Any = op.Constant(value_ints=[-1])
    below: Any = op.Less(ordered, op.Unsqueeze(values, last))
    counted: Any = op.Cast(below, to=INT64.dtype)
    return op.ReduceSum(counted, last, keepdims=0)


def _session(place: Path, model: Model) -> Any:
    """The graph as a function of tensors."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(place, options, providers=["CPUExecutionProvider"])
    given, made = names(model)

    def call(*inputs: Tensor) -> Tensor:
        arrays: dict[str, np.ndarray[Any, Any]] = {k: v.numpy() for k, v in zip(given, inputs, strict=True)}
        (out,) = session.run([made], arrays)
        return torch.from_numpy(out)

    return call


@contextmanager
def _without_torchvision() -> Iterator[None]:
    """Without the exporter's line per operator of torchvision that it cannot register: no model here has one."""
    log = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
