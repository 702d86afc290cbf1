"""Dynamic quantisation of an exported model: weights as int8 of 7 or 8 bits, activations as they come."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from polydistill.disk import sync
from polydistill.models.onnx_export import INLINE_BYTES
from polydistill.models.onnx_runtime import quiet, require_onnx

FOLDED = "_columns"
# Bits of a matrix's weights. An x86 processor without VNNI adds two products of an unsigned and a signed byte in 16 bits,
# and cuts what does not fit: 2 x 255 x 127 does not, 2 x 255 x 64 does.
WEIGHT_BITS = 7


def quantise_onnx(
    source: Path, target: Path, *, rows: int, tables: bool = True, bits: int = WEIGHT_BITS
) -> None:
    """Write an exported model with int8 weights.

    rows    the vocabulary's size V
    tables  quantise tables of V rows too, each row with a scale of its own
    bits    of matrices: 7 is right on every processor, 8 a little nearer to the float weights where it is served with
            VNNI (x86), or on ARM
    Matrices have a scale a column, symmetric; activations get a scale a tensor when the model runs. A table that
    is also the output layer stays one: its rows are that layer's columns, so one int8 copy serves both.
    """
    require_onnx()
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(source)
    folded = _fold_transposes(model.graph)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder, quiet():
        plain, quantised = Path(folder) / "plain.onnx", Path(folder) / "int8.onnx"
        big = _weight_bytes(model.graph) > INLINE_BYTES
        onnx.save_model(model, plain, save_as_external_data=big, location="plain.onnx.data")
        del model
        quantize_dynamic(
            plain,
            quantised,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            reduce_range=bits == 7,
            use_external_data_format=big,
        )
        model = onnx.load(quantised)
        if tables:
            for name in _tables(model.graph, rows):
                _quantise_table(model.graph, name, folded.get(name, ""))
        big = _weight_bytes(model.graph) > INLINE_BYTES
        onnx.save_model(model, target, save_as_external_data=big, location=target.name + ".data")
    for written in target.parent.glob(target.name + "*"):
        sync(written)


def _fold_transposes(graph: Any) -> dict[str, str]:
    """Put a matrix's transpose where the graph transposes it, for what quantises sees matrices alone; name of each
    matrix → name of its transpose. Matrices that nothing else reads go.
    """
    from onnx import numpy_helper

    weights = {weight.name: weight for weight in graph.initializer}
    folded: dict[str, str] = {}
    for node in [node for node in graph.node if node.op_type == "Transpose" and node.input[0] in weights]:
        name = node.input[0]
        if len(weights[name].dims) != 2:
            continue
        if name not in folded:
            folded[name] = name + FOLDED
            columns = np.ascontiguousarray(numpy_helper.to_array(weights[name]).T)
            graph.initializer.append(numpy_helper.from_array(columns, folded[name]))
        _rename(graph, node.output[0], folded[name])
        graph.node.remove(node)
    used = {name for node in graph.node for name in node.input}
    for name in folded:
        if name not in used:
            graph.initializer.remove(weights[name])
    return folded


def _tables(graph: Any, rows: int) -> list[str]:
    """Names of float matrices of so many rows that tokens are looked up in."""
    from onnx import TensorProto

    found = {
        w.name
        for w in graph.initializer
        if len(w.dims) == 2 and w.dims[0] == rows and w.data_type == TensorProto.FLOAT
    }
    return sorted(found & {node.input[0] for node in graph.node if node.op_type == "Gather"})


def _quantise_table(graph: Any, name: str, columns: str) -> None:
    """Replace a table [V, E] by int8 and a scale a row; `columns` [E, V], if it is there in int8, becomes its transpose."""
    from onnx import helper, numpy_helper

    weights = {weight.name: weight for weight in graph.initializer}
    matrix, scales = weights.get(f"{columns}_quantized"), weights.get(f"{columns}_scale")
    whole, scale_name = name + "_int8", name + "_int8_scale"
    if matrix is not None and scales is not None and len(scales.dims) == 1:
        values, scale = numpy_helper.to_array(matrix).T, numpy_helper.to_array(scales)
        transpose = helper.make_node("Transpose", [whole], [matrix.name], perm=[1, 0])
        graph.node.insert(0, transpose)
        graph.initializer.remove(matrix)
    else:
        values, scale = quantise_rows(numpy_helper.to_array(weights[name]))
    graph.initializer.remove(weights[name])
    graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), whole))
    graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(scale)[:, None], scale_name))
    for node in [node for node in graph.node if node.op_type == "Gather" and node.input[0] == name]:
        place, made = list(graph.node).index(node), node.output[0]
        ids = node.input[1]
        graph.node.remove(node)
        new = [
            helper.make_node("Gather", [whole, ids], [made + "_int8"], axis=0),
            helper.make_node("Cast", [made + "_int8"], [made + "_cast"], to=1),
            helper.make_node("Gather", [scale_name, ids], [made + "_scale"], axis=0),
            helper.make_node("Mul", [made + "_cast", made + "_scale"], [made]),
        ]
        for offset, each in enumerate(new):
            graph.node.insert(place + offset, each)


def quantise_rows(table: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """([V, E] int8, [V] scales) whose product is nearest to the table, symmetric: a row's largest number becomes 127."""
    scale = np.maximum(np.abs(table).max(1), np.finfo(np.float32).tiny) / np.float32(127)
    return np.rint(table / scale[:, None]).astype(np.int8), scale.astype(np.float32)


def _rename(graph: Any, old: str, new: str) -> None:
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name == old:
                node.input[place] = new


def _weight_bytes(graph: Any) -> int:
    return sum(weight.ByteSize() for weight in graph.initializer)
