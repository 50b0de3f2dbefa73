r"""Reader of ONNX and QONNX files, with the `onnx` package; no onnxruntime, nothing is executed.

Works for PyTorch's dynamo exporter (`torch.onnx.export(..., dynamo=True)`, optimized or with
`optimize=False`), its TorchScript exporter, and Brevitas' QONNX (`BipolarQuant`). This module only
translates node by node into a `cbin_nn.converters.program.Program`.

**A closed world.** `OPERATORS` lists, for each operator and each operator set that changed it, the inputs
and attributes that are read. A file is read by the forms of its own set: from set 7 on, where broadcasting is
NumPy's, to the newest that the table was compared with; from a later one, what that has left unchanged.
Anything else that a node says, or a use of an output that is not read, is refused by name. Types are
followed, since the standard promotes nothing: operands of two types are an error, integers are divided as
integers, and what depends on the image is float32 (or bits and small integers on their way back to it).

A file is hostile until read: its size is bounded, a size that an initializer states is compared with the
bytes that are there, and arrays in a second file (torch's exporter writes one) are read from beside the model
alone.
"""

from __future__ import annotations

import importlib
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConversionError, MissingExtra
from . import files
from .graph import Graph
from .program import MAX_ELEMENTS, Array, Operation, Program
from .signatures import Signature
from .translate import translate

__all__ = ["NEWEST_OPSET", "OLDEST_OPSET", "OPERATORS", "read_onnx", "read_onnx_program"]

_MAX_FILE = 2**31 - 1  # a protobuf's limit

#: The oldest operator set that is read by its own rules: from it on broadcasting is NumPy's.
OLDEST_OPSET = 7

_STANDARD = ("", "ai.onnx")
#: Domains of BipolarQuant, as QONNX and older Brevitas write them.
_QONNX = ("qonnx.custom_op.general", "onnx.brevitas")

_CHANCE = (
    "Bernoulli",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
)

#: Operators that are not read and of which more can be said.
_OTHERS = {
    "Pad": "padding as a step of its own does not convert; a convolution's own padding by 0 does",
    "Sigmoid": "it does not convert; at the end of a network, where it keeps the order, leave it out",
}

#: Integers of tensors that depend on the image stay far below what any type holds, so that none wraps around.
_SMALL = 2**20


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


def _check_text(message: Any) -> None:
    """Text that is no UTF-8 comes as bytes from protobuf.

    Raises:
        ConversionError: there is some.
    """
    for field in message.DESCRIPTOR.fields:
        if (
            field.cpp_type not in (field.CPPTYPE_STRING, field.CPPTYPE_MESSAGE)
            or field.type == field.TYPE_BYTES
        ):
            continue
        value = getattr(message, field.name)
        values: tuple[Any, ...]
        if isinstance(value, (str, bytes)):
            values = (value,)
        elif field.cpp_type == field.CPPTYPE_STRING or not hasattr(value, "DESCRIPTOR"):
            values = tuple(value)
        else:
            values = (value,) if message.HasField(field.name) else ()
        for each in values:
            if isinstance(each, bytes):
                raise ConversionError("damaged-file", f"its field {field.name!r} is no text: {each[:20]!r}")
            if not isinstance(each, str):
                _check_text(each)


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
    _check_text(model)
    return _Importer(onnx, model, path.parent).program()


# ------------------------------------------------------------------------------------------------
# the file


class _Importer:
    """One file on its way into a program; operators' handlers call the methods below `# -- for handlers`."""

    def __init__(self, onnx: Any, model: Any, folder: Path) -> None:
        self.folder = folder
        self.onnx, self.model, self.graph = onnx, model, model.graph
        self.constants: dict[str, Array] = {}
        self.operations: list[Operation] = []
        #: Operation by its output, as far as the file was read.
        self.made: dict[str, Operation] = {}
        #: Type of each tensor; None where what makes it is not read.
        self.types: dict[str, np.dtype[Any] | None] = {}
        #: Tensors whose values depend on the image.
        self.live: set[str] = set()
        #: Integers that may hold the number of images, which is read as 1 whatever it is.
        self.counts: set[str] = set()
        #: The batch that the file was written down for; 0 where it takes any.
        self.batch = 0
        self.names = {name for node in self.graph.node for name in (*node.input, *node.output)}
        self.functions = {(function.domain, function.name) for function in model.functions}
        self.opset = self._opset()

    def _opset(self) -> int:
        """The version of the standard's operators that the file is written in."""
        versions = {o.version for o in self.model.opset_import if o.domain in _STANDARD}
        if len(versions) != 1:
            raise ConversionError(
                "damaged-file", f"it names {len(versions)} operator sets of ONNX's own, and a model has one"
            )
        (opset,) = versions
        if opset < OLDEST_OPSET:
            raise ConversionError(
                "unsupported-file",
                f"operator set {opset}: sets before {OLDEST_OPSET} broadcast by rules of their own, and are "
                "not read; export the network again with opset_version=13 or newer",
            )
        known = max(NEWEST_OPSET, self.onnx.defs.onnx_opset_version())
        if opset > known:
            raise ConversionError(
                "unsupported-file",
                f"operator set {opset} is newer than {known}, the newest that is known here; export the "
                f"network again with opset_version={NEWEST_OPSET}, or run: pip install --upgrade onnx",
            )
        if self.model.ir_version > self.onnx.IR_VERSION:
            raise ConversionError(
                "unsupported-file",
                f"version {self.model.ir_version} of the file format is newer than {self.onnx.IR_VERSION}, "
                "the newest that the installed onnx package knows; run: pip install --upgrade onnx",
            )
        return int(opset)

    def program(self) -> Program:
        if self.graph.sparse_initializer:
            raise ConversionError(
                "unsupported-model", "sparse initializers are not read; save them as dense ones"
            )
        for annotation in self.graph.quantization_annotation:
            if any(entry.key.endswith("_TENSOR") for entry in annotation.quant_parameter_tensor_names):
                raise ConversionError(
                    "unsupported-option",
                    f"tensor {annotation.tensor_name[:80]!r} has a scale of its own beside the graph (a "
                    "quantization annotation), which is not read; export the network before quantization",
                )
        for initializer in self.graph.initializer:
            self._initializer(initializer)
        inputs = [i for i in self.graph.input if i.name not in self.types]
        if len(inputs) != 1 or len(self.graph.output) != 1:
            raise ConversionError(
                "unsupported-model",
                f"the network has {len(inputs)} inputs and {len(self.graph.output)} outputs; one image in "
                "and "
                "one tensor out converts",
            )
        name = inputs[0].name
        self.types[name] = self._input_type(inputs[0])
        self.live.add(name)
        shape = self._input_shape(inputs[0])
        first = inputs[0].type.tensor_type.shape.dim
        self.batch = int(first[0].dim_value) if shape else 0
        for index, node in enumerate(self.graph.node):
            self._node(node, index)
        return Program(
            self.graph.name or "model",
            name,
            shape,
            self.constants,
            self.operations,
            self.graph.output[0].name,
            framework="onnx",
            batch=self.batch if self.batch > 0 else None,
            name_by_parameters=not any(map(_module_path, self.graph.node)),
        )

    def _initializer(self, tensor: Any) -> None:
        name = tensor.name
        array = self.tensor(tensor, name)
        if array is not None:
            self.define(name, array)
        elif name in self.types:
            raise ConversionError("bad-graph", f"tensor {name!r} is made twice")
        else:
            self.types[name] = None
            reason = f"its values are of type {self.type_name(tensor.data_type)}"
            self._operation("unsupported", name, (), name, {"name": "initializer", "reason": reason})

    def _input_type(self, value: Any) -> np.dtype[Any]:
        code = value.type.tensor_type.elem_type
        dtype = self.dtype(code)
        if dtype not in (np.dtype(np.float32), np.dtype(np.uint8)):
            raise ConversionError(
                "unsupported-input",
                f"input {value.name!r} is of type {self.type_name(code)}; float32 converts, and uint8 that "
                "is cast to float32; export the network in float32 (model.float())",
            )
        assert dtype is not None
        return dtype

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
            not 0 < len(os.fsencode(name)) < 256
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

    def tensor(self, tensor: Any, what: str) -> Array | None:
        """The numbers of a tensor; None where their type is not read.

        Raises:
            ConversionError: it is damaged, or its numbers lie where they can't be read.
        """
        if not isinstance(tensor, self.onnx.TensorProto):
            raise ConversionError("damaged-file", f"{what!r}: a constant that is no tensor")
        if self.dtype(tensor.data_type) is None:
            return None
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

    def _node(self, proto: Any, index: int) -> None:
        layer = self._layer(proto, index)
        node = _Node(self.onnx, proto, layer, self.opset)
        if not node.outputs or not node.outputs[0]:
            raise node.damaged("it has no output")
        begin = len(self.operations)
        second = ("its second output is used, and only the first one is read", "unsupported-option")
        try:
            form = self._form(proto, node)
            given = {name: node.attributes[name] for name in node.attributes}
            for name, value in form.signature.unread(given):
                raise _Refused(f"{name}={_shown(value)} is not read (operator set {self.opset})")
            if not form.least <= len(node.inputs) <= form.most or (
                "" in node.inputs and not all(name.endswith("?") for name in self._absent(form, node))
            ):
                raise node.damaged(f"its inputs are {node.inputs}, and it takes {' '.join(form.inputs)}")
            form.handler(self, node)
        except _Refused as refused:
            del self.operations[begin:]
            second = (str(refused), refused.slug)
            self._unsupported(node, node.outputs[0], *second)
        for output in filter(None, node.outputs[1:]):
            self._unsupported(node, output, *second)

    @staticmethod
    def _absent(form: _Form, node: _Node) -> list[str]:
        """The form's names of the inputs that a node leaves out in the middle."""
        names = [*form.inputs, *form.inputs[-1:] * len(node.inputs)]
        return [name for name, given in zip(names, node.inputs, strict=False) if not given]

    def _form(self, proto: Any, node: _Node) -> _Form:
        """What is known of the node's operator in the file's operator set."""
        kind, domain = proto.op_type, proto.domain
        overload = proto.overload if hasattr(proto, "overload") else ""  # since onnx 1.16
        if (domain, kind) in self.functions or overload:
            raise _Refused("a function of the file's own; inline it (onnx.inliner)", "unsupported-layer")
        if node.graphs:
            raise _Refused(f"{node.graphs[0]}: a graph inside an operator is not read", "unsupported-layer")
        if domain in _QONNX and kind == "BipolarQuant":
            return BIPOLAR
        if domain in _QONNX and kind in ("Quant", "IntQuant", "Trunc"):
            raise _Refused(
                "numbers of several bits between layers do not convert; those of one bit do (BipolarQuant: "
                "bit_width=1 and QuantType.BINARY in Brevitas)",
                "unsupported-layer",
            )
        if domain not in _STANDARD:
            raise _Refused(f"an operator of the domain {domain[:80]!r}", "unsupported-layer")
        if kind in _CHANCE:
            raise _Refused("its values are random, so that answers depend on chance", "unsupported-layer")
        forms = OPERATORS.get(kind)
        if forms is None:
            raise _Refused(_OTHERS.get(kind, "no operator of this kind converts"), "unsupported-layer")
        newest: tuple[int, _Form] | None = None
        for form in forms:
            for since in form.since:
                if since <= self.opset and (newest is None or since > newest[0]):
                    newest = since, form
        if newest is None:
            raise _Refused(
                f"operator set {self.opset} has no such operator, or one by other rules than those from "
                f"{forms[0].since[0]} on, which are read; export again with opset_version=13 or newer",
                "unsupported-layer",
            )
        if self.opset > NEWEST_OPSET:
            stated = self.onnx.defs.get_schema(kind, self.opset, "").since_version
            if stated > NEWEST_OPSET:
                raise _Refused(
                    f"operator set {stated} changed it, and is newer than {NEWEST_OPSET}, the newest that is "
                    f"read; export again with opset_version={NEWEST_OPSET} or older",
                    "unsupported-layer",
                )
        return newest[1]

    @staticmethod
    def _layer(node: Any, index: int) -> str:
        """TorchScript names nodes by module path; dynamo keeps the path beside the node."""
        path = _module_path(node)
        if path:
            return path[:200]
        made = node.output[0] if node.output else f"{node.op_type}_{index}"
        return str(node.name if "/" in node.name else made)[:200]

    def _operation(
        self, kind: str, layer: str, inputs: tuple[str, ...], output: str, attributes: dict[str, Any]
    ) -> None:
        operation = Operation(kind, layer, inputs, output, attributes)
        self.operations.append(operation)
        self.made[output] = operation

    def _unsupported(self, node: _Node, output: str, reason: str, slug: str = "unsupported-option") -> None:
        self.types[output] = None
        inputs = tuple(name for name in node.inputs if name)
        if any(name in self.live for name in inputs):
            self.live.add(output)
        fields = {"name": node.kind, "reason": reason, "slug": slug}
        self._operation("unsupported", node.layer, inputs, output, fields)

    # -- for handlers

    def dtype(self, code: int) -> np.dtype[Any] | None:
        """NumPy's type for a type of ONNX; None for those that are not read: text, complex numbers,
        bfloat16, floats of 8 bits and less."""
        name = _TYPES.get(code)
        return None if name is None else np.dtype(name)

    def type_name(self, code: int) -> str:
        try:
            return str(self.onnx.TensorProto.DataType.Name(code)).lower()
        except ValueError:
            return f"number {code}"

    def define(self, name: str, value: Array) -> None:
        """States a constant."""
        if name in self.types:
            raise ConversionError("bad-graph", f"tensor {name!r} is made twice")
        self.constants[name] = value
        self.types[name] = value.dtype

    def fresh(self, name: str) -> str:
        """A name that the file does not use."""
        while name in self.names or name in self.types:
            name += "'"
        return name

    def constant(self, node: _Node, name: str, value: Any) -> str:
        """States a constant of the reader's own, which an attribute stands for."""
        name = self.fresh(f"{node.outputs[0]}/{name}")
        self.define(name, np.asarray(value))
        return name

    def value(self, name: str) -> Array | None:
        """A constant that the file states outright, or that operations move without a change: the reshapes
        and casts between integers that exporters put there; None for any other."""
        seen: set[str] = set()
        while name in self.made and name not in seen:
            seen.add(name)
            operation = self.made[name]
            source = operation.inputs[0] if operation.inputs else ""
            kind = "" if (dtype := self.types.get(source)) is None else dtype.kind
            target = self.types.get(name)
            moved = operation.kind in ("identity", "reshape") or (
                operation.kind == "cast" and kind in "iub" and target is not None and target.kind in "iub"
            )
            if not moved:
                return None
            name = source
        return self.constants.get(name)

    def one_type(self, node: _Node, names: Sequence[str]) -> np.dtype[Any] | None:
        """The type that operands share; None where one of them is not read.

        Raises:
            ConversionError: they have two.
        """
        types = [self.types.get(name) for name in names if name]
        if any(dtype is None for dtype in types):  # `None in types` finds float64, NumPy's default
            return None
        if len({str(dtype) for dtype in types}) > 1:
            raise node.damaged(
                f"its operands are of types {[str(dtype) for dtype in types][:8]}, and must be of one"
            )
        return types[0] if types else None

    def indices(self, node: _Node, index: int) -> None:
        """Checks that an input states places, sides or axes.

        Raises:
            ConversionError: it is of another type than integers.
        """
        dtype = self.types.get(node.input(index))
        if dtype is not None and dtype.kind not in "iu":
            raise node.damaged(f"input {node.input(index)!r} is of type {dtype}, and must be integers")

    def axes(self, node: _Node) -> list[int] | None:
        """Axes by attribute or second input, constant; None where none are named."""
        if not node.input(1):
            return node.integers("axes") if "axes" in node.attributes else None
        self.indices(node, 1)
        value = self.value(node.input(1))
        if value is None:
            raise _Refused("its axes are no constants")
        return [int(axis) for axis in value.reshape(-1)]

    def cast(self, node: _Node, dtype: np.dtype[Any]) -> None:
        """A value in another type; of what depends on the image, into types that hold it."""
        source, name = self.types.get(node.input(0)), node.input(0)
        if name in self.live and source is not None and source != dtype:
            whole = source.kind in "biu" and (source != np.dtype(np.uint8) or dtype == np.dtype(np.float32))
            if not whole or str(dtype) not in ("float32", "int32", "int64"):
                raise _Refused(
                    f"to={dtype}: a cast of {source} that depends on the image, whose values may change"
                )
        self.emit("cast", node, node.inputs[:1], dtype, dtype=str(dtype))

    def emit(
        self,
        kind: str,
        node: _Node,
        inputs: Sequence[str],
        result: np.dtype[Any] | None,
        *,
        output: str = "",
        live: bool = True,
        **attributes: Any,
    ) -> None:
        """Adds an operation, whose result is of type `result`; `live` is whether values, and not only a
        shape, go into it."""
        output = output or node.outputs[0]
        if any(name in self.counts for name in inputs) and result is not None:
            if kind in ("cast", "pow") and result.kind == "f":
                raise _Refused(
                    "it computes with the number of images, so that answers depend on the batch; export the "
                    "network with a batch of 1",
                    "unsupported-layer",
                )
            if result.kind in "iu":  # and not a tensor that is reshaped by them
                self.counts.add(output)
        if live and any(name in self.live for name in inputs):
            self._check_live(kind, node, inputs, result)
            self.live.add(output)
        self.types[output] = result
        self._operation(kind, node.layer, tuple(inputs), output, attributes)

    def _check_live(
        self, kind: str, node: _Node, inputs: Sequence[str], result: np.dtype[Any] | None
    ) -> None:
        """What depends on the image is float32, or bits and integers that can't wrap around."""
        if result is None or result == np.dtype(np.float32) or kind in ("cast", "compare", *_MOVES):
            return
        constants = [self.value(name) for name in inputs if name not in self.live]
        small = kind in ("add", "sub", "mul", "neg", "where") and str(result) in ("int32", "int64")
        if not small or any(c is None or (np.abs(c.astype(np.float64)) > _SMALL).any() for c in constants):
            raise _Refused(
                f"it computes in {result} with what depends on the image; cast to float32 before",
                "unsupported-layer",
            )


#: Operations that move values and compute nothing.
_MOVES = (
    "identity",
    "reshape",
    "flatten",
    "permute",
    "squeeze",
    "unsqueeze",
    "expand",
    "concat",
    "gather",
    "slice",
)

#: ONNX's numbers of types -> NumPy's.
_TYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
}


def _shown(value: Any) -> str:
    return (value.decode(errors="replace") if isinstance(value, bytes) else str(value))[:60]


# ------------------------------------------------------------------------------------------------
# one node


class _Refused(Exception):
    """What a node asks for and the reader does not do: the reason, and the error's slug."""

    def __init__(self, reason: str, slug: str = "unsupported-option") -> None:
        super().__init__(reason)
        self.slug = slug


class _Node:
    """A node with its attributes read once and checked for their type."""

    def __init__(self, onnx: Any, proto: Any, layer: str, opset: int) -> None:
        self.kind: str = proto.op_type
        self.layer, self.opset = layer, opset
        self.inputs = list(proto.input)
        self.outputs = list(proto.output)
        while self.inputs and not self.inputs[-1]:  # an absent input may be written down or left out
            self.inputs.pop()
        self.attributes: dict[str, Any] = {}
        self.graphs: list[str] = []
        kinds = onnx.AttributeProto
        for attribute in proto.attribute:
            if attribute.name in self.attributes or attribute.name in self.graphs:
                raise self.damaged(f"attribute {attribute.name!r} is given twice")
            if attribute.type in (kinds.GRAPH, kinds.GRAPHS) or attribute.ref_attr_name:
                self.graphs.append(attribute.name)
                continue
            try:
                self.attributes[attribute.name] = onnx.helper.get_attribute_value(attribute)
            except Exception as error:
                raise self.damaged(f"attribute {attribute.name!r} can't be read") from error

    def damaged(self, reason: str) -> ConversionError:
        return ConversionError("damaged-file", reason, layer=self.layer, kind=self.kind)

    def input(self, index: int) -> str:
        """The name of an input; "" where it is absent."""
        return self.inputs[index] if index < len(self.inputs) else ""

    def _value(self, name: str, kinds: tuple[type, ...], default: Any, what: str) -> Any:
        if name not in self.attributes:
            if default is None:
                raise self.damaged(f"attribute {name!r} is absent")
            return default
        value = self.attributes[name]
        if not isinstance(value, kinds):
            raise self.damaged(f"attribute {name}={str(value)[:40]} is no {what}")
        return value

    def integer(self, name: str, default: int | None = None) -> int:
        return int(self._value(name, (int,), default, "integer"))

    def flag(self, name: str) -> bool:
        """An integer that stands for yes or no; absent is no."""
        value = self.integer(name, 0)
        if value not in (0, 1):
            raise _Refused(f"{name}={value} is neither 0 nor 1")
        return bool(value)

    def number(self, name: str, default: float) -> float:
        return float(self._value(name, (float,), default, "number"))

    def text(self, name: str, default: str) -> str:
        return bytes(self._value(name, (bytes,), default.encode(), "text")).decode(errors="replace")

    def integers(self, name: str, default: Sequence[int] | None = None) -> list[int]:
        value = self._value(
            name, (list, tuple), None if default is None else list(default), "list of integers"
        )
        if not all(isinstance(v, int) for v in value):
            raise self.damaged(f"attribute {name!r} is no list of integers")
        return [int(v) for v in value]

    def numbers(self, name: str) -> list[float]:
        value = self._value(name, (list, tuple), None, "list of numbers")
        if not all(isinstance(v, float) for v in value):
            raise self.damaged(f"attribute {name!r} is no list of numbers")
        return [float(v) for v in value]

    def pair(self, name: str, default: tuple[int, int] | None = None, low: int = 1) -> tuple[int, int]:
        """Two integers, for the height and the width."""
        value = self.integers(name, default)
        if len(value) != 2:
            raise _Refused(f"{name}={value}: windows of two axes convert, on images [N, C, H, W]")
        if min(value) < low or max(value) >= 2**31:
            raise self.damaged(f"attribute {name}={value}")
        return value[0], value[1]


@dataclass(frozen=True)
class _Form:
    """An operator as some operator sets have it.

    `since` are the sets that brought this form, or changed nothing in it that is read here (as the types that
    it takes). `inputs` are named as the standard names them: `?` ends an optional one, `*` one that repeats.
    """

    since: tuple[int, ...]
    inputs: tuple[str, ...]
    signature: Signature
    handler: Callable[[_Importer, _Node], None]

    @property
    def most(self) -> float:
        return math.inf if self.inputs and self.inputs[-1].endswith("*") else len(self.inputs)

    @property
    def least(self) -> int:
        return sum(not name.endswith("?") for name in self.inputs)


# ------------------------------------------------------------------------------------------------
# operators


def _plain(kind: str, result: str | None = None, **attributes: Any) -> Callable[[_Importer, _Node], None]:
    """An operation without attributes, whose operands have one type: the result's, if no other is named."""

    def handler(reader: _Importer, node: _Node) -> None:
        dtype = reader.one_type(node, node.inputs)
        reader.emit(kind, node, node.inputs, np.dtype(result) if result else dtype, **attributes)

    return handler


def _identity(reader: _Importer, node: _Node) -> None:
    reader.emit("identity", node, node.inputs, reader.types.get(node.input(0)))


def _dropout(reader: _Importer, node: _Node) -> None:
    if node.input(2):
        training = reader.value(node.input(2))
        if training is None or training.size != 1:
            raise _Refused("training_mode is no constant; export the network after model.eval()")
        if training.reshape(-1)[0]:
            raise _Refused(
                "training_mode=True: it drops at random in evaluation, too, so that answers depend on "
                "chance; remove it, or make it follow the module's training flag and call model.eval()"
            )
    note = "dropout does nothing at inference"
    reader.emit("identity", node, node.inputs[:1], reader.types.get(node.input(0)), dropped=note)


def _cast(reader: _Importer, node: _Node) -> None:
    code = node.integer("to")
    dtype = reader.dtype(code)
    if dtype is None:
        raise _Refused(f"to={code}: a cast to {reader.type_name(code)}")
    reader.cast(node, dtype)


def _cast_like(reader: _Importer, node: _Node) -> None:
    dtype = reader.types.get(node.input(1))
    if dtype is None:
        raise _Refused("the type of its second input is not known", "unsupported-layer")
    reader.cast(node, dtype)


def _pads(node: _Node) -> Any:
    """ "SAME_UPPER", "SAME_LOWER", or (top, left, bottom, right)."""
    auto = node.text("auto_pad", "NOTSET")
    pads = node.integers("pads", (0, 0, 0, 0))
    if auto == "NOTSET":
        if len(pads) != 4:
            raise _Refused(f"pads={pads}: windows of two axes convert, on images [N, C, H, W]")
        if min(pads) < 0 or max(pads) >= 2**31:
            raise _Refused(f"pads={pads}: negative padding does not convert")
        return tuple(pads)
    if any(pads):
        raise _Refused(f"pads={pads} beside auto_pad={auto}: the standard allows one of them")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        if set(node.integers("dilations", (1, 1))) != {1}:
            raise _Refused(f"auto_pad={auto} with dilations, about which runtimes disagree; write it as pads")
        return auto
    if auto != "VALID":
        raise _Refused(f"auto_pad={auto}")
    return (0, 0, 0, 0)


def _conv(reader: _Importer, node: _Node) -> None:
    dtype = reader.one_type(node, node.inputs)
    weight = reader.value(node.input(1))
    if "kernel_shape" in node.attributes:
        kernel = node.pair("kernel_shape")
        if weight is not None and weight.shape[2:] != kernel:
            raise node.damaged(f"kernel_shape={list(kernel)} beside weights of shape {list(weight.shape)}")
    bias = reader.value(node.input(2))
    if weight is not None and bias is not None and bias.shape != weight.shape[:1]:
        raise node.damaged(f"a bias of shape {list(bias.shape)} for weights of shape {list(weight.shape)}")
    groups = node.integer("group", 1)
    if not 0 < groups < 2**31:
        raise node.damaged(f"attribute group={groups}")
    reader.emit(
        "conv2d",
        node,
        node.inputs,
        dtype,
        strides=node.pair("strides", (1, 1)),
        dilation=node.pair("dilations", (1, 1)),
        groups=groups,
        padding=_pads(node),
        kernel=node.pair("kernel_shape") if "kernel_shape" in node.attributes else None,
    )


def _max_pool(reader: _Importer, node: _Node) -> None:
    padding, kernel, dilation = _pads(node), node.pair("kernel_shape"), node.pair("dilations", (1, 1))
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    if not isinstance(padding, str) and any(
        pad >= span for pad, span in zip(padding, [*spans, *spans], strict=True)
    ):
        raise _Refused(f"pads={list(padding)}: as large as the window, which then lies outside of the plane")
    reader.emit(
        "max_pool2d",
        node,
        node.inputs,
        reader.types.get(node.input(0)),
        kernel=kernel,
        strides=node.pair("strides", (1, 1)),
        dilation=dilation,
        padding=padding,
        ceil_mode=node.flag("ceil_mode") and not isinstance(padding, str),
        # What a last window is that begins in the padding, set 22 says first.
        beyond="left out" if node.opset >= 22 else "refused",
    )


def _batch_norm(reader: _Importer, node: _Node) -> None:
    if node.opset < 14:
        training = any(node.outputs[1:])
        how = "it has the outputs of training mode"
    else:
        training = node.integer("training_mode", 0) != 0
        how = f"training_mode={node.attributes.get('training_mode')}"
    if training:
        raise _Refused(
            f"{how}: it normalizes by the batch, so that answers depend on the batch; export the network "
            "after model.eval()"
        )
    dtype = reader.one_type(node, node.inputs)
    reader.emit("batch_norm", node, node.inputs, dtype, epsilon=node.number("epsilon", 1e-5))


def _gemm(reader: _Importer, node: _Node) -> None:
    dtype = reader.one_type(node, node.inputs)
    if node.flag("transA"):
        raise _Refused("transA=1: the batch must be the first axis of its first input")
    kind = "linear" if node.flag("transB") else "matmul"
    alpha, beta = node.number("alpha", 1.0), node.number("beta", 1.0)
    bias = node.input(2)
    if not math.isfinite(alpha) or not math.isfinite(beta):
        raise _Refused(f"alpha={alpha}, beta={beta}")
    if alpha == 1 and (beta == 1 or not bias):
        reader.emit(kind, node, node.inputs, dtype)
        return
    product, one = reader.fresh(f"{node.outputs[0]}/product"), np.float32
    reader.emit(kind, node, node.inputs[:2], dtype, output=product)
    scaled = reader.fresh(f"{node.outputs[0]}/scaled") if bias else node.outputs[0]
    reader.emit("mul", node, [product, reader.constant(node, "alpha", one(alpha))], dtype, output=scaled)
    if bias:
        shift = reader.fresh(f"{node.outputs[0]}/bias")
        reader.emit("mul", node, [bias, reader.constant(node, "beta", one(beta))], dtype, output=shift)
        reader.emit("add", node, [scaled, shift], dtype)


def _relu(reader: _Importer, node: _Node) -> None:
    reader.emit("clip", node, node.inputs, reader.types.get(node.input(0)), low=0.0, high=None)


def _leaky_relu(reader: _Importer, node: _Node) -> None:
    slope = node.number("alpha", 0.01)
    if not math.isfinite(slope):
        raise _Refused(f"alpha={slope}")
    reader.emit("leaky_relu", node, node.inputs, reader.types.get(node.input(0)), slope=slope)


def _clip_6(reader: _Importer, node: _Node) -> None:
    largest = float(np.finfo(np.float32).max)
    low, high = node.number("min", -largest), node.number("max", largest)
    if math.isnan(low) or math.isnan(high):
        raise _Refused(f"min={low}, max={high}")
    reader.emit(
        "clip",
        node,
        node.inputs,
        reader.types.get(node.input(0)),
        low=None if low <= -largest else low,
        high=None if high >= largest else high,
    )


def _clip(reader: _Importer, node: _Node) -> None:
    dtype = reader.one_type(node, node.inputs)
    limits = tuple(end for i, end in enumerate(("low", "high"), 1) if node.input(i))
    reader.emit("clip", node, [name for name in node.inputs if name], dtype, limits=limits)


def _flatten(reader: _Importer, node: _Node) -> None:
    axis, dtype = node.integer("axis", 1), reader.types.get(node.input(0))
    if axis == 1:
        reader.emit("flatten", node, node.inputs, dtype, start=1)
    elif axis == 0 and node.input(0) not in reader.live:
        shape = reader.constant(node, "shape", np.array([1, -1], np.int64))
        reader.emit("reshape", node, [node.input(0), shape], dtype)
    else:
        raise _Refused(f"axis={axis}: a plane [N, C, H, W] is flattened from axis 1 on")


def _transpose(reader: _Importer, node: _Node) -> None:
    axes = tuple(node.integers("perm")) if "perm" in node.attributes else None
    reader.emit("permute", node, node.inputs, reader.types.get(node.input(0)), axes=axes)


def _softmax(reader: _Importer, node: _Node) -> None:
    """Before set 13 all axes from `axis` on are one; on a flat tensor that is the last one, too."""
    axis = node.integer("axis", -1 if node.opset >= 13 else 1)
    log = node.kind == "LogSoftmax"
    reader.emit("softmax", node, node.inputs, reader.types.get(node.input(0)), axis=axis, log=log)


def _reduced(kind: str) -> Callable[[_Importer, _Node], None]:
    def handler(reader: _Importer, node: _Node) -> None:
        axes = reader.axes(node)
        dtype = reader.types.get(node.input(0))
        keep = node.integer("keepdims", 1) != 0
        if not axes and node.flag("noop_with_empty_axes"):
            reader.emit("identity", node, node.inputs[:1], dtype)
        else:
            reader.emit(kind, node, node.inputs[:1], dtype, axes=axes or None, keepdims=keep)

    return handler


def _resized(kind: str) -> Callable[[_Importer, _Node], None]:
    def handler(reader: _Importer, node: _Node) -> None:
        axes = reader.axes(node)
        if axes is None and (kind == "unsqueeze" or node.input(0) in reader.live):
            raise _Refused("without axes it removes the batch, too; name the axes")
        reader.emit(kind, node, node.inputs[:1], reader.types.get(node.input(0)), axes=axes)

    return handler


def _shape(reader: _Importer, node: _Node) -> None:
    end = node.integer("end") if "end" in node.attributes else None
    start = node.integer("start", 0)
    reader.emit("shape", node, node.inputs, np.dtype(np.int64), live=False, start=start, end=end)
    if node.input(0) in reader.live and start <= 0 and reader.batch != 1:
        reader.counts.add(node.outputs[0])


def _gather(reader: _Importer, node: _Node) -> None:
    reader.indices(node, 1)
    axis = node.integer("axis", 0)
    reader.emit("gather", node, node.inputs, reader.types.get(node.input(0)), axis=axis)
    places, source = reader.value(node.input(1)), reader.made.get(node.input(0))
    if source is not None and source.kind == "shape" and places is not None and (places > 0).all():
        reader.counts.discard(node.outputs[0])  # a side of the plane


def _concat(reader: _Importer, node: _Node) -> None:
    dtype = reader.one_type(node, node.inputs)
    reader.emit("concat", node, node.inputs, dtype, axis=node.integer("axis"))


def _slice_1(reader: _Importer, node: _Node) -> None:
    starts, ends = node.integers("starts"), node.integers("ends")
    axes = node.integers("axes", range(len(starts)))
    if not len(starts) == len(ends) == len(axes):
        raise node.damaged("starts, ends and axes are not equally many")
    parts = {"starts": starts, "ends": ends, "axes": axes}
    names = [reader.constant(node, key, np.array(value, np.int64)) for key, value in parts.items()]
    reader.emit("slice", node, [node.input(0), *names], reader.types.get(node.input(0)))


def _slice(reader: _Importer, node: _Node) -> None:
    for index in range(1, len(node.inputs)):
        reader.indices(node, index)
    inputs = list(node.inputs)
    if node.input(4) and not node.input(3):
        starts = reader.value(node.input(1))
        if starts is None:
            raise _Refused("steps without axes; name the axes")
        inputs[3] = reader.constant(node, "axes", np.arange(starts.size))
    reader.emit("slice", node, [name for name in inputs if name], reader.types.get(node.input(0)))


def _variadic(kind: str) -> Callable[[_Importer, _Node], None]:
    """The largest or least of any number of tensors, two at a time."""

    def handler(reader: _Importer, node: _Node) -> None:
        dtype = reader.one_type(node, node.inputs)
        last, *rest = node.inputs
        if not rest:
            reader.emit("identity", node, [last], dtype)
        for i, name in enumerate(rest, 1):
            output = node.outputs[0] if i == len(rest) else reader.fresh(f"{node.outputs[0]}/{i}")
            reader.emit(kind, node, [last, name], dtype, output=output)
            last = output

    return handler


def _div(reader: _Importer, node: _Node) -> None:
    dtype = reader.one_type(node, node.inputs)
    whole = dtype is not None and dtype.kind in "iu"
    reader.emit("div", node, node.inputs, dtype, rounding="trunc" if whole else "true")


def _pow(reader: _Importer, node: _Node) -> None:
    reader.emit("pow", node, node.inputs, reader.types.get(node.input(0)))


def _where(reader: _Importer, node: _Node) -> None:
    reader.emit("where", node, node.inputs, reader.one_type(node, node.inputs[1:]))


def _reshape(reader: _Importer, node: _Node) -> None:
    reader.indices(node, 1)
    if node.flag("allowzero"):  # then a side of 0 is one, and the tensor is empty
        shape = reader.value(node.input(1))
        if shape is not None and not shape.all():
            raise _Refused("allowzero=1 with a side of 0: the result is empty")
    reader.emit("reshape", node, node.inputs, reader.types.get(node.input(0)))


def _expand(reader: _Importer, node: _Node) -> None:
    reader.indices(node, 1)
    reader.emit("expand", node, node.inputs, reader.types.get(node.input(0)))


def _constant_of_shape(reader: _Importer, node: _Node) -> None:
    reader.indices(node, 0)
    value = np.zeros((), np.float32)
    if "value" in node.attributes:
        array = reader.tensor(node.attributes["value"], node.layer)
        if array is None or array.size != 1:
            raise node.damaged("its value is not one number")
        value = array.reshape(())
    name = reader.constant(node, "value", value)
    reader.emit("expand", node, [name, node.input(0)], value.dtype)


def _constant(reader: _Importer, node: _Node) -> None:
    if len(node.attributes) != 1:
        raise node.damaged(f"it has {len(node.attributes)} values, and a constant has one")
    ((name, value),) = node.attributes.items()
    if name == "value":
        array = reader.tensor(value, node.layer)
    elif name == "value_float":
        array = np.asarray(node.number(name, 0.0), np.float32)
    elif name == "value_floats":
        array = np.asarray(node.numbers(name), np.float32)
    elif name == "value_int":
        array = np.asarray(node.integer(name), np.int64)
    elif name == "value_ints":
        array = np.asarray(node.integers(name), np.int64)
    else:  # "sparse_value" and text
        array = None
    if array is None:
        raise _Refused(f"{name}: a constant of this kind is not read", "unsupported-layer")
    reader.define(node.outputs[0], array)


def _bipolar(reader: _Importer, node: _Node) -> None:
    reader.emit("bipolar", node, node.inputs, reader.one_type(node, node.inputs))


def _form(
    since: Sequence[int],
    inputs: str,
    handler: Callable[[_Importer, _Node], None],
    reads: str = "",
    inert: str = "",
    **neutral: tuple[Any, ...],
) -> _Form:
    signature = Signature.of(reads.split(), inert.split(), **neutral)
    return _Form(tuple(since), tuple(inputs.split()), signature, handler)


_WINDOW = "auto_pad kernel_shape pads strides"
#: Sets that only let more types in, for operators that move values and do not compute.
_MOVING = (13, 21, 23, 24, 25)

#: Operator -> its forms, the oldest first. `momentum` and a dropout's `ratio` and `seed` matter in training
#: alone, `storage_order` to the second output alone, which nothing may read, `saturate` and `round_mode` to
#: floats of 8 bits, to which nothing may be cast.
OPERATORS: dict[str, tuple[_Form, ...]] = {
    "Abs": (_form((6, 13), "X", _plain("abs")),),
    "Add": (_form((7, 13, 14), "A B", _plain("add")),),
    "BatchNormalization": (
        _form((7,), "X scale B mean var", _batch_norm, "epsilon", "momentum", spatial=(1,)),
        _form((9,), "X scale B mean var", _batch_norm, "epsilon", "momentum"),
        _form((14, 15), "X scale B input_mean input_var", _batch_norm, "epsilon training_mode", "momentum"),
    ),
    "Cast": (
        _form((6, 9, 13), "input", _cast, "to"),
        _form((19, 21, 23), "input", _cast, "to", "saturate"),
        _form((24, 25, 28), "input", _cast, "to", "saturate round_mode"),
    ),
    "CastLike": (
        _form((15,), "input target_type", _cast_like),
        _form((19, 21, 23), "input target_type", _cast_like, "", "saturate"),
        _form((24, 25), "input target_type", _cast_like, "", "saturate round_mode"),
    ),
    "Clip": (
        _form((6,), "input", _clip_6, "min max"),
        _form((11, 12, 13), "input min? max?", _clip),
    ),
    "Concat": (_form((4, 11, 13), "inputs*", _concat, "axis"),),
    "Constant": (
        _form((1, 9), "", _constant, "value"),
        _form((11,), "", _constant, "value sparse_value"),
        _form(
            (12, *_MOVING[:1], 19, *_MOVING[1:]),
            "",
            _constant,
            "value sparse_value value_float value_floats value_int value_ints value_string value_strings",
        ),
    ),
    "ConstantOfShape": (_form((9, 20, *_MOVING[1:]), "input", _constant_of_shape, "value"),),
    "Conv": (_form((1, 11, 22), "X W B?", _conv, f"{_WINDOW} dilations group"),),
    "Div": (_form((7, 13, 14), "A B", _div),),
    "Dropout": (
        _form((7, 10), "data", _dropout, "", "ratio"),
        _form((12, 13, 22), "data ratio? training_mode?", _dropout, "", "seed"),
    ),
    "Expand": (_form((8, 13), "input shape", _expand),),
    "Flatten": (_form((1, 9, 11, *_MOVING), "input", _flatten, "axis"),),
    "Gather": (_form((1, 11, 13), "data indices", _gather, "axis"),),
    "Gemm": (
        _form((7, 9), "A B C", _gemm, "alpha beta transA transB"),
        _form((11, 13), "A B C?", _gemm, "alpha beta transA transB"),
    ),
    "Greater": (_form((7, 9, 13), "A B", _plain("compare", "bool", relation="gt")),),
    "GreaterOrEqual": (_form((12, 16), "A B", _plain("compare", "bool", relation="ge")),),
    "Identity": (_form((1, 13, 14, 16, 19, *_MOVING[1:]), "input", _identity),),
    "LeakyRelu": (_form((6, 16), "X", _leaky_relu, "alpha"),),
    "Less": (_form((7, 9, 13), "A B", _plain("compare", "bool", relation="lt")),),
    "LessOrEqual": (_form((12, 16), "A B", _plain("compare", "bool", relation="le")),),
    "LogSoftmax": (_form((1, 11, 13), "input", _softmax, "axis"),),
    "MatMul": (_form((1, 9, 13), "A B", _plain("matmul")),),
    "Max": (_form((8, 12, 13), "data_0*", _variadic("maximum")),),
    "MaxPool": (
        _form((1,), "X", _max_pool, _WINDOW),
        _form((8,), "X", _max_pool, _WINDOW, "storage_order"),
        _form((10, 11, 12, 22), "X", _max_pool, f"{_WINDOW} ceil_mode dilations", "storage_order"),
    ),
    "Min": (_form((8, 12, 13), "data_0*", _variadic("minimum")),),
    "Mul": (_form((7, 13, 14), "A B", _plain("mul")),),
    "Neg": (_form((6, 13), "X", _plain("neg")),),
    "PRelu": (_form((7, 9, 16), "X slope", _plain("prelu")),),
    "Pow": (_form((7, 12, 13, 15), "X Y", _pow),),
    "ReduceMean": (
        _form((1, 11, 13), "data", _reduced("mean"), "axes keepdims"),
        _form((18,), "data axes?", _reduced("mean"), "keepdims noop_with_empty_axes"),
    ),
    "ReduceSum": (
        _form((1, 11), "data", _reduced("sum"), "axes keepdims"),
        _form((13,), "data axes?", _reduced("sum"), "keepdims noop_with_empty_axes"),
    ),
    "Relu": (_form((6, 13, 14), "X", _relu),),
    "Reshape": (
        _form((5, 13), "data shape", _reshape),
        _form((14, 19, *_MOVING[1:]), "data shape", _reshape, "allowzero"),
    ),
    "Shape": (
        _form((1, 13), "data", _shape),
        _form((15, 19, *_MOVING[1:]), "data", _shape, "start end"),
    ),
    "Sign": (_form((9, 13), "input", _plain("sign")),),
    "Slice": (
        _form((1,), "data", _slice_1, "starts ends axes"),
        _form((10, 11, 13), "data starts ends axes? steps?", _slice),
    ),
    "Softmax": (_form((1, 11, 13), "input", _softmax, "axis"),),
    "Sqrt": (_form((6, 13), "X", _plain("sqrt")),),
    "Squeeze": (
        _form((1, 11), "data", _resized("squeeze"), "axes"),
        _form(_MOVING, "data axes?", _resized("squeeze")),
    ),
    "Sub": (_form((7, 13, 14), "A B", _plain("sub")),),
    "Tanh": (_form((6, 13), "input", _plain("tanh")),),
    "Transpose": (_form((1, *_MOVING), "data", _transpose, "perm"),),
    "Unsqueeze": (
        _form((1, 11), "data", _resized("unsqueeze"), "axes"),
        _form(_MOVING, "data axes", _resized("unsqueeze")),
    ),
    "Where": (_form((9, 16), "condition X Y", _where),),
}

#: QONNX's and Brevitas' sign: the one operator of another domain. It has had one form.
BIPOLAR = _form((1,), "x scale", _bipolar)

#: The newest operator set that the table was compared with; what later ones change is not read.
NEWEST_OPSET = 28
