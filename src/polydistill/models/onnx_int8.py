"""Dynamic quantisation of an exported model: int8 weights of 7 or 8 bits, activations scaled at run time."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from polydistill.disk import sync
from polydistill.models.onnx_export import DATA, INLINE_BYTES
from polydistill.models.onnx_runtime import quiet, require_onnx

if TYPE_CHECKING:
    import onnx

FOLDED = "_columns"
# Bits of a matrix's weights. An x86 CPU without VNNI adds two products of an unsigned and a signed byte in 16
# bits, with saturation: 2 x 255 x 127 does not fit, 2 x 255 x 64 does.
WEIGHT_BITS = 7


def quantise_onnx(
    source: Path, target: Path, *, rows: int, tables: bool = True, bits: int = WEIGHT_BITS
) -> None:
    """Write an exported model with int8 weights.

    rows    the vocabulary's size V
    tables  quantise tables of V rows too, with one scale per row
    bits    of matrices: 7 is correct on every CPU; 8 is slightly closer to the float weights, for x86 with
            VNNI and ARM
    Matrices have one symmetric scale per column; activations get one scale per tensor at run time. A table
    tied to the output layer stays tied: its rows are that layer's columns, so both use one int8 copy.
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
        onnx.save_model(model, target, save_as_external_data=big, location=target.name + DATA)
    for written in target.parent.glob(target.name + "*"):
        sync(written)


def _fold_transposes(graph: onnx.GraphProto) -> dict[str, str]:
    """Replace transposed matrices by constants, because the quantiser sees only constants.

    Returns the name of each matrix → the name of its transpose. Matrices that are no longer used are removed.
    """
    from onnx import numpy_helper

    weights = {weight.name: weight for weight in graph.initializer}
    folded: dict[str, str] = {}

    def fold(name: str) -> str:
        if name not in folded:
            folded[name] = name + FOLDED
            columns = np.ascontiguousarray(numpy_helper.to_array(weights[name]).T)
            graph.initializer.append(numpy_helper.from_array(columns, folded[name]))
        return folded[name]

    for node in [node for node in graph.node if node.op_type == "Transpose" and node.input[0] in weights]:
        if len(weights[node.input[0]].dims) == 2:
            _rename(graph, node.output[0], fold(node.input[0]))
            graph.node.remove(node)
    for node in [node for node in graph.node if node.op_type == "Gemm" and node.input[1] in weights]:
        for attribute in node.attribute:
            # The quantiser would transpose it, and leave its shape in the graph as it was.
            if attribute.name == "transB" and attribute.i:
                node.input[1], attribute.i = fold(node.input[1]), 0
    used = {name for node in graph.node for name in node.input}
    for name in folded:
        if name not in used:
            graph.initializer.remove(weights[name])
    return folded


def _tables(graph: onnx.GraphProto, rows: int) -> list[str]:
    """Names of float matrices with `rows` rows that are used for token lookup."""
    from onnx import TensorProto

    matrices = {
        w.name
        for w in graph.initializer
        if len(w.dims) == 2 and w.dims[0] == rows and w.data_type == TensorProto.FLOAT
    }
    return sorted(matrices & {node.input[0] for node in graph.node if node.op_type == "Gather"})


def _quantise_table(graph: onnx.GraphProto, name: str, columns: str) -> None:
    """Replace a table [V, E] by int8 with a scale per row; an int8 `columns` [E, V] becomes its transpose."""
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
        for offset, operator in enumerate(new):
            graph.node.insert(place + offset, operator)


def quantise_rows(table: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """([V, E] int8, [V] scales), symmetric: a row's largest absolute value becomes 127."""
    scale = np.maximum(np.abs(table).max(1), np.finfo(np.float32).tiny) / np.float32(127)
    return np.rint(table / scale[:, None]).astype(np.int8), scale.astype(np.float32)


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name == old:
                node.input[place] = new


def _weight_bytes(graph: onnx.GraphProto) -> int:
    return sum(weight.ByteSize() for weight in graph.initializer)
