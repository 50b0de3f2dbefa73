r"""Reader of `torch.export` programs: `.pt2` files without torch, and live `torch.nn.Module`s.

A `.pt2` file of torch 2.8 or newer is a zip of JSON (the graph) and raw little-endian arrays (the weights).
This module reads those two and nothing else: it needs no torch, and nothing in the file is executed. Arrays
that were pickled are refused, and so are older files, whose weights are pickles throughout. A live module is
exported in memory and read by the same code, so both routes give the same graph.

Node by node, aten operators are translated to the vocabulary of `cbin_nn.converters.program` by the table in
`aten`. The file states the type and the shape of every tensor; what is read is held against them.

**In place.** `y.add_(1)` gives `y` a new value. Tensors that share elements with it (views, what dropout
returned) have that value too, in their own order; a program that reads one of them afterwards is refused. A
program that changes its own parameters or buffers and reads them is refused: its answers depend on the calls
before.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import json
import math
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConversionError, InvalidArgument, MissingExtra
from .aten import OPERATORS, Call, Symbol, Tensor, Unsupported, Writer, refusal
from .files import Archive
from .graph import Graph
from .program import MAX_ELEMENTS, Array, Program, TensorType
from .translate import translate
from .untouched import untouched

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
    13: "bfloat16",
}

_STRIDED = 7  # torch's serialized layouts: a plain dense tensor
_ASSERTIONS = {
    "_assert_async",
    "_assert_scalar",
    "_assert_tensor_metadata",
    "sym_constrain_range",
    "sym_constrain_range_for_size",
}


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

    Evaluation mode is what the module's own `eval()` makes of it. The module is as it was afterwards:
    training flags of every submodule, gradients, hooks, attributes, random state; after an error, too.

    Args:
        module: a `torch.nn.Module`, also behind `torch.compile` or `DataParallel`, or an exported program,
            which is returned as it is.
        input_shape: (C, H, W) of the image, or whatever follows the batch.

    Raises:
        InvalidArgument: `input_shape` is missing or wrong.
        ConversionError: torch can't export the module.
    """
    torch = _torch()
    if isinstance(module, torch.export.ExportedProgram):
        return module
    module = _unwrapped(torch, module)
    if isinstance(module, torch.jit.ScriptModule):
        raise ConversionError(
            "unsupported-model",
            "a TorchScript module can't be exported; convert the torch.nn.Module that it was made from",
        )
    shape = () if input_shape is None else tuple(int(side) for side in np.atleast_1d(input_shape))
    if not shape or min(shape) < 1:
        raise InvalidArgument(
            "bad-argument",
            f"input_shape: {input_shape!r}; a torch module needs the shape of one image, such as (3, 32, 32)",
        )
    tensors = [*module.parameters(), *module.buffers()]
    if any(isinstance(tensor, torch.nn.parameter.UninitializedTensorMixin) for tensor in tensors):
        raise ConversionError(
            "missing-weights", "a lazy layer has no parameters yet; run the module on an image once"
        )
    device = tensors[0].device if tensors else torch.device("cpu")
    if any(tensor.is_meta for tensor in tensors):
        raise ConversionError(
            "missing-weights", "parameters on the device 'meta' have no values; load a checkpoint first"
        )
    with untouched(torch, module):
        try:
            if any(tensor.is_inference() for tensor in tensors):
                module = copy.deepcopy(
                    module
                )  # torch can't export parameters that were made in inference mode
            # A module out of an exported program has its mode built in, and no eval().
            with contextlib.suppress(NotImplementedError):
                module.eval()
            image = torch.zeros(1, *shape, dtype=torch.float32, device=device)
            with torch.inference_mode(False), torch.no_grad():
                program = torch.export.export(module, (image,))
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            types = sorted(
                {str(t.dtype) for t in tensors if t.is_floating_point() and t.dtype != torch.float32}
            )
            advice = (
                f"; it holds {' and '.join(types)}: convert copy.deepcopy(model).float()" if types else ""
            )
            raise ConversionError(
                "unsupported-model", f"torch.export can't export {type(module).__name__}: {reason}{advice}"
            ) from error
    if device.type != "cpu":
        program = torch.export.passes.move_to_device_pass(program, "cpu")
    return program


def _unwrapped(torch: Any, module: Any) -> Any:
    """The module itself, where it is behind `torch.compile` or runs on several devices."""
    while True:
        if hasattr(module, "_orig_mod"):
            module = module._orig_mod
        elif isinstance(module, (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)):
            module = module.module
        else:
            return module


def read_module(module: Any, input_shape: Any = None) -> Graph:
    """The source graph of a live module or exported program; see `export_module`."""
    torch = _torch()
    exported = export_module(module, input_shape)
    buffer = io.BytesIO()
    torch.export.save(exported, buffer)
    with zipfile.ZipFile(buffer) as archive:
        program = _read(archive)
    name = type(_unwrapped(torch, module)).__name__
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
    # bfloat16 is the upper half of a float32.
    stored = np.dtype("uint16" if dtype == "bfloat16" else dtype).newbyteorder("<")
    flat = np.frombuffer(files.read(f"{folder}{path}", _MAX_WEIGHT), dtype=stored)
    last = offset + sum((side - 1) * step for side, step in zip(shape, strides, strict=True))
    if count and (offset < 0 or min(strides, default=0) < 0 or last >= flat.size):
        raise ConversionError("damaged-file", f"tensor {name!r} of shape {shape[:8]} reaches beyond its data")
    if not count:
        return np.zeros(shape, "float32" if dtype == "bfloat16" else dtype)
    view = np.lib.stride_tricks.as_strided(
        flat[offset:], shape, [step * flat.itemsize for step in strides], writeable=False
    )
    if dtype == "bfloat16":
        return (view.astype(np.uint32, order="C") << 16).view(np.float32)
    return view.astype(dtype, order="C")


# ------------------------------------------------------------------------------------------------
# aten


def _in_place(name: str) -> bool:
    return name.endswith("_") and not name.startswith("_") and name != "detach_"


class _Importer:
    def __init__(self, model: dict[str, Any], weights: dict[str, Array], name: str) -> None:
        module = _record(model.get("graph_module"), "graph_module")
        self.graph = _record(module.get("graph"), "graph")
        self.signature = _record(module.get("signature"), "signature")
        self.weights, self.name = weights, name
        self.values = _record(self.graph.get("tensor_values"), "tensor_values")
        self.integers = _record(self.graph.get("sym_int_values") or {}, "sym_int_values")
        self.batch_symbol = ""
        self.writer = Writer()
        #: A tensor that was changed in place -> what it is now.
        self.changed: dict[str, str] = {}
        #: Tensors that share elements with others -> all of them.
        self.shared: dict[str, set[str]] = {}
        #: Tensors whose elements changed under another name -> the layer and the operator that did it.
        self.stale: dict[str, str] = {}
        #: Parameters and buffers.
        self.state: set[str] = set()
        #: Those that the program changes -> the layer that does it.
        self.changed_state: dict[str, str] = {}

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
            name = self._name(argument.get("name"))
            self.writer.constants[name] = self.weights[str(target)]
            if kind in ("parameter", "buffer"):
                self.state.add(name)
        outputs = []
        for spec in self._list(self.signature, "output_specs"):
            ((kind, value),) = _record(spec, "an output").items()
            if kind == "user_output":
                outputs.append(_record(_record(value, kind).get("arg"), "the output"))
            else:
                self._mutation(_record(value, kind))
        if len(inputs) != 1 or len(outputs) != 1:
            raise ConversionError(
                "unsupported-model",
                f"the network has {len(inputs)} inputs and {len(outputs)} outputs; one image in and one "
                "tensor "
                "out converts",
            )
        shape = self._input(inputs[0])
        self._types(inputs[0])
        for node in self._list(self.graph, "nodes"):
            self._node(_record(node, "a node"))
        output = self._read(self._tensor_name(outputs[0], "the output"), "the output")
        self._check_state(output)
        writer = self.writer
        return Program(
            self.name,
            inputs[0],
            shape,
            writer.constants,
            writer.operations,
            output,
            framework="torch",
            types=writer.types,
            batch=writer.batch,
        )

    def _input(self, name: str) -> tuple[int, ...]:
        """The input's shape for one image; notes the batch, fixed or by its symbol."""
        value = _record(self.values.get(name), name)
        shape = []
        for i, side in enumerate(value.get("sizes") or []):
            if i and isinstance(side, dict) and "as_expr" in side:
                raise ConversionError(
                    "unsupported-option",
                    f"input {name!r} has no fixed side number {i}; export with a fixed image size",
                )
            if not i:
                self.writer.batch = _int(side, name)
                if isinstance(side, dict) and "as_expr" in side:
                    self.batch_symbol = str(_record(side["as_expr"], name).get("expr_str"))
            shape.append(_int(side, name) if i else 1)
        dtype = _DTYPES.get(value.get("dtype", 0))
        if dtype in ("float16", "bfloat16"):
            raise ConversionError(
                "unsupported-option",
                f"input {name!r} is {dtype}, and the converted network does not round as it does; convert "
                "the network in float32 (model.float())",
            )
        self.writer.dependent.add(name)
        return tuple(shape)

    def _types(self, input_name: str) -> None:
        """The stated types of all tensors; what is stored must have them."""
        for name, value in self.values.items():
            value = _record(value, name)
            dtype = _DTYPES.get(value.get("dtype", 0))
            shape = tuple(
                None if isinstance(side, dict) and "as_expr" in side else _int(side, name)
                for side in value.get("sizes") or []
            )
            if dtype is not None and value.get("layout", _STRIDED) == _STRIDED:
                self.writer.types[name] = TensorType(dtype, shape)
        for name, array in self.writer.constants.items():
            stated = self.writer.types.get(name)
            kept = "float32" if stated and stated.dtype == "bfloat16" else stated and stated.dtype
            if stated is None or array.dtype.name != kept or not stated.fits(array.shape):
                raise ConversionError(
                    "damaged-file",
                    f"tensor {name!r} is stored as {array.dtype} {list(array.shape)[:8]}, and the program "
                    "states another type",
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

    # -- what changes in place

    def _read(self, name: str, reader: str) -> str:
        """A tensor's name, for a layer that reads it.

        Raises:
            ConversionError: its elements were changed under another name.
        """
        if name in self.stale:
            # No mere unsupported operation: the network behind it would be another one.
            raise ConversionError(
                "unsupported-layer",
                f"layer {self.stale[name]} changes a tensor in place, and {reader} reads the same elements "
                "by another name afterwards (a view, or what dropout returned); write it without the change "
                "in place",
            )
        return name

    def _share(self, first: str, second: str) -> None:
        group = self.shared.get(first, {first}) | self.shared.get(second, {second})
        for name in group:
            self.shared[name] = group

    def _change(self, name: str, output: str, layer: str, operator: str) -> None:
        """`name` has from now on the value `output`."""
        for other in self.shared.get(name, {name}):
            if other != name:
                self.stale[other] = f"{layer!r} ({operator})"
            if other in self.state:
                self.changed_state[other] = layer
        self.stale.pop(output, None)
        self._share(name, output)
        self.changed[name] = output

    def _mutation(self, value: dict[str, Any]) -> None:
        """A result that is written back: a buffer that the program changes."""
        target = next((value[k] for k in ("buffer_name", "parameter_name") if k in value), None)
        for spec in self._list(self.signature, "input_specs"):
            ((_, entry),) = _record(spec, "an input").items()
            if target is not None and target in (entry.get("buffer_name"), entry.get("parameter_name")):
                self.changed_state[self._name(_record(entry.get("arg"), "an input").get("name"))] = str(
                    target
                )

    def _check_state(self, output: str) -> None:
        """Nothing that the output needs is changed by the program itself."""
        needed = {output}
        for operation in reversed(self.writer.operations):
            if operation.output in needed:
                if (
                    operation.kind == "unsupported"
                ):  # a BatchNorm in training mode, say, which is refused as that
                    return
                needed.update(operation.inputs)
        for name, layer in self.changed_state.items():
            if name in needed:
                raise ConversionError(
                    "unsupported-model",
                    f"it changes the parameter or buffer {name!r} when the network runs, so its answers "
                    "depend on the calls before; call model.eval() before the export, or change it outside "
                    "forward",
                    layer=layer,
                )

    # -- nodes

    def _node(self, node: dict[str, Any]) -> None:
        target = str(node.get("target"))[:120]
        parts = target.split(".")
        aten = target.startswith("torch.ops.aten.") and len(parts) >= 4
        name, overload = (parts[3], ".".join(parts[4:])) if aten else (target, "")
        if name in _ASSERTIONS:
            return
        outputs: list[str] = []
        for output in node.get("outputs") or []:
            output = _record(output, target)
            if "as_tensor" in output:
                outputs.append(self._name(_record(output["as_tensor"], target).get("name")))
            elif isinstance(output.get("as_tensors"), list):
                outputs += [self._name(_record(o, target).get("name")) for o in output["as_tensors"]]
        if not outputs:  # integers and the like, which are refused where a tensor's operator reads them
            return
        layer = self._layer(node, outputs[0])
        given = [_record(item, target) for item in self._list(node, "inputs")]
        arguments = {
            str(item.get("name")): self._value(_record(item.get("arg"), target), f"layer {layer!r}")
            for item in given
        }
        many = any(isinstance(o, dict) and "as_tensors" in o for o in node.get("outputs") or [])
        in_place = aten and _in_place(name)
        try:
            self._translate(name.rstrip("_") if in_place else name, overload, layer, outputs[0], arguments)
        except Unsupported as error:
            self._unsupported(name, layer, outputs[0], arguments, error)
        if in_place and isinstance(arguments.get("self"), Tensor):
            self._change(arguments["self"].name, outputs[0], layer, name)
        for extra in outputs[1:]:  # statistics of a normalisation, indices of a pool: nobody may read them
            reason = refusal(name, overload) if many else Unsupported("its second result is used")
            self._unsupported(name, layer, extra, {"self": Tensor(outputs[0])}, reason)

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

    def _translate(
        self, name: str, overload: str, layer: str, output: str, arguments: dict[str, Any]
    ) -> None:
        entry = OPERATORS.get(f"{name}.{overload}")
        if entry is None:
            raise refusal(name, overload)
        unread = entry.signature.unread(arguments)
        if unread:
            listed = " and ".join(f"{argument}={_shown(value)}" for argument, value in unread)
            raise Unsupported(
                f"its argument {listed} is not honoured; leave it at its default", "unsupported-option"
            )
        if output not in self.writer.types:
            raise Unsupported("its result is of a type that is not read (complex, sparse or quantized)")
        if entry.view_of:
            viewed = arguments.get(entry.view_of)
            if isinstance(viewed, Tensor):
                self._share(viewed.name, output)
        entry.handle(Call(self.writer, layer, output, arguments))

    def _unsupported(
        self, name: str, layer: str, output: str, arguments: dict[str, Any], reason: Unsupported
    ) -> None:
        inputs = []
        for argument in arguments.values():
            values = argument if isinstance(argument, list) else [argument]
            inputs += [value.name for value in values if isinstance(value, Tensor)]
        self.writer.emit(
            "unsupported", layer, output, inputs, name=name, reason=str(reason), slug=reason.slug
        )

    # -- arguments

    def _value(self, argument: dict[str, Any], reader: str) -> Any:
        """An argument as Python has it. What this reader does not know becomes text, which fits nothing."""
        ((kind, value),) = argument.items()
        if kind == "as_none":
            return None
        if kind == "as_tensor":
            return Tensor(self._read(self._current(_record(value, kind).get("name")), reader))
        if kind in ("as_tensors", "as_ints", "as_floats", "as_bools", "as_sym_ints", "as_optional_tensors"):
            if not isinstance(value, list) or len(value) > 2**16:
                raise ConversionError("damaged-file", f"{reader}: {kind} is no list, or too long")
            single = {
                "as_tensors": "as_tensor",
                "as_ints": "as_int",
                "as_floats": "as_float",
                "as_bools": "as_bool",
            }
            if kind == "as_optional_tensors":
                return [self._value(_record(v, kind), reader) for v in value]
            if kind == "as_sym_ints":
                return [self._integer(v, reader) for v in value]
            return [self._value({single[kind]: v}, reader) for v in value]
        if kind in ("as_int", "as_sym_int"):
            return self._integer(value, reader)
        if kind == "as_float" and isinstance(value, (int, float, str)):  # JSON has no infinity
            try:
                return float(value)
            except ValueError as error:
                text = str(value)[:80]
                raise ConversionError("damaged-file", f"{reader}: {text!r} is no number") from error
        if kind == "as_bool" and isinstance(value, bool):
            return value
        if kind == "as_string" and isinstance(value, str):
            return value
        if kind == "as_scalar_type":
            return _DTYPES.get(value, f"type {value}")
        if kind == "as_layout":
            return "strided" if value == _STRIDED else f"layout {value}"
        return f"{kind.removeprefix('as_')} {str(value)[:60]}"

    def _integer(self, value: Any, reader: str) -> Any:
        """An integer, the batch where it is its symbol, or another symbol."""
        if isinstance(value, dict) and "as_name" in value:
            value = _record(self.integers.get(self._name(value["as_name"])), reader)
            if "as_expr" in value:
                expression = str(_record(value["as_expr"], reader).get("expr_str"))
                return self.writer.batch if expression == self.batch_symbol else Symbol(expression[:80])
        return _int(value, reader)


def _shown(value: Any) -> str:
    return value.name if isinstance(value, Tensor) else repr(value)
