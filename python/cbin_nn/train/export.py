r"""From trained modules to a `.cbn` model, directly: no tracing, every parameter taken as it is.

`to_graph` walks a network's modules in the order in which they run and maps each to a node of
`cbin_nn.converters.graph`; `convert` lowers that graph, exactly. A network is a chain of the modules of
`cbin_nn.train.layers`, `torch.nn` modules with a meaning on a board (BatchNorm, PReLU, max-pool, Flatten),
`Sequential`s, and this package's classes whose children run in the order of their definition. A class that
overrides the `forward` of one of these, and a module with hooks, is refused: its parameters would not say
what it computes. Other networks go through `cbin_nn.convert`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ..converters import ConversionReport, lower
from ..converters import graph as g
from ..errors import ConversionError
from ..model import Model, assemble
from ..operators import LoweredModel, Window
from .estimators import Sign
from .layers import BinaryConv2d, BinaryDepthwiseConv2d, BinaryLinear, QuantizedConv2d, RPReLU, RSign, Shift
from .models import BinaryBlock, Flatten, SmallCifar

__all__ = ["convert", "convert_parameters", "load_parameters", "save_parameters", "to_graph"]

#: Modules whose children run in the order of their definition.
_CHAINS = (nn.Sequential, BinaryBlock, SmallCifar, RSign, RPReLU)


def _is(module: nn.Module, *classes: type[nn.Module]) -> bool:
    """Whether a module runs the `forward` of one of these classes, and nothing beside it."""
    return any(isinstance(module, cls) and type(module).forward is cls.forward for cls in classes)


def _leaves(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules in the order in which they run; one that runs twice comes twice."""
    label = name or type(module).__name__.lower()
    if module._forward_hooks or module._forward_pre_hooks:
        raise _refuse(label, f"a {type(module).__name__} with forward hooks", "remove its hooks")
    if not _is(module, *_CHAINS):
        yield label, module
        return
    for child_name, child in module._modules.items():  # `named_children` leaves repeated modules out
        if child is not None:
            yield from _leaves(f"{name}.{child_name}" if name else child_name, child)


def _array(tensor: torch.Tensor | None, like: int = 0, value: float = 0.0) -> npt.NDArray[np.float32]:
    if tensor is None:
        return np.full(like, value, np.float32)
    return np.ascontiguousarray(tensor.detach().cpu().float().numpy())


def to_graph(
    model: nn.Module, input_shape: tuple[int, int, int] | None = None, name: str = "model"
) -> g.Graph:
    """The network as a framework-free graph of its evaluation mode.

    Args:
        model: a chain of modules, see above.
        input_shape: (height, width, channels) of the images; default: the model's `input_shape`.
        name: of the graph.

    Raises:
        ConversionError: a module has no counterpart, or the shapes don't fit; names the module.
    """
    shape = tuple(input_shape if input_shape is not None else getattr(model, "input_shape", ()))
    if len(shape) != 3:
        raise ConversionError("bad-argument", f"input_shape: expected (height, width, channels), got {shape}")
    reader = _Reader(name, shape)
    for layer, module in _leaves("", model):
        reader.add(layer, module)
    return g.Graph(name, reader.nodes, reader.nodes[-1].name, framework="torch")


class _Reader:
    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.nodes: list[g.Node] = [g.Input("input", "input", (), shape)]
        #: (height, width, channels) that was flattened in torch's order, CHW, and not yet read by a dense
        #: layer.
        self.flattened: tuple[int, ...] | None = None

    def _push(self, node: g.Node) -> None:
        self.shape = node.output_shape((self.shape,))
        self.nodes.append(node)

    def add(self, layer: str, module: nn.Module) -> None:
        head: tuple[str, str, tuple[str, ...]] = (self._unique(layer), layer, (self.nodes[-1].name,))
        if _is(module, BinaryConv2d, BinaryDepthwiseConv2d, BinaryLinear):
            self._binary(head, cast(Any, module))
        elif isinstance(module, Shift) and _is(module, Shift):
            self._push(g.Bias(*head, self._features(_array(module.bias))))
        elif isinstance(module, nn.PReLU) and _is(module, nn.PReLU):
            slope = np.broadcast_to(_array(module.weight), self.shape[-1:]).copy()
            self._push(g.PReLU(*head, self._features(slope)))
        elif isinstance(module, (nn.BatchNorm2d, nn.BatchNorm1d)) and _is(
            module, nn.BatchNorm2d, nn.BatchNorm1d
        ):
            self._batch_norm(head, module)
        elif isinstance(module, nn.MaxPool2d) and _is(module, nn.MaxPool2d):
            self._pool(head, module)
        elif _is(module, Sign):
            self._push(g.Sign(*head))
        elif _is(module, Flatten):
            self._flatten(head)
        elif isinstance(module, nn.Flatten) and _is(module, nn.Flatten):
            if module.start_dim != 1 or module.end_dim not in (-1, len(self.shape)):
                ends = f"start_dim={module.start_dim}, end_dim={module.end_dim}"
                raise _refuse(layer, f"a Flatten with {ends}", "flatten from axis 1 to the last one")
            self._flatten(head)
        elif _is(module, nn.Identity, nn.Dropout, nn.Dropout2d):
            self._push(g.Identity(*head))
        else:
            remedy = "use the modules of cbin_nn.train, or cbin_nn.convert(module, input_shape=...)"
            raise _refuse(layer, f"a {type(module).__name__}", remedy)

    def _unique(self, name: str) -> str:
        """A tensor's name; a module that runs again gives another tensor."""
        taken = {node.name for node in self.nodes}
        unique, count = name, 1
        while unique in taken:
            count += 1
            unique = f"{name}_{count}"
        return unique

    def _features(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Values of each feature (last axis) of a flattened plane, from torch's order, CHW, to HWC."""
        if self.flattened is None or values.shape[-1] != math.prod(self.flattened):
            return values
        height, width, channels = self.flattened
        planes = values.reshape(*values.shape[:-1], channels, height, width)
        return np.ascontiguousarray(np.moveaxis(planes, -3, -1)).reshape(values.shape)

    def _flatten(self, head: tuple[str, str, tuple[str, ...]]) -> None:
        if len(self.shape) == 3:
            self.flattened = self.shape
        self._push(g.Flatten(*head))

    def _binary(
        self,
        head: tuple[str, str, tuple[str, ...]],
        module: BinaryConv2d | BinaryDepthwiseConv2d | BinaryLinear,
    ) -> None:
        if not module.binarize:
            raise _refuse(head[1], "a layer with binarize off", "switch it on: set_binarize(model, True)")
        if not bool(torch.isfinite(module.weight).all()):
            raise ConversionError(
                "not-finite", "its weights hold NaN or infinite values; use another checkpoint", layer=head[1]
            )
        factor = module.filter_scale()
        scale = None if factor is None else _array(factor)
        if isinstance(module, QuantizedConv2d):
            kernel = module.integer_weight().cpu().float().numpy()
            step = np.float32(1 / module.STEPS)  # a power of two: exact
            scale = np.full(len(kernel), step) if scale is None else scale * step
        else:
            kernel = np.where(_array(module.weight) >= 0, np.float32(1), np.float32(-1))
        binary = not isinstance(module, QuantizedConv2d)
        if isinstance(module, (BinaryConv2d, BinaryDepthwiseConv2d)):
            top, left = module.padding
            window = Window(module.kernel_size, module.stride, module.dilation, (top, left, top, left))
            kernel = np.ascontiguousarray(kernel.transpose(2, 3, 1, 0))
            depthwise = isinstance(module, BinaryDepthwiseConv2d)
            self._push(g.Conv2D(*head, kernel, window, binary, scale, depthwise=depthwise))
            return
        kernel = self._features(kernel)
        self.flattened = None
        self._push(g.Dense(*head, np.ascontiguousarray(kernel.T), binary, scale))

    def _batch_norm(
        self, head: tuple[str, str, tuple[str, ...]], module: nn.BatchNorm1d | nn.BatchNorm2d
    ) -> None:
        if module.running_mean is None or module.running_var is None:
            raise _refuse(head[1], "a BatchNorm without running statistics", "use track_running_stats=True")
        count = module.num_features
        self._push(
            g.BatchNorm(
                *head,
                self._features(_array(module.weight, count, 1.0)),
                self._features(_array(module.bias, count, 0.0)),
                self._features(_array(module.running_mean)),
                self._features(_array(module.running_var)),
                float(module.eps),
            )
        )

    def _pool(self, head: tuple[str, str, tuple[str, ...]], module: nn.MaxPool2d) -> None:
        if module.ceil_mode or module.return_indices:
            raise _refuse(head[1], "a max-pool with ceil_mode or return_indices", "leave these options out")
        stride = module.stride if module.stride is not None else module.kernel_size
        top, left = _pair(module.padding)
        window = Window(
            _pair(module.kernel_size), _pair(stride), _pair(module.dilation), (top, left, top, left)
        )
        self._push(g.MaxPool2D(*head, window))


def _pair(value: Any) -> tuple[int, int]:
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _refuse(layer: str, what: str, remedy: str) -> ConversionError:
    return ConversionError("unsupported-layer", f"{what} has no counterpart here", layer=layer, advice=remedy)


def convert(
    model: nn.Module,
    input_shape: tuple[int, int, int] | None = None,
    *,
    name: str = "model",
    output: str = "i32",
    input_scale: float = 2.0,
    input_offset: float = -255.0,
    fuse: bool = True,
) -> Model:
    """Convert a trained network to integer operators, exactly.

    Args:
        model: see `to_graph`.
        input_shape: (height, width, channels) of the images; default: the model's `input_shape`.
        name: of the model.
        output: type of the last layer's output, see `cbin_nn.convert`.
        input_scale: the network was trained on `input_scale * q + input_offset` of a u8 pixel q.
        input_offset: see `input_scale`; the defaults are those of `cbin_nn.train.data.as_input`.
        fuse: False keeps convolutions and max-pools apart wherever stored bits can be pooled.

    Raises:
        ConversionError: a module can't be converted; names it and says what to do.
    """
    lowered: LoweredModel
    report: ConversionReport
    lowered, report = lower(
        to_graph(model, input_shape, name),
        output=output,
        input_scale=input_scale,
        input_offset=input_offset,
        fuse=fuse,
    )
    return assemble(lowered, report)


def load_parameters(path: Path, recipe: dict[str, Any]) -> nn.Module:
    """A network with the parameters of a `.npz` file, in evaluation mode.

    Args:
        path: what `save_parameters` wrote.
        recipe: fields of the `Recipe` that the network belongs to.
    """
    from .recipe import Recipe
    from .trainer import build_model

    model = build_model(Recipe().replace(**recipe))
    with np.load(path, allow_pickle=False) as arrays:
        model.load_state_dict({name: torch.from_numpy(arrays[name]) for name in arrays.files})
    return model.eval()


def save_parameters(path: Path, model: nn.Module) -> None:
    """Write a network's state dict as a compressed `.npz`, latent weights as they are.

    Args:
        path: file to write.
        model: the network.
    """
    np.savez_compressed(path, **{name: value.cpu().numpy() for name, value in model.state_dict().items()})


def convert_parameters(
    path: Path, recipe: dict[str, Any], *, name: str, output: str, fuse: bool = True
) -> Model:
    """`convert` of `load_parameters`.

    Args:
        path: as for `load_parameters`; `recipe` too.
        name: as for `convert`; `output` and `fuse` too.
    """
    return convert(load_parameters(path, recipe), name=name, output=output, fuse=fuse)
