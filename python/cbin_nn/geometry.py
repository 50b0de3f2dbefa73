"""Windows and sizes from users' arguments: `strides=2`, `padding="same"`, checked against a plane.

The limits are those of the kernels (`rust/kernels/src/shape.rs`), which no product of sizes can overflow.
"""

from __future__ import annotations

import operator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .errors import InvalidArgument
from .operators import Window

__all__ = [
    "MAX_DIMENSION",
    "MAX_ELEMENTS",
    "MAX_THREADS",
    "MAX_WINDOW",
    "Padding",
    "array",
    "check_plane",
    "integer",
    "pair",
    "thread_count",
    "window",
    "words",
]

#: Largest height, width or channel count of a tensor.
MAX_DIMENSION = 65_535
#: Largest number of elements of a tensor, a pixel counted in whole words of 32.
MAX_ELEMENTS = 1 << 26
#: Largest kernel side, stride, dilation or padding.
MAX_WINDOW = 4096

#: Most threads of one run.
MAX_THREADS = 1024

#: "valid", "same" (TensorFlow's rule), one number for all sides, or ((top, bottom), (left, right)).
Padding = Literal["valid", "same"] | int | tuple[tuple[int, int], tuple[int, int]]


def words(channels: int) -> int:
    """`u32` words of a packed pixel."""
    return (channels + 31) // 32


def integer(argument: str, value: Any, low: int, high: int, expected: str = "") -> int:
    """`value` as an integer in `low..=high`.

    Raises:
        InvalidArgument: it is no integer (bool counts as none) or out of range.
    """
    expected = expected or f"an integer from {low} to {high}"
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise InvalidArgument("bad-argument", f"`{argument}` is {value!r}, expected {expected}")
    if not low <= number <= high:
        raise InvalidArgument("out-of-range", f"`{argument}` is {value!r}, expected {expected}")
    return number


def thread_count(threads: Any) -> int:
    """Threads as the native module takes them: 0 is one a core.

    Raises:
        InvalidArgument: neither None nor an integer from 1 to `MAX_THREADS`.
    """
    if threads is None:
        return 0
    expected = f"an integer from 1 to {MAX_THREADS}, or None for one a core"
    return integer("threads", threads, 1, MAX_THREADS, expected)


def array(argument: str, value: Any) -> npt.NDArray[Any]:
    """`value` as an array.

    Raises:
        InvalidArgument: it is none, for instance a list of lists of different lengths.
    """
    try:
        return np.asarray(value)
    except (ValueError, OverflowError) as error:
        raise InvalidArgument("bad-argument", f"`{argument}` is no array: {error}") from error


def pair(argument: str, value: Any, low: int, high: int) -> tuple[int, int]:
    """One integer for both axes, or (vertical, horizontal).

    Raises:
        InvalidArgument: it is neither, or out of `low..=high`.
    """
    expected = f"an integer from {low} to {high}, or a pair of them (vertical, horizontal)"
    parts = list(value) if isinstance(value, (tuple, list)) else [value, value]
    if len(parts) != 2:
        raise InvalidArgument("bad-argument", f"`{argument}` is {value!r}, expected {expected}")
    try:
        first, second = (integer(argument, part, low, high, expected) for part in parts)
    except InvalidArgument as error:
        raise InvalidArgument(error.slug, f"`{argument}` is {value!r}, expected {expected}") from None
    return first, second


def _explicit(argument: str, value: Any) -> tuple[int, int, int, int]:
    """(top, left, bottom, right) of explicit padding."""
    expected = f'"valid", "same", 0 to {MAX_WINDOW} for all sides, or ((top, bottom), (left, right))'
    wrong = InvalidArgument("bad-padding", f"`{argument}` is {value!r}, expected {expected}")
    if isinstance(value, (tuple, list)):
        sides = [list(axis) if isinstance(axis, (tuple, list)) else [] for axis in value]
        if [len(axis) for axis in sides] != [2, 2]:
            raise wrong
        (top, bottom), (left, right) = sides
    else:
        top = left = bottom = right = value
    try:
        numbers = [integer(argument, side, 0, MAX_WINDOW) for side in (top, left, bottom, right)]
    except InvalidArgument:
        raise wrong from None
    return numbers[0], numbers[1], numbers[2], numbers[3]


def check_labels(labels: Any, classes: int) -> npt.NDArray[np.integer[Any]]:
    """Check class labels: integers `[N]` from 0 to `classes - 1`; one integer is taken for N = 1.

    Raises:
        InvalidArgument: what they are instead (one-hot rows, a column, floats, another range), and what
            to do.
    """
    truth = np.atleast_1d(array("labels", labels))
    got = f"`labels` is {truth.dtype} {list(truth.shape)}, expected integers [N]"
    if truth.ndim == 2 and truth.shape[1] == 1 and truth.dtype.kind in "iuf":
        raise InvalidArgument("bad-labels", f"{got}: it has one column; use labels[:, 0]")
    if truth.ndim == 2 and truth.shape[1] == classes and _one_hot(truth):
        raise InvalidArgument("bad-labels", f"{got}: its rows are one-hot; use labels.argmax(axis=1)")
    if truth.ndim == 2 and truth.shape[1] == classes:
        hint = "its rows look like a score for each class; labels.argmax(axis=1) is the class of each"
        raise InvalidArgument("bad-labels", f"{got}: {hint}")
    if truth.ndim != 1 or truth.dtype.kind not in "iuf":
        raise InvalidArgument("bad-labels", f"{got}: give the index of each image's class")
    if truth.dtype.kind == "f":
        whole = bool(np.all(np.isfinite(truth))) and bool(np.all(truth == np.rint(truth)))
        hint = (
            "its values are whole; use labels.astype(np.int64)" if whole else "give the index of each class"
        )
        raise InvalidArgument("bad-labels", f"{got}: {hint}")
    if truth.size and not (truth.min() >= 0 and truth.max() < classes):
        hint = (
            "; classes are counted from 0: use labels - 1"
            if truth.min() == 1 == truth.max() - classes + 1
            else ""
        )
        raise InvalidArgument(
            "bad-labels",
            f"`labels` run from {truth.min()} to {truth.max()}, but the model has classes 0 to "
            f"{classes - 1}{hint}",
        )
    return truth


def _one_hot(rows: npt.NDArray[Any]) -> bool:
    if rows.dtype.kind not in "iufb":
        return False
    return bool(np.all((rows == 0) | (rows == 1)) and np.all((rows == 1).sum(axis=1) == 1))


def window(
    plane: tuple[int, int],
    kernel: tuple[int, int],
    strides: tuple[int, int],
    padding: Any,
    dilation: tuple[int, int] = (1, 1),
    *,
    names: tuple[str, str] = ("weights", "padding"),
) -> Window:
    """The window of `kernel` taps on a plane of (height, width) pixels.

    `padding="same"` is TensorFlow's rule: `ceil(size / stride)` outputs, and of an odd number of padded
    pixels the larger half below and on the right.

    Args:
        plane: height and width.
        kernel: taps.
        strides: steps.
        padding: see `Padding`.
        dilation: distance between taps.
        names: what the kernel and the padding are called in messages.

    Raises:
        InvalidArgument: bad padding, or a window larger than the padded plane.
    """
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    if isinstance(padding, str) and padding == "same":
        ends = []
        for size, span, stride in zip(plane, spans, strides, strict=True):
            total = max((-(-size // stride) - 1) * stride + span - size, 0)
            ends.append((total // 2, total - total // 2))
        sides = (ends[0][0], ends[1][0], ends[0][1], ends[1][1])
    elif isinstance(padding, str) and padding == "valid":
        sides = (0, 0, 0, 0)
    else:
        sides = _explicit(names[1], padding)
    if max(sides) > MAX_WINDOW:
        raise InvalidArgument(
            "out-of-range",
            f"`{names[1]}` is {padding!r}: {max(sides)} pixels, above the limit of {MAX_WINDOW}",
        )
    found = Window(kernel, strides, dilation, sides)
    padded = (plane[0] + sides[0] + sides[2], plane[1] + sides[1] + sides[3])
    if spans[0] > padded[0] or spans[1] > padded[1]:
        dilated = f" (dilation {dilation[0]} x {dilation[1]})" if dilation != (1, 1) else ""
        raise InvalidArgument(
            "window-too-large",
            f"`{names[0]}` makes a window of {spans[0]} x {spans[1]} pixels{dilated}, larger than the padded "
            f"input of {padded[0]} x {padded[1]}: expected a smaller window or more `{names[1]}`",
        )
    return found


def check_plane(argument: str, height: int, width: int, channels: int) -> tuple[int, int, int]:
    """Check the sizes of a tensor against the limits; returns them.

    Raises:
        InvalidArgument: a size is 0 or above its limit, or their product is.
    """
    for what, size in (("height", height), ("width", width), ("channels", channels)):
        if not 1 <= size <= MAX_DIMENSION:
            raise InvalidArgument(
                "out-of-range",
                f"`{argument}` makes {what} {size}, expected 1 to {MAX_DIMENSION}",
            )
    elements = height * width * words(channels) * 32
    if elements > MAX_ELEMENTS:
        raise InvalidArgument(
            "too-large",
            f"`{argument}` makes {height} x {width} pixels of {channels} channels, {elements} elements in "
            f"whole words, expected at most {MAX_ELEMENTS}",
        )
    return height, width, channels
