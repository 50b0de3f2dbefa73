r"""A source run by its own framework, with the tensors that the graph has too: the other side of
`cbin_nn.verify`.

| source | run by | a tensor is found by |
|---|---|---|
| `.pt2`, live torch module | torch, node by node of the exported program | the node's name |
| ONNX, QONNX | `onnx_run`, the ONNX project's evaluator in NumPy | its name |
| Keras file, SavedModel, live Keras model | Keras and Larq, eagerly | the *call* that makes it |

A Keras layer may be called several times, also in models inside models. So every call is recorded while the
model runs, with the tensors that it takes and makes, and a call of the graph (`graph.Call`) is the one with
its name that takes the same tensors.

To load a `.pt2` or Keras file into its framework is to trust it as that framework does; `convert` itself
never does. A live model is as it was before: nothing stays patched, no flag and no random state of torch is
changed.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import MissingExtra
from . import graph as g

__all__ = ["Framework", "FrameworkRun", "open_framework", "run_framework"]

Array = npt.NDArray[Any]
Images = npt.NDArray[np.uint8] | npt.NDArray[np.float32]

#: What rounding to a type of 16 bits explains, relative to the terms of a sum: 16 units in the last place.
_HALF = {"float16": 2.0**-7, "bfloat16": 2.0**-4}

#: Images that a framework takes at once where the source leaves the batch open.
_BATCH = 64


@dataclass
class FrameworkRun:
    """What a framework computed on a batch."""

    framework: str
    #: As the framework gave them, (N, ...).
    outputs: Array
    #: Tensor of the graph -> its values there, float64, in the graph's layout; the output is among them.
    values: dict[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    #: Those that the framework rounds to 16 bits, and what that explains, relative to the terms of a sum.
    rounding: dict[str, float] = field(default_factory=dict)


class Framework:
    """A source that its framework is ready to run."""

    #: "torch", "tensorflow", "keras" with another backend, "onnx.reference".
    name = ""

    def __init__(self, graph: g.Graph) -> None:
        self.graph = graph
        #: Tensors of the source that the graph has too.
        self.wanted = {origin.key for origin in graph.origins.values()}
        #: The type of those whose values are handed on in a wider one.
        self.types: dict[str, str] = {}

    def run(self, images: Images) -> FrameworkRun:
        """Run on images `[N, H, W, C]`, fed as they are (u8 as 0..255), N at least 1."""
        graph = self.graph
        outputs, seen = self._run(self._source_layout(images))
        run = FrameworkRun(self.name, outputs)
        flat = g.Origin("", "NF")
        found = {name: (origin, seen.get(origin.key)) for name, origin in graph.origins.items()}
        for name, (origin, value) in {**found, graph.output: (flat, outputs)}.items():
            if value is None or not value.ndim or len(value) != len(images):
                continue
            shape = graph.shapes[name]
            copies = 2 if origin.twice else 1
            # A tensor of another shape than was read can't be compared; what follows it is.
            fits = origin.axes in ("", "NF") or value.ndim == len(origin.axes)
            if not fits or value[0].size * copies != np.prod(shape):
                continue
            run.values[name] = origin.in_graph(value).reshape(len(images), *shape)
            type_ = self.types.get(origin.key, value.dtype.name)
            if type_ in _HALF:
                run.rounding[name] = _HALF[type_]
        return run

    def _run(self, batch: Array) -> tuple[Array, dict[str, Array]]:
        """The outputs and the wanted tensors for a float32 batch in the source's layout."""
        raise NotImplementedError

    def _source_layout(self, images: Images) -> Array:
        first = self.graph.nodes[0]
        origin = self.graph.origins.get(first.name)
        axes = origin.axes if origin is not None and origin.axes else "NHWC"
        batch = images.astype(np.float32)
        if axes == "NF":
            return batch.reshape(len(batch), -1)
        return np.ascontiguousarray(batch.transpose(["NHWC".index(axis) for axis in axes]))


def open_framework(source: Any, graph: g.Graph, input_shape: Any = None) -> Framework:
    """Make a source's framework ready to run it.

    Args:
        source: as `cbin_nn.convert` takes it.
        graph: what was read from it, with `origins`.
        input_shape: as for `convert`.

    Raises:
        MissingExtra: the framework is not installed, or the source has none (a description).
        Exception: whatever the framework raises on a source that it can't load.
    """
    if isinstance(source, (str, os.PathLike)):
        path = Path(os.fsdecode(source))
        if path.is_dir():
            return _Keras(path, graph)
        with path.open("rb") as file:
            magic = file.read(8)
        zipped = magic[:4] == b"PK\x03\x04"
        if zipped and _is_program(path):
            return _Torch(path, graph, None)
        if zipped or magic == b"\x89HDF\r\n\x1a\n":
            return _Keras(path, graph)
        return _Onnx(path, graph)
    modules = {base.__module__.split(".")[0] for base in type(source).__mro__}
    if "torch" in modules and not modules & {"keras", "tf_keras"}:
        return _Torch(source, graph, input_shape)
    if modules & {"keras", "tf_keras", "tensorflow"}:
        return _Keras(source, graph)
    raise MissingExtra("no-framework", f"{type(source).__name__} is no model of a framework")


def run_framework(source: Any, graph: g.Graph, images: Images, input_shape: Any = None) -> FrameworkRun:
    """`open_framework(source, graph, input_shape).run(images)`."""
    return open_framework(source, graph, input_shape).run(images)


def _is_program(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return "config.json" not in archive.namelist()


def _need(package: str, extra: str) -> Any:
    if importlib.util.find_spec(package) is None:
        raise MissingExtra("no-framework", f"{package} is not installed ({extra})")
    return importlib.import_module(package)


# ------------------------------------------------------------------------------------------------
# torch


class _Torch(Framework):
    name = "torch"

    def __init__(self, source: Any, graph: g.Graph, input_shape: Any) -> None:
        super().__init__(graph)
        torch = _need("torch", "pip install 'cbin-nn[torch]'")
        from .torch_export import export_module

        program = (
            torch.export.load(os.fspath(source))
            if isinstance(source, Path)
            else export_module(source, input_shape)
        )
        self.torch, self.module = torch, program.module()
        self.size, self.device, self.dtype = self._input(program)
        self.runs = 0

    @staticmethod
    def _input(program: Any) -> tuple[int | None, Any, Any]:
        """The batch that a program was exported for (None where it takes any), and its input's kind."""
        for node in program.graph.nodes:
            if node.op == "placeholder" and node.name in program.graph_signature.user_inputs:
                value = node.meta["val"]
                size = value.shape[0] if value.ndim else None
                return size if isinstance(size, int) else None, value.device, value.dtype
        return None, None, None

    def _run(self, batch: Array) -> tuple[Array, dict[str, Array]]:
        torch, wanted = self.torch, self.wanted
        seen: dict[str, list[Array]] = {}

        def array(value: Any, name: str = "") -> Array:
            # A copy: an operation in place may change the tensor later.
            self.types[name] = str(value.dtype).removeprefix("torch.")
            wide = torch.float64 if value.dtype == torch.float64 else torch.float32
            return np.array(value.detach().to("cpu", wide).numpy())

        class Watch(torch.fx.Interpreter):  # type: ignore[misc, name-defined]
            def run_node(self, n: Any) -> Any:
                value = super().run_node(n)
                if n.name in wanted and isinstance(value, torch.Tensor):
                    seen.setdefault(n.name, []).append(array(value, n.name))
                return value

        watch, outputs = Watch(self.module), []
        step = self.size or _BATCH
        self.runs += 1
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.runs)  # what depends on chance shall differ from run to run
            for begin in range(0, len(batch), step):
                part = batch[begin : begin + step]
                if self.size and len(part) < step:  # filled up with the last image, and cut off below
                    part = np.concatenate([part, np.repeat(part[-1:], step - len(part), axis=0)])
                given = torch.from_numpy(part).to(device=self.device, dtype=self.dtype)
                outputs.append(array(_only(watch.run(given))))
        count = len(batch)
        return np.concatenate(outputs)[:count], {k: np.concatenate(v)[:count] for k, v in seen.items()}


def _only(value: Any) -> Any:
    """The one tensor of an output, which may stand in a tuple or a dict."""
    while isinstance(value, (list, tuple, dict)) and len(value) == 1:
        value = next(iter(value.values() if isinstance(value, dict) else value))
    return value


# ------------------------------------------------------------------------------------------------
# ONNX


class _Onnx(Framework):
    name = "onnx.reference"

    def __init__(self, path: Path, graph: g.Graph) -> None:
        super().__init__(graph)
        onnx = _need("onnx", "pip install 'cbin-nn[onnx]'")
        self.model = onnx.load(os.fspath(path))

    def _run(self, batch: Array) -> tuple[Array, dict[str, Array]]:
        from .onnx_run import run_onnx

        return run_onnx(self.model, batch, sorted(self.wanted))


# ------------------------------------------------------------------------------------------------
# Keras


@dataclass
class _Recorded:
    """A call that Keras made: of a layer, on tensors."""

    layer: Any
    inside: tuple[str, ...]
    inputs: list[Any]
    output: Any


class _Keras(Framework):
    name = "tensorflow"

    def __init__(self, source: Any, graph: g.Graph) -> None:
        super().__init__(graph)
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        if isinstance(source, Path):
            self.model = _keras().models.load_model(os.fspath(source), compile=False)
        else:
            self.model = source
        backend = _backend(self.model)
        self.name = "tensorflow" if backend == "tensorflow" else f"keras ({backend})"
        self.called = _caller(type(self.model))

    def _run(self, batch: Array) -> tuple[Array, dict[str, Array]]:
        outputs: list[Array] = []
        seen: dict[str, list[Array]] = {}
        for begin in range(0, len(batch), _BATCH):
            image = _tensor(self.model, self._shaped(batch[begin : begin + _BATCH]))
            with _recording(self.called, self.model) as calls:
                result = self.model(image, training=False)
            outputs.append(_array(_only(result)))
            for key, value in self._values(calls, image).items():
                seen.setdefault(key, []).append(value)
        return np.concatenate(outputs), {key: np.concatenate(parts) for key, parts in seen.items()}

    def _shaped(self, batch: Array) -> Array:
        """The batch in the shape of the model's own input, which may be flat or have no channels."""
        shape = tuple(self.model.inputs[0].shape)[1:]
        fixed = all(isinstance(side, int) for side in shape) and np.prod(shape) == batch[0].size
        return batch.reshape(len(batch), *shape) if fixed else batch

    def _values(self, calls: list[_Recorded], image: Any) -> dict[str, Array]:
        """The wanted tensors of one batch."""
        matched = _match(self.graph.calls, calls, image)
        found = {}
        for key in self.wanted:
            number, _, part = key.partition("/")
            if key == "image":
                found[key] = _array(image)
                continue
            call = matched[int(number)] if number.isdigit() else None
            if call is None:
                continue
            if not part:
                found[key] = _array(call.output)
            elif getattr(call.layer, part, None) is not None and len(call.inputs) == 1:
                # The layer's own quantizer, on the tensor that the layer took.
                found[key] = _array(getattr(call.layer, part)(call.inputs[0]))
        return found


def _keras() -> Any:
    """TensorFlow's Keras, with Larq's layers where that is installed, or Keras on another backend."""
    if importlib.util.find_spec("tensorflow") is None and importlib.util.find_spec("keras") is not None:
        return importlib.import_module("keras")
    keras = _need("tensorflow", "pip install larq tensorflow-cpu").keras
    if importlib.util.find_spec("larq") is not None:
        with contextlib.suppress(ImportError, AttributeError):  # under Keras 3; its layers are then unknown
            importlib.import_module("larq")  # registers its layers
    return keras


def _match(calls: Sequence[g.Call], recorded: list[_Recorded], image: Any) -> list[_Recorded | None]:
    """The recorded call of each of the graph's; None where it can't be told."""
    makes: dict[int, Any] = {id(call.output): call.output for call in recorded}
    by_name: dict[tuple[tuple[str, ...], str], list[_Recorded]] = {}
    for call in recorded:
        by_name.setdefault((call.inside, call.layer.name), []).append(call)
    found: list[_Recorded | None] = []
    for wanted in calls:
        named = by_name.get((wanted.inside, wanted.layer), [])
        if wanted.inputs:
            before = [found[i] for i in wanted.inputs]
            taken = [None if call is None else id(call.output) for call in before]
            same = [call for call in named if [id(value) for value in call.inputs] == taken]
        else:
            if not named:  # an InputLayer, which is never called
                found.append(_Recorded(None, (), [], image))
                continue
            same = [call for call in named if not any(id(value) in makes for value in call.inputs)]
        # A layer that was called once is known by its name, also where Keras copied its input.
        found.append(same[0] if same else named[0] if len(named) == 1 else None)
    return found


@contextlib.contextmanager
def _recording(called: type, root: Any) -> Iterator[list[_Recorded]]:
    """Records every call of a layer inside of the model `root`; Keras is as it was afterwards."""
    calls: list[_Recorded] = []
    original = called.__call__
    models = tuple(base for base in type(root).__mro__ if base.__name__ == "Model")
    #: The layers that are being called, outermost first.
    path: list[Any] = []

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        path.append(self)
        try:
            result = original(self, *args, **kwargs)
        finally:
            path.pop()
        # Of the layers of models alone: not the quantizer that a layer calls.
        if path and not isinstance(self, models) and all(isinstance(each, models) for each in path):
            inside = tuple(each.name for each in path[1:])
            calls.append(_Recorded(self, inside, _tensors(args), result))
        return result

    called.__call__ = call  # type: ignore[method-assign]
    try:
        yield calls
    finally:
        called.__call__ = original  # type: ignore[method-assign]


def _caller(model: type) -> type:
    """The class of Keras through whose `__call__` every layer of this kind is called."""
    for base in reversed(model.__mro__):
        if "__call__" in vars(base) and base.__module__.split(".")[0] in ("keras", "tf_keras"):
            return base
    raise MissingExtra("no-framework", f"{model.__name__} is no Keras model that can be watched")


def _backend(model: Any) -> str:
    package = next(
        base.__module__.split(".")[0]
        for base in type(model).__mro__
        if base.__module__.split(".")[0] in ("keras", "tf_keras", "tensorflow")
    )
    keras = sys.modules.get(package)
    backend = getattr(getattr(keras, "config", None), "backend", None)
    return str(backend()) if callable(backend) else "tensorflow"


def _tensor(model: Any, batch: Array) -> Any:
    """The batch as the backend's tensor, so that the model takes it as it is."""
    if _backend(model) == "tensorflow":
        return importlib.import_module("tensorflow").convert_to_tensor(batch)
    return importlib.import_module("keras").ops.convert_to_tensor(batch)


def _tensors(value: Any) -> list[Any]:
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in _tensors(item)]
    return [value] if hasattr(value, "shape") else []


def _array(value: Any) -> Array:
    value = _only(value)
    return np.array(value.detach().cpu().numpy() if hasattr(value, "detach") else value)
