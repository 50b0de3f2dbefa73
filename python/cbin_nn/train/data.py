r"""Images for training: uint8 in memory, augmented a batch at a time, as integers `2 q - 255`.

A network here sees `2 q - 255` for a pixel q, which is odd, between -255 and 255, exact in bfloat16, and
centred: 0 in the padding of a convolution is mid-grey.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from . import fused

__all__ = ["Draws", "as_input", "augment"]


def as_input(images: Tensor | npt.NDArray[np.uint8]) -> Tensor:
    """uint8 `[N, H, W, C]` as the float32 `2 q - 255`, `[N, C, H, W]` in channels_last."""
    tensor = torch.as_tensor(images)
    return (tensor.float() * 2 - 255).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Draws:
    """The random choices of one epoch, all made from (seed, epoch): a resumed run makes the same ones."""

    order: Tensor
    dy: Tensor
    dx: Tensor
    mirror: Tensor

    @classmethod
    def of_epoch(cls, seed: int, epoch: int, count: int, shift: int, *, mirror: bool = True) -> Draws:
        """Draw an epoch.

        Args:
            seed: of the run.
            epoch: from 0.
            count: number of images.
            shift: crops move by -shift to shift pixels each way.
            mirror: mirror half the images, left to right.
        """
        generator = torch.Generator().manual_seed(seed * 100003 + epoch)
        order = torch.randperm(count, generator=generator)
        dy, dx = torch.randint(-shift, shift + 1, (2, count), generator=generator)
        flips = torch.randint(0, 2, (count,), generator=generator)
        return cls(order, dy, dx, flips if mirror else torch.zeros_like(flips))

    def to(self, device: torch.device | str) -> Draws:
        """The same draws on a device."""
        return Draws(*(draw.to(device) for draw in (self.order, self.dy, self.dx, self.mirror)))


def augment(
    images: Tensor, index: Tensor, dy: Tensor, dx: Tensor, mirror: Tensor, *, use_fused: bool = False
) -> Tensor:
    """Shifted and mirrored images; pixels beyond an edge repeat it.

    Args:
        images: uint8 `[*, S, S, 3]`.
        index: which images, int64 `[N]`.
        dy: output row y shows row `y + dy` of the image, int64 `[N]`; dx likewise, after the mirror.
        dx: columns.
        mirror: 1 mirrors left to right, int64 `[N]`.
        use_fused: let the extension do it and return bfloat16.

    Returns:
        `2 q - 255`, float32 or bfloat16 `[N, 3, S, S]` in channels_last.
    """
    if use_fused:
        return fused.augment(images, index, dy, dx, mirror).permute(0, 3, 1, 2)
    size = images.size(1)
    row = torch.arange(size, device=images.device)
    rows = (row + dy[:, None]).clamp(0, size - 1)
    columns = torch.where(mirror[:, None] == 1, size - 1 - row, row) + dx[:, None]
    columns = columns.clamp(0, size - 1)
    return as_input(images[index[:, None, None], rows[:, :, None], columns[:, None, :]])
