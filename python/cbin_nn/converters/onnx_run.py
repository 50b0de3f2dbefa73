r"""An ONNX file run node by node, by the rules of its own operator set: the framework's side of
`cbin_nn.verify`.

The ONNX project's own evaluator (`onnx.reference`, NumPy) computes each node, with the operators below in its
place, since there its answers are not those that the standard states for the file's operator set:

| operator | what `onnx.reference` does (1.16 to 1.23) |
|---|---|
| BatchNormalization | before set 14 it normalizes by the batch, though one output means inference |
| Softmax, LogSoftmax | before set 13 they work on one axis, not on all from `axis` on |
| MaxPool | `SAME_LOWER` is rounded and padded as `SAME_UPPER`; a loop over every pixel |
| PRelu | a slope that does not broadcast is matched to any axis of its size |
| Div | integers are divided as real numbers (before 1.19) |
| ReduceMean, ReduceSum | `noop_with_empty_axes` is passed over with an empty tensor of axes (before 1.19) |
| CastLike | fails with set 24's `round_mode` |
| Conv | right, and slow on many images |

`BipolarQuant` (QONNX, Brevitas) is `scale` where its input is not negative, else `-scale`. Files below
operator set 7 are refused: there broadcasting goes by attributes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ConversionError

__all__ = ["OLDEST_OPSET", "run_onnx"]

Array = npt.NDArray[Any]

#: The oldest operator set that is evaluated, and read: from it on broadcasting is NumPy's.
OLDEST_OPSET = 7

#: Images at a time where the file leaves the batch open.
_CHUNK = 64

#: Domains of BipolarQuant, as QONNX and older Brevitas write them.
QONNX_DOMAINS = ("qonnx.custom_op.general", "onnx.brevitas")

_STANDARD = ("", "ai.onnx")


def run_onnx(
    model: Any, images: npt.ArrayLike, wanted: Sequence[str] | None = None
) -> tuple[Array, dict[str, Array]]:
    """Run a model on a batch.

    A file with a fixed batch runs in pieces of that size; the last one is filled up with its last image, and
    what that adds is cut off.

    Args:
        model: path of an ONNX file (arrays in a second file lie beside it), or a `ModelProto`.
        images: `[N, ...]` in the source's own layout; taken as the type of the file's input.
        wanted: names of tensors to return; all if None. Names that nothing makes, and tensors without the
            batch as their first axis, are left out; tensors that do not depend on the images are returned as
            they are.

    Returns:
        The first output, `[N, ...]`, and the wanted tensors by name.

    Raises:
        ConversionError: the file can't be read, or holds what can't be evaluated: an operator set below 7, an
            operator that `onnx.reference` does not know, or one in training mode.
        MissingExtra: the `onnx` package is not installed.
    """
    from .onnx import _onnx

    onnx = _onnx()
    if isinstance(model, (str, os.PathLike)):
        try:
            model = onnx.load(os.fspath(Path(model)))
        except Exception as error:
            raise ConversionError("damaged-file", f"not a readable ONNX file ({_line(error)})") from error
    return _Run(onnx, model).batches(np.asarray(images), None if wanted is None else set(wanted))


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:160]


class _Run:
    def __init__(self, onnx: Any, model: Any) -> None:
        self.onnx, self.graph = onnx, model.graph
        self.opset = max((o.version for o in model.opset_import if o.domain in _STANDARD), default=1)
        if self.opset < OLDEST_OPSET:
            raise ConversionError(
                "unsupported-file",
                f"operator set {self.opset} is older than {OLDEST_OPSET}, the oldest that is evaluated; "
                "export the network again with opset_version=13 or newer",
            )
        self.imports = [self._opset(o.domain, o.version) for o in model.opset_import]
        self.ir_version = model.ir_version
        self.constants: dict[str, Array] = {}
        for initializer in self.graph.initializer:
            self.constants[initializer.name] = self._array(initializer)
        images = [value for value in self.graph.input if value.name not in self.constants]
        if len(images) != 1 or not self.graph.output:
            raise ConversionError(
                "unsupported-model", f"it has {len(images)} inputs and {len(self.graph.output)} outputs"
            )
        self.input = images[0].name
        tensor = images[0].type.tensor_type
        self.dtype = self._dtype(tensor.elem_type)
        self.batch = int(tensor.shape.dim[0].dim_value) if tensor.shape.dim else 0
        self.output = self.graph.output[0].name
        self.steps = self._steps()

    def _opset(self, domain: str, version: int) -> Any:
        return self.onnx.helper.make_opsetid(domain, version)

    def _array(self, tensor: Any) -> Array:
        try:
            array: Array = np.asarray(self.onnx.numpy_helper.to_array(tensor))
        except Exception as error:
            reason = f"{tensor.name!r} can't be read ({_line(error)})"
            raise ConversionError("damaged-file", reason) from error
        return array

    def _dtype(self, code: int) -> Any:
        try:
            return np.dtype(self.onnx.helper.tensor_dtype_to_np_dtype(code or self.onnx.TensorProto.FLOAT))
        except Exception as error:
            raise ConversionError("unsupported-model", f"an input of type {code}") from error

    # -- preparing

    def _steps(self) -> list[tuple[Any, Callable[[list[Array | None]], Sequence[Any]]]]:
        """The nodes that depend on the images; what does not is evaluated at once."""
        moving = {self.input}
        steps = []
        for node in self.graph.node:
            step = (node, self._evaluator(node))
            if not any(name in moving for name in node.input):
                self._evaluate(*step, self.constants)
                continue
            steps.append(step)
            moving.update(name for name in node.output if name)
        return steps

    def _evaluator(self, node: Any) -> Callable[[list[Array | None]], Sequence[Any]]:
        kind = self.onnx.AttributeProto
        if any(a.type in (kind.GRAPH, kind.GRAPHS) or a.ref_attr_name for a in node.attribute):
            raise self._refusal(node, "operators with a graph inside are not evaluated")
        if node.domain in QONNX_DOMAINS and node.op_type == "BipolarQuant":
            return _bipolar
        if node.domain not in _STANDARD:
            raise self._refusal(node, f"operators of the domain {node.domain!r} are not evaluated")
        own = _OWN.get(node.op_type)
        if own is not None:
            try:
                attributes = {a.name: self.onnx.helper.get_attribute_value(a) for a in node.attribute}
            except Exception as error:
                raise self._refusal(node, _line(error)) from error
            outputs = [name for name in node.output if name]
            return lambda x: (own(self.opset, attributes, x, len(outputs)),)
        return self._reference(node)

    def _refusal(self, node: Any, reason: str) -> ConversionError:
        name = node.name or (node.output[0] if node.output else "")
        return ConversionError("unsupported-layer", f"layer {name!r}: {node.op_type}: {reason}")

    def _reference(self, node: Any) -> Callable[[list[Array | None]], Sequence[Any]]:
        """One node as a model of its own, for `onnx.reference`."""
        from onnx.reference import ReferenceEvaluator

        inputs = list(dict.fromkeys(name for name in node.input if name))
        outputs = [name for name in node.output if name]
        empty = self.onnx.helper.make_empty_tensor_value_info
        graph = self.onnx.helper.make_graph(
            [node], "node", [empty(name) for name in inputs], [empty(name) for name in outputs]
        )
        model = self.onnx.helper.make_model(graph, opset_imports=self.imports, ir_version=self.ir_version)
        try:
            evaluator = ReferenceEvaluator(model)
        except Exception as error:
            raise self._refusal(node, _line(error)) from error

        def run(values: list[Array | None]) -> Sequence[Any]:
            found = dict(zip(node.input, values, strict=True))
            made: Any = evaluator.run(outputs, {name: found[name] for name in inputs})
            return list(made)

        return run

    # -- running

    def _evaluate(
        self, node: Any, step: Callable[[list[Array | None]], Sequence[Any]], values: dict[str, Array]
    ) -> None:
        missing = [name for name in node.input if name and name not in values]
        if missing:
            raise self._refusal(node, f"it reads {missing[0]!r}, which nothing makes")
        try:
            with np.errstate(all="ignore"):
                made = step([values[name] if name else None for name in node.input])
        except ConversionError:
            raise
        except Exception as error:
            raise self._refusal(node, _line(error)) from error
        for name, value in zip([name for name in node.output if name], made, strict=False):
            values[name] = np.asarray(value)

    def batches(self, images: Array, wanted: set[str] | None) -> tuple[Array, dict[str, Array]]:
        size = self.batch or _CHUNK
        try:
            return self._batches(images, wanted, size)
        except ConversionError:
            if self.batch or size == 1:
                raise
        # The batch is open by name alone: shapes inside are those of one image.
        return self._batches(images, wanted, 1)

    def _batches(self, images: Array, wanted: set[str] | None, size: int) -> tuple[Array, dict[str, Array]]:
        outputs: list[Array] = []
        seen: dict[str, list[Array]] = {}
        for begin in range(0, len(images), size):
            part = images[begin : begin + size]
            count = len(part)
            if self.batch and count < size:
                part = np.concatenate([part, np.repeat(part[-1:], size - count, axis=0)])
            values = self._one(part)
            result = values.get(self.output, self.constants.get(self.output))
            if result is None or not result.ndim or len(result) != len(part):
                shape = None if result is None else list(result.shape)
                raise ConversionError(
                    "unsupported-model",
                    f"the output {self.output!r} of shape {shape} has no row for each of {len(part)} images",
                )
            outputs.append(result[:count])
            for name, value in values.items():
                if (wanted is None or name in wanted) and value.ndim and len(value) == len(part):
                    seen.setdefault(name, []).append(value[:count])
        if not outputs:
            raise ConversionError("unsupported-model", "there are no images to run")
        pieces = len(outputs)
        fixed = {name: a for name, a in self.constants.items() if wanted is None or name in wanted}
        return np.concatenate(outputs), {
            **fixed,
            **{name: np.concatenate(parts) for name, parts in seen.items() if len(parts) == pieces},
        }

    def _one(self, images: Array) -> dict[str, Array]:
        """The tensors that depend on the images."""
        moving = {self.input: images.astype(self.dtype)}
        values = {**self.constants, **moving}
        for node, step in self.steps:
            self._evaluate(node, step, values)
        return {name: value for name, value in values.items() if name not in self.constants}


# ------------------------------------------------------------------------------------------------
# operators by the rules of their version: (operator set, attributes, inputs, outputs that are named)


def _bipolar(x: list[Array | None]) -> Sequence[Array]:
    data, scale = (_given(value) for value in x)
    return (np.where(data >= 0, scale, -scale).astype(data.dtype),)


def _given(value: Array | None) -> Array:
    if value is None:
        raise ValueError("an input is absent")
    return value


def _batch_norm(opset: int, a: dict[str, Any], x: list[Array | None], outputs: int) -> Array:
    if a.get("training_mode", 0) if opset >= 14 else outputs > 1:
        raise ConversionError("unsupported-layer", "BatchNormalization in training mode depends on the batch")
    data, scale, bias, mean, variance = (_given(value) for value in x)
    if opset < 9 and not a.get("spatial", 1):
        shape = (1, *data.shape[1:])
    else:
        shape = (1, -1, *(1,) * (data.ndim - 2))
    scale, bias, mean, variance = (value.reshape(shape) for value in (scale, bias, mean, variance))
    epsilon = data.dtype.type(a.get("epsilon", 1e-5))
    return np.asarray(scale * (data - mean) / np.sqrt(variance + epsilon) + bias).astype(data.dtype)


def _softmax(opset: int, a: dict[str, Any], x: list[Array | None], outputs: int) -> Array:
    return np.asarray(np.exp(_log_softmax(opset, a, x, outputs)))


def _log_softmax(opset: int, a: dict[str, Any], x: list[Array | None], outputs: int) -> Array:
    data = _given(x[0])
    axis = int(a.get("axis", -1 if opset >= 13 else 1))
    axes = (axis,) if opset >= 13 else tuple(range(axis % data.ndim if axis < 0 else axis, data.ndim))
    shifted = data - data.max(axis=axes, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=axes, keepdims=True)))


def _prelu(opset: int, a: dict[str, Any], x: list[Array | None], outputs: int) -> Array:
    data, slope = (_given(value) for value in x)
    return np.where(data < 0, data * np.broadcast_to(slope, data.shape), data).astype(data.dtype)


def _div(opset: int, a: dict[str, Any], x: list[Array | None], outputs: int) -> Array:
    above, below = (_given(value) for value in x)
    if above.dtype.kind in "iu":
        if not below.all():
            raise ValueError("integers divided by zero")
        quotient = above // below
        rest = above - quotient * below
        return np.asarray(quotient + ((rest != 0) & ((above < 0) != (below < 0))).astype(quotient.dtype))
    return np.asarray(np.divide(above, below)).astype(above.dtype)


def _cast_like(opset: int, a: dict[str, Any], x: list[Array | None], outputs: int) -> Array:
    data, like = (_given(value) for value in x)
    if like.dtype.kind not in "fiub" or data.dtype.kind not in "fiub":
        raise ValueError(f"a cast from {data.dtype} to {like.dtype}")
    return data.astype(like.dtype)


def _reduced(function: Callable[..., Any]) -> Callable[[int, dict[str, Any], list[Array | None], int], Array]:
    """A mean or a sum over axes that are an attribute or, in later sets, the second input."""

    def run(opset: int, a: dict[str, Any], x: list[Array | None], outputs: int) -> Array:
        data, given = _given(x[0]), x[1] if len(x) > 1 else None
        axes = tuple(int(axis) for axis in (a.get("axes", ()) if given is None else given.reshape(-1)))
        if not axes and a.get("noop_with_empty_axes", 0):
            return data
        made = function(data, axis=axes or None, keepdims=bool(a.get("keepdims", 1)))
        return np.asarray(made).astype(data.dtype)

    return run


def _window(
    a: dict[str, Any], data: Array, kernel: Sequence[int]
) -> tuple[list[int], list[int], list[int], list[int], list[int]]:
    """(strides, dilations, padding before, padding after, outputs) of each spatial axis."""
    rank = len(kernel)
    strides = list(a.get("strides", (1,) * rank))
    dilations = list(a.get("dilations", (1,) * rank))
    auto = a.get("auto_pad", b"NOTSET")
    auto = auto.decode() if isinstance(auto, bytes) else auto
    pads = list(a.get("pads", (0,) * (2 * rank))) if auto == "NOTSET" else [0] * (2 * rank)
    before, after, counts = pads[:rank], pads[rank:], []
    for i in range(rank):
        side, span = data.shape[2 + i], (kernel[i] - 1) * dilations[i] + 1
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            count = -(-side // strides[i])
            total = max(0, (count - 1) * strides[i] + span - side)
            before[i] = total // 2 if auto == "SAME_UPPER" else total - total // 2
            after[i] = total - before[i]
        elif auto not in ("NOTSET", "VALID"):
            raise ValueError(f"auto_pad={auto!r}")
        else:
            room = side + before[i] + after[i] - span
            count = room // strides[i] + 1
            if a.get("ceil_mode", 0):
                count = -(-room // strides[i]) + 1
                if (count - 1) * strides[i] >= side + before[i]:
                    count -= 1  # a window that begins in the padding below is none
                after[i] = max(after[i], (count - 1) * strides[i] + span - side - before[i])
        counts.append(count)
    return strides, dilations, before, after, counts


def _taps(data: Array, a: dict[str, Any], kernel: Sequence[int], fill: float) -> tuple[Array, list[int]]:
    """The data filled up to whole windows; and a view by tap: `[N, C, outputs..., kernel...]`."""
    if data.ndim != 2 + len(kernel):
        raise ValueError(f"a kernel of shape {list(kernel)} on data of shape {list(data.shape)}")
    strides, dilations, before, after, counts = _window(a, data, kernel)
    padded = np.pad(data, [(0, 0), (0, 0), *zip(before, after, strict=True)], constant_values=fill)
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    views = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=tuple(range(2, data.ndim)))
    steps = [slice(0, (c - 1) * s + 1, s) for c, s in zip(counts, strides, strict=True)]
    within = [slice(None, None, d) for d in dilations]
    return views[tuple([slice(None)] * 2 + steps + within)], counts


def _max_pool(opset: int, a: dict[str, Any], x: list[Array | None], outputs: int) -> Array:
    data = _given(x[0])
    kernel = list(a["kernel_shape"])
    lowest = -np.inf if data.dtype.kind == "f" else np.iinfo(data.dtype).min
    taps, _ = _taps(data, a, kernel, lowest)
    return np.asarray(taps.max(axis=tuple(range(-len(kernel), 0))))


def _conv(opset: int, a: dict[str, Any], x: list[Array | None], outputs: int) -> Array:
    data, weight = _given(x[0]), _given(x[1])
    bias = x[2] if len(x) > 2 else None
    kernel = list(weight.shape[2:])
    if list(a.get("kernel_shape", kernel)) != kernel:
        raise ValueError(f"kernel_shape {a['kernel_shape']} beside weights of shape {list(weight.shape)}")
    groups = int(a.get("group", 1))
    if groups < 1 or data.shape[1] != groups * weight.shape[1] or weight.shape[0] % groups:
        raise ValueError(f"{groups} groups, {data.shape[1]} channels and weights {list(weight.shape)}")
    taps, counts = _taps(data, a, kernel, 0)
    rank, count = len(kernel), len(data)
    rows = weight.reshape(groups, weight.shape[0] // groups, -1)
    # [N, C, outputs, kernel] -> [N, groups, outputs, C/groups * kernel]
    taps = np.moveaxis(taps.reshape(count, groups, -1, *counts, *kernel), 2, 2 + rank)
    flat = np.ascontiguousarray(taps).reshape(count, groups, int(np.prod(counts)), -1)
    sums = np.matmul(flat, rows.transpose(0, 2, 1)[None])  # [N, groups, outputs, O/groups]
    y = sums.transpose(0, 1, 3, 2).reshape(count, weight.shape[0], *counts)
    if bias is not None:
        y = y + bias.reshape(1, -1, *(1,) * rank)
    return np.asarray(y).astype(data.dtype)


_OWN: dict[str, Callable[[int, dict[str, Any], list[Array | None], int], Array]] = {
    "BatchNormalization": _batch_norm,
    "CastLike": _cast_like,
    "Conv": _conv,
    "Div": _div,
    "LogSoftmax": _log_softmax,
    "MaxPool": _max_pool,
    "PRelu": _prelu,
    "ReduceMean": _reduced(np.mean),
    "ReduceSum": _reduced(np.sum),
    "Softmax": _softmax,
}
