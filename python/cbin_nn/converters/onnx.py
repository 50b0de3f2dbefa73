r"""Reader of ONNX and QONNX files, with the `onnx` package; no onnxruntime, nothing is executed.

Works for PyTorch's dynamo exporter (`torch.onnx.export(..., dynamo=True)`, optimized or with
`optimize=False`), its TorchScript exporter, and Brevitas' QONNX (`BipolarQuant`). This module only
translates node by node into a `cbin_nn.converters.program.Program`.

A file is hostile until read: its size is bounded, a size that an initializer states is compared with the
bytes that are there, and arrays in a second file (torch's exporter writes one) are read from beside the model
alone.
"""

from __future__ import annotations

import importlib
import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConversionError, MissingExtra
from . import files
from .graph import Graph
from .program import MAX_ELEMENTS, Array, Operation, Program
from .translate import translate

__all__ = ["read_onnx", "read_onnx_program"]

_MAX_FILE = 2**31 - 1  # a protobuf's limit
_RELATIONS = {"GreaterOrEqual": "ge", "Greater": "gt", "LessOrEqual": "le", "Less": "lt"}
_SAME_NAME = {
    "Add": "add",
    "Sub": "sub",
    "Mul": "mul",
    "Div": "div",
    "Neg": "neg",
    "Abs": "abs",
    "Sign": "sign",
    "Sqrt": "sqrt",
    "Pow": "pow",
    "Tanh": "tanh",
    "Where": "where",
    "PRelu": "prelu",
    "Reshape": "reshape",
    "Expand": "expand",
    "MatMul": "matmul",
}


def _onnx() -> Any:
    try:
        return importlib.import_module("onnx")
    except ImportError as error:
        raise MissingExtra(
            "missing-extra", "reading ONNX files needs the onnx package; run: pip install 'cbin-nn[onnx]'"
        ) from error
    except Exception as error:  # as with a NumPy or ml_dtypes that it was not built for
        raise MissingExtra(
            "missing-extra",
            f"the onnx package is installed and does not import ({type(error).__name__}: {error}); run: "
            "pip install --upgrade onnx ml_dtypes numpy",
        ) from error


def _module_path(node: Any) -> str:
    """Path of the torch module that a node of the dynamo exporter came from, as `features.0`; "" where it
    says none. A quantizer of Brevitas counts as the module that it belongs to."""
    for entry in node.metadata_props:
        if entry.key == "pkg.torch.onnx.name_scopes":
            scopes = re.findall(r"'([^']*)'", entry.value)[:-1]  # the last is the node's own
            return re.sub(r"\.(weight|bias|act|input|output)_quant\b.*", "", scopes[-1]) if scopes else ""
    return ""


def read_onnx(path: str | os.PathLike[str]) -> Graph:
    """Read an ONNX or QONNX file into a source graph.

    Args:
        path: the file; one float image `[N, C, H, W]` in, one tensor out.

    Raises:
        ConversionError: the file can't be read, or holds what can't be converted.
        MissingExtra: the `onnx` package is not installed.
    """
    return translate(read_onnx_program(path))


def read_onnx_program(path: str | os.PathLike[str]) -> Program:
    """As `read_onnx`, before translation."""
    onnx = _onnx()
    path = Path(path)
    size = path.stat().st_size
    if size > _MAX_FILE:
        raise ConversionError("damaged-file", f"{size} bytes is too large for an ONNX file")
    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise ConversionError("damaged-file", f"not a readable ONNX file ({reason})") from error
    return _Importer(onnx, model, path.parent).program()


class _Importer:
    def __init__(self, onnx: Any, model: Any, folder: Path) -> None:
        self.folder = folder
        self.onnx, self.model, self.graph = onnx, model, model.graph
        self.constants: dict[str, Array] = {}
        self.operations: list[Operation] = []
        self.opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)

    def program(self) -> Program:
        for initializer in self.graph.initializer:
            self.constants[initializer.name] = self._array(initializer, initializer.name)
        inputs = [i for i in self.graph.input if i.name not in self.constants]
        if len(inputs) != 1 or len(self.graph.output) != 1:
            raise ConversionError(
                "unsupported-model",
                f"the network has {len(inputs)} inputs and {len(self.graph.output)} outputs; one image in "
                "and "
                "one tensor out converts",
            )
        name = inputs[0].name
        shape = self._input_shape(inputs[0])
        for index, node in enumerate(self.graph.node):
            self._node(node, index)
        return Program(
            self.graph.name or "model",
            name,
            shape,
            self.constants,
            self.operations,
            self.graph.output[0].name,
            name_by_parameters=not any(map(_module_path, self.graph.node)),
        )

    def _input_shape(self, value: Any) -> tuple[int, ...]:
        sides = []
        for i, side in enumerate(value.type.tensor_type.shape.dim):
            fixed = int(side.dim_value) if side.WhichOneof("value") == "dim_value" else 0
            if i and not 0 < fixed < 2**31:
                raise ConversionError(
                    "unsupported-option",
                    f"input {value.name!r} has no fixed side number {i}; export with a fixed image size",
                )
            sides.append(fixed if i else 1)
        return tuple(sides)

    def _external(self, tensor: Any, what: str, count: int) -> Array:
        """An array in a second file, which must lie beside the first one."""
        entries = {entry.key: entry.value for entry in tensor.external_data}
        name = entries.get("location", "")
        path = self.folder / name
        if (
            not name
            or Path(name).name != name
            or name in (".", "..")
            or path.is_symlink()
            or not path.is_file()
        ):
            raise ConversionError(
                "unsupported-file",
                f"{what!r} lies in {name[:80]!r}, which is no file beside the model; keep the two together, "
                "or save "
                "the model in one file (onnx.save(model, path, save_as_external_data=False))",
            )
        dtype = np.dtype(self.onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
        bytes_ = count * dtype.itemsize
        try:
            offset = int(entries.get("offset", 0))
            length = int(entries.get("length", bytes_))
        except ValueError as error:
            raise ConversionError("damaged-file", f"{what!r}: its place in {name!r} is no number") from error
        if offset < 0 or length != bytes_ or offset + length > path.stat().st_size:
            raise ConversionError("damaged-file", f"{what!r} reaches beyond the file {name!r}")
        files.on_further_file(path)
        with path.open("rb") as file:
            file.seek(offset)
            content = file.read(length)
        return np.frombuffer(content, dtype.newbyteorder("<")).reshape(tuple(tensor.dims)).astype(dtype)

    def _array(self, tensor: Any, what: str) -> Array:
        count = math.prod(tensor.dims)
        if any(side < 0 for side in tensor.dims) or count > MAX_ELEMENTS:
            raise ConversionError("damaged-file", f"{what!r} of shape {list(tensor.dims)[:8]} is too large")
        if tensor.data_location == self.onnx.TensorProto.EXTERNAL or tensor.external_data:
            return self._external(tensor, what, count)
        typed = max(
            len(getattr(tensor, name))
            for name in ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")
        )
        if count > max(typed, len(tensor.raw_data)):
            raise ConversionError(
                "damaged-file", f"{what!r} states {count} elements, and the file holds fewer"
            )
        try:
            array: Array = np.asarray(self.onnx.numpy_helper.to_array(tensor))
        except Exception as error:
            raise ConversionError("damaged-file", f"{what!r} can't be read ({error})") from error
        return array

    # -- nodes

    def _node(self, node: Any, index: int) -> None:
        layer = self._layer(node, index)
        attributes = {a.name: a for a in node.attribute}
        if node.domain not in ("", "ai.onnx") and node.op_type not in ("BipolarQuant",):
            self._unsupported(node, layer, f"an operator of the domain {node.domain!r}")
            return
        if node.op_type == "Constant":
            self.constants[node.output[0]] = self._constant(attributes, layer)
            return
        handler = getattr(self, f"_op_{node.op_type.lower()}", None)
        if node.op_type in _SAME_NAME:
            self._emit(_SAME_NAME[node.op_type], node, layer)
        elif node.op_type in _RELATIONS:
            self._emit("compare", node, layer, relation=_RELATIONS[node.op_type])
        elif handler is not None:
            handler(node, layer, {a.name: self.onnx.helper.get_attribute_value(a) for a in node.attribute})
        else:
            self._unsupported(node, layer, "no operator of this kind converts")

    @staticmethod
    def _layer(node: Any, index: int) -> str:
        """TorchScript names nodes by module path; dynamo keeps the path beside the node."""
        path = _module_path(node)
        if path:
            return path[:200]
        made = node.output[0] if node.output else f"{node.op_type}_{index}"
        return str(node.name if "/" in node.name else made)[:200]

    def _emit(self, kind: str, node: Any, layer: str, inputs: Any = None, **attributes: Any) -> None:
        names = tuple(name for name in (node.input if inputs is None else inputs) if name)
        self.operations.append(Operation(kind, layer, names, node.output[0], attributes))

    def _unsupported(self, node: Any, layer: str, reason: str) -> None:
        self._emit("unsupported", node, layer, name=node.op_type, reason=reason)

    def _constant(self, attributes: dict[str, Any], layer: str) -> Array:
        value = {name: self.onnx.helper.get_attribute_value(a) for name, a in attributes.items()}
        if "value" in value:
            return self._array(value["value"], layer)
        for name, dtype in (
            ("value_float", np.float32),
            ("value_floats", np.float32),
            ("value_int", np.int64),
            ("value_ints", np.int64),
        ):
            if name in value:
                return np.asarray(value[name], dtype)
        raise ConversionError("unsupported-layer", f"layer {layer!r}: a constant of a kind that is not read")

    def _known(self, name: str) -> Array | None:
        """A small constant that an attribute became in a later opset; made by initializers or Constant
        nodes."""
        return self.constants.get(name)

    def _op_identity(self, node: Any, layer: str, a: dict[str, Any]) -> None:
        self._emit("identity", node, layer)

    def _op_dropout(self, node: Any, layer: str, a: dict[str, Any]) -> None:
        self._emit("identity", node, layer, node.input[:1], dropped="dropout does nothing at inference")

    def _op_cast(self, node: Any, layer: str, a: dict[str, Any]) -> None:
        self._emit("cast", node, layer, dtype=self._dtype(a["to"]))

    def _op_castlike(self, node: Any, layer: str, a: dict[str, Any]) -> None:
        self._emit("cast", node, layer, node.input[:1], dtype="float32")

    def _dtype(self, code: int) -> str:
        return str(np.dtype(self.onnx.helper.tensor_dtype_to_np_dtype(code)))

    def _op_conv(self, node: Any, layer: str, a: dict[str, Any]) -> None:
        kernel = [int(v) for v in a.get("kernel_shape", ())]
        weight = self.constants.get(node.input[1])
        if not kernel and weight is not None:
            kernel = list(weight.shape[2:])
        if len(kernel) != 2 and "strides" in a and len(a["strides"]) != 2:
            self._unsupported(node, layer, "only 2-D convolutions convert")
            return
        self._emit(
            "conv2d",
            node,
            layer,
            strides=tuple(a.get("strides", (1, 1))),
            dilation=tuple(a.get("dilations", (1, 1))),
            groups=int(a.get("group", 1)),
            padding=self._pads(a),
        )

    @staticmethod
    def _pads(a: dict[str, Any]) -> Any:
        auto = a.get("auto_pad", b"NOTSET")
        auto = auto.decode() if isinstance(auto, bytes) else auto
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            return auto
        return tuple(a.get("pads", (0, 0, 0, 0))) if auto == "NOTSET" else (0, 0, 0, 0)

    def _op_maxpool(self, node: Any, layer: str, a: dict[str, Any]) -> None:
        kernel = tuple(a["kernel_shape"])
        self._emit(
            "max_pool2d",
            node,
            layer,
            kernel=kernel,
            strides=tuple(a.get("strides", (1,) * len(kernel))),
            dilation=tuple(a.get("dilations", (1,) * len(kernel))),
            padding=self._pads(a),
            ceil_mode=bool(a.get("ceil_mode", 0)),
        )

    def _op_batchnormalization(self, node: Any, layer: str, a: dict[str, Any]) -> None:
        if a.get("training_mode", 0):
            self._unsupported(node, layer, "exported in training mode; call model.eval() before the export")
            return
        self._emit("batch_norm", node, layer, epsilon=float(a.get("epsilon", 1e-5)))

    def _op_gemm(self, node: Any, layer: str, a: dict[str, Any]) -> None:
        if a.get("transA", 0) or float(a.get("alpha", 1)) != 1 or float(a.get("beta", 1)) != 1:
            self._unsupported(node, layer, "Gemm with transA, alpha or beta")
        elif a.get("transB", 0):
            self._emit("linear", node, layer)
        else:
            self._emit("matmul", node, layer)

    def _op_relu(self, node: Any, layer: str, a: dict[str, Any]) -> None:
        self._emit("clip", node, layer, low=0.0, high=None)

    def _op_leakyrelu(self, node: Any, layer: str, a: dict[str, Any]) -> None:
        self._emit("leaky_relu", node, layer, slope=float(a.get("alpha", 0.01)))

    def _op_clip(self, node: Any, layer: str, a: dict[str, Any]) -> None:
        names = ("low", "high")
        limits = [name for i, name in enumerate(names, 1) if len(node.input) > i and node.input[i]]
        ends = {name: float(a[key]) for name, key in zip(names, ("min", "max"), strict=True) if key in a}
        self._emit("clip", node, layer, limits=tuple(limits), **ends)

    def _op_flatten(self, node: Any, layer: str, a: dict[str, Any]) -> None:
        self._emit("flatten", node, layer, start=int(a.get("axis", 1)))

    def _op_transpose(self, node: Any, layer: str, a: dict[str, Any]) -> None:
        axes = a.get("perm")
        self._emit("permute", node, layer, axes=None if axes is None else tuple(axes))

    def _op_softmax(self, node: Any, layer: str, a: dict[str, Any]) -> None:
        self._emit("softmax", node, layer, axis=int(a.get("axis", -1 if self.opset >= 13 else 1)))

    def _op_logsoftmax(self, node: Any, layer: str, a: dict[str, Any]) -> None:
        self._op_softmax(node, layer, a)

    def _op_reducemean(self, node: Any, layer: str, a: dict[str, Any]) -> None:
        axes: Any = a.get("axes")
        if len(node.input) > 1:
            value = self._axes_of(node.input[1])
            if value is None:
                self._unsupported(node, layer, "its axes are no constants")
                return
            axes = value
        self._emit("mean", node, layer, node.input[:1], axes=axes, keepdims=bool(a.get("keepdims", 1)))

    def _op_reducesum(self, node: Any, layer: str, a: dict[str, Any]) -> None:
        self._op_reducemean(node, layer, a)
        last = self.operations[-1]
        if last.kind == "mean":
            self.operations[-1] = Operation("sum", last.layer, last.inputs, last.output, last.attributes)

    def _axes_of(self, name: str) -> list[int] | None:
        """Constant axes, also behind the Reshape that the exporter puts there."""
        made = {operation.output: operation for operation in self.operations}
        while name in made and made[name].kind in ("reshape", "identity", "cast"):
            name = made[name].inputs[0]
        value = self._known(name)
        return None if value is None else [int(v) for v in value.reshape(-1)]

    def _op_shape(self, node: Any, layer: str, a: dict[str, Any]) -> None:
        self._emit("shape", node, layer, start=int(a.get("start", 0)), end=a.get("end"))

    def _op_gather(self, node: Any, layer: str, a: dict[str, Any]) -> None:
        self._emit("gather", node, layer, axis=int(a.get("axis", 0)))

    def _op_concat(self, node: Any, layer: str, a: dict[str, Any]) -> None:
        self._emit("concat", node, layer, axis=int(a.get("axis", 0)))

    def _op_slice(self, node: Any, layer: str, a: dict[str, Any]) -> None:
        self._emit("slice", node, layer)

    def _resized(self, kind: str, node: Any, layer: str, a: dict[str, Any]) -> None:
        axes = a.get("axes")
        if len(node.input) > 1 and node.input[1]:
            axes = self._axes_of(node.input[1])
            if axes is None:
                self._unsupported(node, layer, "its axes are no constants")
                return
        self._emit(kind, node, layer, node.input[:1], axes=axes)

    def _op_squeeze(self, node: Any, layer: str, a: dict[str, Any]) -> None:
        self._resized("squeeze", node, layer, a)

    def _op_unsqueeze(self, node: Any, layer: str, a: dict[str, Any]) -> None:
        self._resized("unsqueeze", node, layer, a)

    def _op_max(self, node: Any, layer: str, a: dict[str, Any]) -> None:
        self._emit("maximum", node, layer)

    def _op_min(self, node: Any, layer: str, a: dict[str, Any]) -> None:
        self._emit("minimum", node, layer)

    def _op_bipolarquant(self, node: Any, layer: str, a: dict[str, Any]) -> None:
        self._emit("bipolar", node, layer)
