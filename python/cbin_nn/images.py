"""Generated images: what the fixtures and the demo run on, so that no data set is needed or committed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .errors import InvalidArgument

__all__ = ["draw_images"]


def draw_images(
    count: int, height: int, width: int, seed: int = 0, *, channels: int = 3
) -> npt.NDArray[np.uint8]:
    """Draw smooth random shapes: a colour gradient with a few soft-edged ellipses and bars on it.

    The same arguments give the same bytes on every machine: random integers come from a 64-bit
    multiplicative generator written out here, and all arithmetic is on integers.

    Args:
        count: number of images, 0 or more.
        height: rows, 1 or more.
        width: columns, 1 or more.
        seed: any integer.
        channels: channels of a pixel, 1 or more.

    Returns:
        u8 images of shape (count, height, width, channels).

    Raises:
        InvalidArgument: a size is not positive.
    """
    for name, value, least in (
        ("count", count, 0),
        ("height", height, 1),
        ("width", width, 1),
        ("channels", channels, 1),
    ):
        if value < least:
            raise InvalidArgument("bad-argument", f"{name}: expected {least} or more, got {value}")
    state = (seed * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) % 2**64

    def draw(low: int, high: int) -> int:
        """An integer in [low, high]: SplitMix64 (Steele, Lea, Flood 2014)."""
        nonlocal state
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = state
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return low + (z ^ (z >> 31)) % (high - low + 1)

    images = np.empty((count, height, width, channels), np.uint8)
    # Coordinates in 1/256 of the image's side.
    y = (np.arange(height, dtype=np.int64) * 256 // height)[:, None]
    x = (np.arange(width, dtype=np.int64) * 256 // width)[None, :]
    for image in images:
        colour = [np.int64(draw(0, 255)) for _ in range(channels)]
        slopes = [(draw(-128, 128), draw(-128, 128)) for _ in range(channels)]
        plane = np.stack(
            [c + (a * (y - 128) + b * (x - 128)) // 256 for c, (a, b) in zip(colour, slopes, strict=True)],
            axis=-1,
        )
        for _ in range(draw(2, 5)):
            cy, cx = draw(20, 236), draw(20, 236)
            ry, rx = draw(16, 110), draw(16, 110)
            if draw(0, 1):  # ellipse: 256 on its edge
                distance = ((y - cy) * 16 // ry) ** 2 + ((x - cx) * 16 // rx) ** 2
            else:  # bar
                distance = np.maximum(np.abs(y - cy) * 256 // ry, np.abs(x - cx) * 256 // (rx // 2))
            # Opaque inside, fading out over a third of the radius.
            opacity = np.clip((340 - distance) * 3, 0, 256)[:, :, None]
            ink = np.array([draw(0, 255) for _ in range(channels)], np.int64)
            plane = plane + (ink - plane) * opacity // 256
        grain = np.array([draw(-9, 9) for _ in range(31)], np.int64)
        # Positions modulo 31 with odd multipliers: a texture that does not repeat along rows or columns.
        texture = grain[(7 * np.arange(height)[:, None] + 5 * np.arange(width)[None, :]) % 31]
        image[:] = np.clip(plane + texture[:, :, None], 0, 255)
    return images
