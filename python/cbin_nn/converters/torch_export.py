r"""Reader of `torch.export` programs: `.pt2` files without torch, and live `torch.nn.Module`s.

A `.pt2` file of torch 2.8 or newer is a zip of JSON (the graph) and raw little-endian arrays (the weights).
This module reads those two and nothing else: it needs no torch, and nothing in the file is executed. Arrays
that were pickled are refused, and so are older files, whose weights are pickles throughout. A live module is
exported in memory and read by the same code, so both routes give the same graph.

Node by node, aten operators are translated to the vocabulary of `cbin_nn.converters.program`.
"""

from __future__ import annotations

import importlib
import io
import json
import math
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConversionError, InvalidArgument, MissingExtra
from .files import Archive
from .graph import Graph
from .program import MAX_ELEMENTS, Array, Operation, Program
from .translate import translate

__all__ = ["export_module", "read_module", "read_torch_export", "read_torch_export_program"]

_MAX_JSON = 2**27
_MAX_WEIGHT = 2**30

#: torch's serialized scalar types (torch/_export/serde/schema.py, ScalarType).
_DTYPES = {
    1: "uint8",
    2: "int8",
    3: "int16",
    4: "int32",
    5: "int64",
    6: "float16",
    7: "float32",
    8: "float64",
    12: "bool",
}

_SAME_NAME = {
    "abs": "abs",
    "add": "add",
    "div": "div",
    "maximum": "maximum",
    "minimum": "minimum",
    "mul": "mul",
    "neg": "neg",
    "sgn": "sign",
    "sign": "sign",
    "sqrt": "sqrt",
    "sub": "sub",
    "tanh": "tanh",
}
_ALIASES = {"alias", "clone", "contiguous", "detach", "detach_", "lift_fresh_copy"}
_RELATIONS = {"ge", "gt", "le", "lt"}
_DROPOUTS = {"alpha_dropout", "dropout", "feature_alpha_dropout", "feature_dropout"}
_RESHAPES = {"_unsafe_view", "reshape", "view"}
#: Their result may share its elements with their input.
_VIEWS = (
    (_ALIASES - {"clone"})
    | _DROPOUTS
    | _RESHAPES
    | {"expand", "flatten", "permute", "squeeze", "t", "to", "transpose", "unsqueeze"}
)
_ASSERTIONS = {"_assert_scalar", "_assert_tensor_metadata", "sym_constrain_range_for_size"}


def read_torch_export(path: str | os.PathLike[str]) -> Graph:
    """Read a `.pt2` file into a source graph.

    Raises:
        ConversionError: the file can't be read, or holds what can't be converted.
    """
    return translate(read_torch_export_program(path))


def read_torch_export_program(path: str | os.PathLike[str]) -> Program:
    """As `read_torch_export`, before translation."""
    with Path(path).open("rb") as file, zipfile.ZipFile(file) as archive:
        return _read(archive)


def export_module(module: Any, input_shape: Any) -> Any:
    """`torch.export.export` of a module in evaluation mode, on one image of zeros.

    Args:
        module: a `torch.nn.Module`, or an exported program, which is returned as it is.
        input_shape: (C, H, W) of the image, or whatever follows the batch.

    Raises:
        InvalidArgument: `input_shape` is missing or wrong.
        ConversionError: torch can't export the module.
    """
    torch = _torch()
    if isinstance(module, torch.export.ExportedProgram):
        return module
    shape = () if input_shape is None else tuple(int(side) for side in np.atleast_1d(input_shape))
    if not shape or min(shape) < 1:
        raise InvalidArgument(
            "bad-argument",
            f"input_shape: {input_shape!r}; a torch module needs the shape of one image, such as (3, 32, 32)",
        )
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            return torch.export.export(module, (torch.zeros(1, *shape),))
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ConversionError(
            "unsupported-model", f"torch.export can't export {type(module).__name__}: {reason}"
        ) from error
    finally:
        module.train(training)


def read_module(module: Any, input_shape: Any = None) -> Graph:
    """The source graph of a live module or exported program; see `export_module`."""
    torch = _torch()
    exported = export_module(module, input_shape)
    buffer = io.BytesIO()
    torch.export.save(exported, buffer)
    with zipfile.ZipFile(buffer) as archive:
        program = _read(archive)
    name = type(module).__name__
    program.name = name if name not in ("ExportedProgram", "GraphModule") else program.name
    return translate(program)


def _torch() -> Any:
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        raise MissingExtra(
            "missing-extra", "a live torch module needs torch; run: pip install 'cbin-nn[torch]'"
        ) from error


# ------------------------------------------------------------------------------------------------
# the archive


def _read(archive: zipfile.ZipFile) -> Program:
    files = Archive(archive)
    models = [n for n in files.names if n.endswith(".json") and n.split("/")[-2:-1] == ["models"]]
    if len(models) != 1:
        old = any(name.endswith("serialized_exported_program.json") for name in files.names)
        raise ConversionError(
            "unsupported-file",
            "a .pt2 file of torch before 2.8, whose weights are pickles and are not read; load it with "
            "torch.export.load and save it with a newer torch"
            if old
            else f"a .pt2 file with {len(models)} programs; one is needed",
        )
    root = models[0].rsplit("models/", 1)[0]
    stem = models[0].rsplit("/", 1)[-1][: -len(".json")]
    order = files.read(f"{root}byteorder", 16) if f"{root}byteorder" in files.names else b"little"
    if order.strip() != b"little":
        raise ConversionError("unsupported-file", f"byte order {order!r}; only little-endian files are read")
    model = _record(_json(files.read(models[0], _MAX_JSON)), "the program")
    weights: dict[str, Array] = {}
    for kind in ("weights", "constants"):
        folder = f"{root}data/{kind}/"
        config = f"{folder}{stem}_{kind}_config.json"
        if config in files.names:
            table = _record(_json(files.read(config, _MAX_JSON)), config)
            for name, entry in _record(table.get("config"), config).items():
                weights[name] = _array(files, folder, name, _record(entry, name))
    name = root.strip("/").split("/")[-1]
    return _Importer(model, weights, name).program()


def _json(data: bytes) -> Any:
    return json.loads(data.decode("utf-8"))


def _record(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConversionError("damaged-file", f"{what} is not a record but {type(value).__name__}")
    return value


def _int(value: Any, what: str) -> int:
    """An integer, plain or as {"as_int": n}; the hint of a symbol."""
    if isinstance(value, dict):
        if "as_expr" in value:
            return _int(_record(value["as_expr"], what).get("hint"), what)
        value = value.get("as_int")
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > 2**62:
        raise ConversionError("damaged-file", f"{what} is no integer")
    return value


def _array(files: Archive, folder: str, name: str, entry: dict[str, Any]) -> Array:
    if entry.get("use_pickle"):
        raise ConversionError(
            "unsupported-file",
            f"tensor {name!r} is stored as a pickle, which is not read; save a plain dense tensor instead",
        )
    meta = _record(entry.get("tensor_meta"), name)
    dtype = _DTYPES.get(meta.get("dtype", 0))
    if dtype is None:
        raise ConversionError(
            "unsupported-file", f"tensor {name!r} has a type that is not read ({meta.get('dtype')})"
        )
    shape = [_int(side, name) for side in meta.get("sizes") or []]
    strides = [_int(step, name) for step in meta.get("strides") or []]
    offset = _int(meta.get("storage_offset", 0), name)
    count = math.prod(shape)
    if any(side < 0 for side in shape) or count > MAX_ELEMENTS or len(strides) != len(shape):
        raise ConversionError("damaged-file", f"tensor {name!r} of shape {shape[:8]} is impossible")
    path = entry.get("path_name")
    if not isinstance(path, str) or "/" in path or f"{folder}{path}" not in files.names:
        raise ConversionError("damaged-file", f"tensor {name!r}: the file has no {str(path)[:80]!r}")
    flat = np.frombuffer(files.read(f"{folder}{path}", _MAX_WEIGHT), dtype=np.dtype(dtype).newbyteorder("<"))
    last = offset + sum((side - 1) * step for side, step in zip(shape, strides, strict=True))
    if count and (offset < 0 or min(strides, default=0) < 0 or last >= flat.size):
        raise ConversionError("damaged-file", f"tensor {name!r} of shape {shape[:8]} reaches beyond its data")
    if not count:
        return np.zeros(shape, dtype)
    view = np.lib.stride_tricks.as_strided(
        flat[offset:], shape, [step * flat.itemsize for step in strides], writeable=False
    )
    return np.ascontiguousarray(view)


# ------------------------------------------------------------------------------------------------
# aten


def _in_place(name: str) -> bool:
    return name.endswith("_") and not name.startswith("_") and name != "detach_"


class _Unsupported(Exception):
    """The reason why one node is not translated."""


class _Importer:
    def __init__(self, model: dict[str, Any], weights: dict[str, Array], name: str) -> None:
        module = _record(model.get("graph_module"), "graph_module")
        self.graph = _record(module.get("graph"), "graph")
        self.signature = _record(module.get("signature"), "signature")
        self.weights, self.name = weights, name
        self.constants: dict[str, Array] = {}
        self.operations: list[Operation] = []
        self.count = 0
        #: A tensor that was changed in place -> what it is now.
        self.changed: dict[str, str] = {}
        #: Tensors that share their elements with another one.
        self.shared: set[str] = set()

    def program(self) -> Program:
        inputs = []
        for spec in self._list(self.signature, "input_specs"):
            ((kind, value),) = _record(spec, "an input").items()
            value = _record(value, kind)
            argument = _record(value.get("arg"), kind)
            if kind == "user_input":
                inputs.append(self._tensor_name(argument, "the input"))
                continue
            target = next(
                (value[k] for k in ("parameter_name", "buffer_name", "tensor_constant_name") if k in value),
                None,
            )
            if target not in self.weights:
                raise ConversionError("missing-weights", f"the file holds no tensor {str(target)[:80]!r}")
            self.constants[self._name(argument.get("name"))] = self.weights[str(target)]
        outputs = []
        for spec in self._list(self.signature, "output_specs"):
            ((kind, value),) = _record(spec, "an output").items()
            if kind == "user_output":
                outputs.append(self._tensor_name(_record(value, kind).get("arg"), "the output"))
        if len(inputs) != 1 or len(outputs) != 1:
            raise ConversionError(
                "unsupported-model",
                f"the network has {len(inputs)} inputs and {len(outputs)} outputs; one image in and one "
                "tensor "
                "out converts",
            )
        values = _record(self.graph.get("tensor_values"), "tensor_values")
        sizes = _record(values.get(inputs[0]), inputs[0]).get("sizes") or []
        shape = []
        for i, side in enumerate(sizes):
            if i and isinstance(side, dict) and "as_expr" in side:
                raise ConversionError(
                    "unsupported-option",
                    f"input {inputs[0]!r} has no fixed side number {i}; export with a fixed image size",
                )
            shape.append(_int(side, inputs[0]) if i else 1)
        for node in self._list(self.graph, "nodes"):
            self._node(_record(node, "a node"))
        return Program(
            self.name,
            inputs[0],
            tuple(shape),
            self.constants,
            self.operations,
            self._current(outputs[0]),
            framework="torch",
        )

    @staticmethod
    def _list(record: dict[str, Any], key: str) -> list[Any]:
        value = record.get(key)
        if not isinstance(value, list) or len(value) > 2**20:
            raise ConversionError("damaged-file", f"{key} is no list, or too long")
        return value

    @staticmethod
    def _name(value: Any) -> str:
        if not isinstance(value, str) or not 0 < len(value) < 500:
            raise ConversionError("damaged-file", f"a tensor's name is {str(value)[:80]!r}")
        return value

    def _tensor_name(self, argument: Any, what: str) -> str:
        """The name of a tensor argument, as it is now."""
        return self._current(_record(_record(argument, what).get("as_tensor"), what).get("name"))

    def _current(self, value: Any) -> str:
        name = self._name(value)
        while name in self.changed:
            name = self.changed[name]
        return name

    # -- nodes

    def _node(self, node: dict[str, Any]) -> None:
        target = str(node.get("target"))[:120]
        outputs = [
            self._tensor_name(output, target)
            for output in node.get("outputs") or []
            if isinstance(output, dict) and "as_tensor" in output
        ]
        parts = target.split(".")
        name = parts[3] if target.startswith("torch.ops.aten.") and len(parts) >= 4 else target
        if name in _ASSERTIONS:
            return
        if not outputs:
            names = [output for output in node.get("outputs") or [] if isinstance(output, dict)]
            if not names:
                return
            raise ConversionError(
                "unsupported-model", f"operator {target} gives no tensor; export with a fixed image size"
            )
        layer = self._layer(node, outputs[0])
        arguments = {}
        for item in self._list(node, "inputs"):
            item = _record(item, target)
            arguments[str(item.get("name"))] = _record(item.get("arg"), target)
        try:
            self._translate(name, parts[4] if len(parts) > 4 else "", layer, outputs[0], arguments)
        except _Unsupported as error:
            self._unsupported(name, layer, outputs[0], arguments, str(error))
        if _in_place(name) and "as_tensor" in arguments.get("self", {}):
            self.changed[self._tensor_name(arguments["self"], name)] = outputs[0]
        for extra in outputs[1:]:  # statistics of a normalisation, indices of a pool: nobody may read them
            self._emit("unsupported", layer, extra, [outputs[0]], name=name, reason="a second result is used")

    @staticmethod
    def _layer(node: dict[str, Any], output: str) -> str:
        """The module's path, from `L__self__,,Net;L__self__f_0,f.0,torch.nn.Conv2d`."""
        metadata = node.get("metadata")
        stack = metadata.get("nn_module_stack") if isinstance(metadata, dict) else None
        if isinstance(stack, str):
            fields = stack.rsplit(";", 1)[-1].split(",")
            if len(fields) >= 2 and fields[1]:
                return fields[1][:200]
        return output

    def _emit(self, kind: str, layer: str, output: str, inputs: list[str], **attributes: Any) -> None:
        self.operations.append(Operation(kind, layer, tuple(inputs), output, attributes))

    def _unsupported(
        self, name: str, layer: str, output: str, arguments: dict[str, dict[str, Any]], reason: str
    ) -> None:
        inputs = []
        for argument in arguments.values():
            if "as_tensor" in argument:
                inputs.append(self._tensor_name(argument, name))
            elif "as_tensors" in argument:
                inputs += [self._current(_record(t, name).get("name")) for t in argument["as_tensors"]]
        self._emit("unsupported", layer, output, inputs, name=name, reason=reason)

    def _constant(self, value: Array) -> str:
        self.count += 1
        name = f"constant/{self.count}"
        self.constants[name] = value
        return name

    def _operand(self, argument: dict[str, Any]) -> str:
        """A tensor's name; a number becomes a float32 constant, as torch computes with it."""
        if "as_tensor" in argument:
            return self._tensor_name(argument, "an operand")
        return self._constant(np.asarray(self._number(argument), np.float32))

    def _number(self, argument: dict[str, Any] | None, default: float | None = None) -> float:
        if argument is None or "as_none" in argument:
            if default is None:
                raise _Unsupported("a number is missing")
            return default
        for key in ("as_float", "as_int", "as_bool"):
            value = argument.get(key)
            if isinstance(value, (int, float)):
                return float(value)
            if isinstance(value, str) and key == "as_float":  # JSON has no infinity
                return float(value)
        raise _Unsupported(f"a number is given as {next(iter(argument), 'nothing')}")

    def _ints(self, argument: dict[str, Any] | None, default: list[int]) -> list[int]:
        if argument is None or "as_none" in argument:
            return default
        if "as_int" in argument:
            return [_int(argument["as_int"], "an option")]
        for key in ("as_ints", "as_sym_ints"):
            if isinstance(argument.get(key), list):
                return [_int(v, "an option") for v in argument[key][:64]]
        raise _Unsupported(f"an option is given as {next(iter(argument), 'nothing')}")

    def _pair(self, argument: dict[str, Any] | None, default: tuple[int, int]) -> tuple[int, int]:
        values = self._ints(argument, list(default)) or list(default)
        if len(values) == 1:
            values = values * 2
        if len(values) != 2:
            raise _Unsupported("only 2-D convolutions and pools convert")
        return values[0], values[1]

    def _translate(
        self, name: str, overload: str, layer: str, output: str, arguments: dict[str, dict[str, Any]]
    ) -> None:
        def tensor(key: str = "self") -> str:
            if "as_tensor" not in arguments.get(key, {}):
                raise _Unsupported(f"its argument {key!r} is no tensor")
            return self._tensor_name(arguments[key], key)

        def emit(kind: str, *inputs: str, **attributes: Any) -> None:
            self._emit(kind, layer, output, list(inputs), **attributes)

        if _in_place(name):
            # `y = x.add_(1)` is `y = x + 1`, after which x is y; unless others share the elements of x.
            changed = tensor()
            if changed in self.shared:
                # No mere unsupported operation: what reads the view depends on it, and does not name it.
                raise ConversionError(
                    "unsupported-layer",
                    f"{name} changes a tensor in place that is shared with a view; write it without the "
                    "change in place",
                    layer=layer,
                )
            name = name[:-1]
        elif name in _VIEWS:
            self.shared |= {tensor("input" if name in _DROPOUTS else "self"), output}
        if name in _ALIASES:
            emit("identity", tensor())
        elif name in _DROPOUTS:
            emit("identity", tensor("input"), dropped="dropout does nothing at inference")
        elif name in _SAME_NAME:
            if self._number(arguments.get("alpha"), 1.0) != 1:
                raise _Unsupported("alpha is not 1")
            if "rounding_mode" in arguments and "as_none" not in arguments["rounding_mode"]:
                raise _Unsupported("a rounding division")
            inputs = [self._operand(arguments[key]) for key in ("self", "other") if key in arguments]
            emit(_SAME_NAME[name], *inputs)
        elif name == "rsub":
            if self._number(arguments.get("alpha"), 1.0) != 1:
                raise _Unsupported("alpha is not 1")
            emit("sub", self._operand(arguments["other"]), tensor())
        elif name == "pow" and overload == "Tensor_Scalar":
            emit("pow", tensor(), self._operand(arguments["exponent"]))
        elif name in _RELATIONS:
            emit("compare", tensor(), self._operand(arguments["other"]), relation=name)
        elif name == "where":
            emit("where", tensor("condition"), *(self._operand(arguments[k]) for k in ("self", "other")))
        elif name in ("to", "_to_copy"):
            code = arguments.get("dtype", {}).get("as_scalar_type")
            if code is None:
                emit("identity", tensor())
            elif code not in _DTYPES:
                raise _Unsupported(f"a conversion to type {code}")
            else:
                emit("cast", tensor(), dtype=_DTYPES[code])
        elif name in ("full", "full_like", "scalar_tensor", "ones_like", "zeros_like"):
            self._fill(name, output, arguments)
        elif name in ("conv2d", "convolution"):
            self._convolution(layer, output, arguments, tensor)
        elif name == "linear":
            bias = [tensor("bias")] if "as_tensor" in arguments.get("bias", {}) else []
            emit("linear", tensor("input"), tensor("weight"), *bias)
        elif name in ("mm", "matmul"):
            emit("matmul", tensor(), tensor("mat2" if name == "mm" else "other"))
        elif name == "addmm":
            emit("matmul", tensor("mat1"), tensor("mat2"), tensor())
        elif name in ("t", "numpy_T"):
            emit("permute", tensor(), axes=(1, 0))
        elif name == "max_pool2d":
            kernel = self._pair(arguments.get("kernel_size"), (1, 1))
            vertical, horizontal = self._pair(arguments.get("padding"), (0, 0))
            emit(
                "max_pool2d",
                tensor(),
                kernel=kernel,
                strides=self._pair(arguments.get("stride"), kernel),
                padding=(vertical, horizontal, vertical, horizontal),
                dilation=self._pair(arguments.get("dilation"), (1, 1)),
                ceil_mode=bool(arguments.get("ceil_mode", {}).get("as_bool", False)),
            )
        elif name in ("batch_norm", "_native_batch_norm_legit_no_training"):
            self._batch_norm(layer, output, arguments, tensor)
        elif name in ("prelu", "_prelu_kernel"):
            emit("prelu", tensor(), tensor("weight"), by_channel=name == "prelu")
        elif name in ("relu",):
            emit("clip", tensor(), low=0.0, high=None)
        elif name in ("leaky_relu",):
            emit("leaky_relu", tensor(), slope=self._number(arguments.get("negative_slope"), 0.01))
        elif name in ("hardtanh",):
            low = self._number(arguments.get("min_val"), -1.0)
            emit("clip", tensor(), low=low, high=self._number(arguments.get("max_val"), 1.0))
        elif name in ("relu6",):
            emit("clip", tensor(), low=0.0, high=6.0)
        elif name in ("clamp", "clamp_min", "clamp_max", "clip"):
            ends = {"low": arguments.get("min"), "high": arguments.get("max")}
            missing = {"as_none": True}
            numbers = {
                key: None if "as_none" in (value or missing) else self._number(value)
                for key, value in ends.items()
            }
            emit("clip", tensor(), **numbers)
        elif name == "flatten":
            start, end = (
                self._ints(arguments.get(key), [default])[0]
                for key, default in (("start_dim", 0), ("end_dim", -1))
            )
            emit("flatten", tensor(), start=start, end=end)
        elif name in _RESHAPES:
            shape = self._ints(arguments.get("size", arguments.get("shape")), [])
            emit("reshape", tensor(), self._constant(np.array(shape, np.int64)))
        elif name == "permute":
            emit("permute", tensor(), axes=tuple(self._ints(arguments.get("dims"), [])))
        elif name == "transpose":
            raise _Unsupported("transpose; use permute(0, 2, 3, 1) or permute(0, 3, 1, 2)")
        elif name == "unsqueeze":
            emit("unsqueeze", tensor(), axes=self._ints(arguments.get("dim"), []))
        elif name == "squeeze":
            emit("squeeze", tensor(), axes=self._ints(arguments.get("dim"), []) or None)
        elif name == "expand":
            emit(
                "expand", tensor(), self._constant(np.array(self._ints(arguments.get("size"), []), np.int64))
            )
        elif name in ("mean", "sum"):
            axes = self._ints(arguments.get("dim"), []) or None
            emit(name, tensor(), axes=axes, keepdims=bool(arguments.get("keepdim", {}).get("as_bool", False)))
        elif name in ("softmax", "_softmax", "log_softmax", "_log_softmax"):
            emit("softmax", tensor(), axis=self._ints(arguments.get("dim"), [-1])[0], log="log" in name)
        elif name == "cat":
            tensors = [
                self._current(_record(t, "cat").get("name"))
                for t in arguments["tensors"].get("as_tensors") or []
            ]
            emit("concat", *tensors, axis=self._ints(arguments.get("dim"), [0])[0])
        else:
            raise _Unsupported("no operator of this kind converts")

    def _fill(self, name: str, output: str, arguments: dict[str, dict[str, Any]]) -> None:
        """A constant tensor; what is like another tensor broadcasts from one number."""
        key = {"full": "fill_value", "full_like": "fill_value", "scalar_tensor": "s"}.get(name)
        value = self._number(arguments[key]) if key else 1.0 if name == "ones_like" else 0.0
        shape = self._ints(arguments.get("size"), []) if name == "full" else []
        if any(side < 0 for side in shape) or math.prod(shape) > MAX_ELEMENTS:
            raise ConversionError("damaged-file", f"a constant of shape {shape[:8]} is too large")
        self.constants[output] = np.full(shape, value, np.float32)

    def _convolution(
        self, layer: str, output: str, arguments: dict[str, dict[str, Any]], tensor: Callable[[str], str]
    ) -> None:
        transposed = arguments.get("transposed", {}).get("as_bool", False)
        if transposed:
            raise _Unsupported("a transposed convolution")
        bias = [tensor("bias")] if "as_tensor" in arguments.get("bias", {}) else []
        padding: Any
        if "as_string" in arguments.get("padding", {}):
            padding = "SAME_UPPER" if arguments["padding"]["as_string"] == "same" else (0, 0, 0, 0)
        else:
            vertical, horizontal = self._pair(arguments.get("padding"), (0, 0))
            padding = (vertical, horizontal, vertical, horizontal)
        self._emit(
            "conv2d",
            layer,
            output,
            [tensor("input"), tensor("weight"), *bias],
            strides=self._pair(arguments.get("stride"), (1, 1)),
            dilation=self._pair(arguments.get("dilation"), (1, 1)),
            groups=self._ints(arguments.get("groups"), [1])[0],
            padding=padding,
        )

    def _batch_norm(
        self, layer: str, output: str, arguments: dict[str, dict[str, Any]], tensor: Callable[[str], str]
    ) -> None:
        if arguments.get("training", {}).get("as_bool", False):
            raise _Unsupported("exported in training mode; call model.eval() before the export")
        statistics = [tensor("running_mean"), tensor("running_var")]
        size = self.constants[statistics[0]].shape if statistics[0] in self.constants else (1,)
        affine = [
            tensor(key)
            if "as_tensor" in arguments.get(key, {})
            else self._constant(np.full(size, value, np.float32))
            for key, value in (("weight", 1.0), ("bias", 0.0))
        ]
        self._emit(
            "batch_norm",
            layer,
            output,
            [tensor("input"), *affine, *statistics],
            epsilon=self._number(arguments.get("eps"), 1e-5),
        )
