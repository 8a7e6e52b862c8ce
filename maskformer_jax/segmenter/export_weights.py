"""ONNX files with weights of fewer bits, or without those that nothing reads."""

import logging
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from etils import epath

_FEWEST = 1024  # values of a constant that is worth converting
# How files are written: with their weights in a second one, as a file holds less than 2 GB.
_EXTERNAL = {"save_as_external_data": True, "all_tensors_to_one_file": True}


def halve(path: epath.Path) -> None:
    """Rewrites a file with its constants in float16, unless they are too large. It computes in float32 as before."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(os.fspath(path))
    graph, casts = model.graph, []
    for tensor in graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or np.prod(tensor.dims) < _FEWEST:
            continue
        name, values = tensor.name, numpy_helper.to_array(tensor)
        if np.abs(values).max() > np.finfo(np.float16).max:  # those that exclude keys from attention, for example
            continue
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}_float16"))
        casts.append(helper.make_node("Cast", [tensor.name], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *graph.node]  # a node comes after those whose outputs it reads
    del graph.node[:]
    graph.node.extend(nodes)
    _replace(path, lambda to: onnx.save(model, to, location="model.onnx.data", **_EXTERNAL))


def quantize(path: epath.Path) -> None:
    """Rewrites a file with the weights of its products and convolutions in 8 bits.

    They read 8 bits, whose range is found for each image, and add up whole numbers; all else is as before. By ONNX
    Runtime's dynamic quantization, which needs no images to calibrate.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    # Convolutions read transposed weights, which are constants only when that is folded. What else it would do fails on
    # the loops of a panoptic result.
    folded = path.parent / "folded.onnx"
    skipped = {"skip_symbolic_shape": True, "skip_onnx_shape": True}
    quant_pre_process(
        os.fspath(path), os.fspath(folded), external_data_location="folded.onnx.data", **skipped, **_EXTERNAL
    )
    logger = logging.getLogger()
    disabled, logger.disabled = logger.disabled, True  # it advises to do what was done here
    try:
        # Unsigned: ONNX Runtime has no convolution of signed weights.
        options = {"op_types_to_quantize": ["MatMul", "Conv"], "weight_type": QuantType.QUInt8}
        _replace(path, lambda to: quantize_dynamic(os.fspath(folded), to, use_external_data_format=True, **options))
    finally:
        logger.disabled = disabled
        for file in folded.parent.glob("folded.onnx*"):
            file.unlink()


def drop_unread(path: epath.Path) -> None:
    """Rewrites a file without the constants that nothing reads, of which ONNX Runtime warns each time it reads one."""
    import onnx

    model = onnx.load(os.fspath(path), load_external_data=False)
    _drop_unread(model.graph)
    onnx.save(model, os.fspath(path))


def _drop_unread(graph: Any) -> set[str]:
    """Drops them from a graph and those within it, and returns the names of all that these read."""
    read = {output.name for output in graph.output}
    for node in graph.node:
        read.update(node.input, *(_drop_unread(attribute.g) for attribute in node.attribute if attribute.HasField("g")))
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return read


def _replace(path: epath.Path, write: Callable[[str], None]) -> None:
    """Writes a file in the place of another, whose weights may be in a second file."""
    for file in path.parent.glob("model.onnx*"):
        file.unlink()
    write(os.fspath(path))


WEIGHTS = {"float16": halve, "int8": quantize}
