r"""Activations that change little from a pixel to the next: training for fewer instructions on a board.

A binary convolution on a Cortex-M moves along a row of its input from window to window and adds what
changes (`docs/performance.md`, "The kernels"), so its cost follows the share of bits that differ from their
left neighbour. For activations of -1 and +1 that is half of their total variation along rows,
`mean |x[.., j+1] - x[.., j]| / 2` (total variation: Rudin, Osher and Fatemi 1992, there of an image and in
both directions), which the gradient of the sign makes trainable.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InvalidArgument
from .layers import BinaryConv2d
from .models import BinaryBlock

__all__ = ["RowVariation", "row_variation"]


def row_variation(x: Tensor) -> Tensor:
    """Share of the values that differ from their left neighbour, 0 to 1; a scalar with a gradient.

    Args:
        x: -1 and +1, floating point `[..., W]`, W at least 2: `[N, C, H, W]` of an activation.
    """
    return (x[..., 1:] - x[..., :-1]).float().abs().mean() / 2


class RowVariation:
    """Row variation of what a network's binary convolutions read, weighted by their multiply-accumulates.

    The first convolution reads an image and is left out; so are convolutions on rows of one pixel.

        variation = RowVariation(network)
        loss = criterion(network(x), labels) + 0.5 * variation()

    Args:
        model: any module with two or more `BinaryConv2d` (or `BinaryBlock`).

    Raises:
        InvalidArgument: there is no convolution after the first.
    """

    def __init__(self, model: nn.Module) -> None:
        readers: list[tuple[nn.Module, BinaryConv2d]] = []
        seen: set[int] = set()
        for module in model.modules():
            conv = module.conv if isinstance(module, BinaryBlock) else module
            if isinstance(conv, BinaryConv2d) and id(conv) not in seen:
                seen.add(id(conv))
                readers.append((module, conv))
        if len(readers) < 2:
            raise InvalidArgument(
                "bad-argument",
                "row variation: the network has no binary convolution after its first, so no activation "
                "that one reads",
            )
        self._parts: dict[int, tuple[float, Tensor]] = {}
        for module, conv in readers[1:]:
            module.register_forward_pre_hook(self._hook(conv))

    def _hook(self, conv: BinaryConv2d) -> Any:
        def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0]
            if torch.is_grad_enabled() and x.size(-1) > 1:
                pixels = x.size(-1) * x.size(-2) / (conv.stride[0] * conv.stride[1])
                self._parts[id(conv)] = (pixels * conv.weight.numel(), row_variation(x))

        return note

    def __call__(self) -> Tensor:
        """Of the last forward with gradients: a scalar, 0 to 1.

        Raises:
            InvalidArgument: there was none since the last call.
        """
        if not self._parts:
            raise InvalidArgument("bad-argument", "row variation: call the network, with gradients, first")
        parts = list(self._parts.values())
        self._parts = {}
        whole = sum(weight for weight, _ in parts)
        return torch.stack([share * (weight / whole) for weight, share in parts]).sum()
