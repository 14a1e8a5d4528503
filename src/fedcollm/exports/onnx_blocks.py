"""Matrices of an ONNX file in 8 bits: blocks of columns, each with a scale of its own, as in GGUF's q8_0.

A scale for a whole tensor of activations, as in onnxruntime's `quantize_dynamic`, loses what a gated MLP computes: its
few largest values are a hundred times the others. On public texts of `icd10`, the KL of the 10-layer SLM to its file in
float32 was .130 nats per token, .013 of which were left with the second matrix of each MLP in float32; half of these
came from the embedding, which had one scale too. With blocks of 32 it is .003, and a token takes a third of the time.
"""

from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

#: Columns in a block.
BLOCK = 32
#: Activations are quantized to 8 bits in blocks as well, which is what makes the product fast (4 of onnxruntime's 0-4).
_ACCURACY = 4
#: Operators of onnxruntime that are not in the standard of ONNX.
_DOMAIN = "com.microsoft"
#: Largest file without its tensors beside it, in bytes: protobuf's limit is 2 GiB.
_LARGEST = 2_000_000_000


def in_blocks(matrix: Array) -> tuple[Array, Array]:
    """Return a matrix in 8 bits, and the scales of its blocks.

    >>> stored, scales = in_blocks(np.array([[254.0, -2.0]]))
    >>> stored.shape, stored[0, 0, :3].tolist(), scales.tolist()
    ((1, 1, 32), [255, 127, 128], [[2.0]])

    Args:
        matrix: [N, K] float32.

    Returns:
        [N, B, BLOCK] uint8, where 128 stands for 0 and the last block is filled up with it, and [N, B] float32.
    """
    rows, columns = matrix.shape
    filled = np.pad(matrix, ((0, 0), (0, -columns % BLOCK))).reshape(rows, -1, BLOCK)
    largest = np.abs(filled).max(-1, keepdims=True)
    scales = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    return (np.rint(filled / scales) + 128).astype(np.uint8), scales[..., 0]


def write_in_blocks(plain: Path, file: Path) -> None:
    """Write an ONNX file again, with the matrices that it multiplies by and the tables that it reads rows of in 8 bits.

    A table that is a matrix too, as of a language model whose head is its embedding, is stored once.

    Args:
        plain: the file in float32.
        file: the new file.
    """
    onnx: Any = import_module("onnx")
    model: Any = onnx.load(str(plain))
    graph = model.graph
    matrices = _Matrices(graph)
    nodes = [new for node in graph.node for new in matrices.rewritten(node)]
    nodes = list(_used(nodes, {output.name for output in graph.output}))
    named = {name for node in nodes for name in node.input}
    tensors = [tensor for tensor in (*graph.initializer, *matrices.stored.values()) if tensor.name in named]
    for field, values in ((graph.node, nodes), (graph.initializer, tensors)):
        del field[:]
        field.extend(values)
    del graph.value_info[:]
    model.opset_import.append(onnx.helper.make_opsetid(_DOMAIN, 1))
    beside = model.ByteSize() > _LARGEST
    onnx.save_model(model, str(file), save_as_external_data=beside, location=f"{file.name}.data")


def _used(nodes: list[Any], wanted: set[str]) -> Iterator[Any]:
    """Yield the nodes that an output depends on, in their order."""
    kept: list[Any] = []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            wanted |= set(node.input)
            kept.append(node)
    yield from reversed(kept)


class _Matrices:
    """The constant matrices of a graph.

    Args:
        graph: ONNX's `GraphProto`.

    Attributes:
        stored: name to tensor of those that were quantized, and of their scales.
    """

    def __init__(self, graph: Any):
        self._onnx: Any = import_module("onnx")
        floats = self._onnx.TensorProto.FLOAT
        two = [tensor for tensor in graph.initializer if len(tensor.dims) == 2 and tensor.data_type == floats]
        self._tensors: Mapping[str, Any] = {tensor.name: tensor for tensor in two}
        turned = [node for node in graph.node if node.op_type == "Transpose" and node.input[0] in self._tensors]
        self._turned: Mapping[str, str] = {node.output[0]: node.input[0] for node in turned}
        known = (*graph.input, *graph.value_info)
        self._ranks: Mapping[str, int] = {one.name: len(one.type.tensor_type.shape.dim) for one in known}
        self.stored: dict[str, Any] = {}

    def rewritten(self, node: Any) -> list[Any]:
        """Return the nodes that compute what a node does, from 8 bits if it uses a constant matrix."""
        if node.op_type == "MatMul":
            name = self._turned.get(node.input[1], node.input[1])
            return self._product(node, name, node.input[1] in self._turned)
        if node.op_type == "Gemm":
            options = {one.name: self._onnx.helper.get_attribute_value(one) for one in node.attribute}
            plain = options.get("alpha", 1) == options.get("beta", 1) == 1 and not options.get("transA")
            return self._product(node, node.input[1], bool(options.get("transB"))) if plain else [node]
        return self._rows(node) if node.op_type == "Gather" else [node]

    def _product(self, node: Any, name: str, by_rows: bool) -> list[Any]:
        """Return a product with a matrix.

        Args:
            node: the product, perhaps with a bias as its third input.
            name: the matrix.
            by_rows: whether it is [outputs, inputs] rather than [inputs, outputs].
        """
        if name not in self._tensors:
            return [node]
        first, second = self._tensors[name].dims
        inputs, outputs = (second, first) if by_rows else (first, second)
        bias = list(node.input[2:])
        made = f"{node.output[0]}_without_bias" if bias else node.output[0]
        product = self._onnx.helper.make_node(
            "MatMulNBits", [node.input[0], *self._store(name, by_rows)], [made], domain=_DOMAIN,
            K=inputs, N=outputs, bits=8, block_size=BLOCK, accuracy_level=_ACCURACY,
        )  # fmt: skip
        return [product, *([self._onnx.helper.make_node("Add", [made, *bias], list(node.output))] if bias else [])]

    def _rows(self, node: Any) -> list[Any]:
        """Return the choice of rows from a table, such as an embedding."""
        name, asked = node.input
        axis = [one.i for one in node.attribute if one.name == "axis" and one.i]
        if axis or name not in self._tensors or self._tensors[name].dims[1] % BLOCK or asked not in self._ranks:
            return [node]
        (stored, scales), made = self._store(name, True), node.output[0]
        helper = self._onnx.helper
        chosen = helper.make_node(
            "GatherBlockQuantized", [stored, asked, f"{made}_scales"], [f"{made}_in_blocks"], domain=_DOMAIN,
            gather_axis=0, quantize_axis=2, block_size=BLOCK, bits=8,
        )  # fmt: skip
        return [
            helper.make_node("Reshape", [scales, self._shape(f"{made}_scales_shape", [0, 0, 1])], [f"{made}_scales"]),
            chosen,
            helper.make_node(
                "Reshape", [f"{made}_in_blocks", self._shape(f"{made}_shape", [0] * self._ranks[asked] + [-1])], [made]
            ),
        ]

    def _shape(self, name: str, shape: list[int]) -> str:
        """Store the shape of a `Reshape`, where 0 keeps a dimension; return its name."""
        self.stored[name] = self._onnx.numpy_helper.from_array(np.array(shape), name)
        return name

    def _store(self, name: str, by_rows: bool) -> tuple[str, str]:
        """Return the names of a matrix in 8 bits and of its scales, and store them once."""
        names = (f"{name}_by_rows" if by_rows else f"{name}_in_8_bits", f"{name}_scales_{by_rows:d}")
        if names[0] not in self.stored:
            values: Array = self._onnx.numpy_helper.to_array(self._tensors[name])
            for one, array in zip(names, in_blocks(values if by_rows else values.T), strict=True):
                self.stored[one] = self._onnx.numpy_helper.from_array(array, one)
        return names
