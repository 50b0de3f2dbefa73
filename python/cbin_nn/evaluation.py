"""Accuracy of a model on a data set of any size, in constant memory.

Images come as an array, as the path of a `.npy` file (mapped, never read whole), or as an iterable of batches
with labels, such as a PyTorch `DataLoader` or a generator. At most some 32 MB of them are held at a time: the
pages of a mapped file that have been used are given back as the evaluation goes on.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .errors import InvalidArgument
from .geometry import array as as_array
from .geometry import check_labels, thread_count

if TYPE_CHECKING:
    from .model import Model

__all__ = ["Evaluation", "evaluate"]

#: Bytes of images of one part.
PART_BYTES = 32 << 20
#: Most images of one part: a look at Ctrl-C and at the progress now and then.
PART_IMAGES = 16_384

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` counted."""

    #: Images evaluated.
    images: int
    #: Images whose largest output is that of their label; the first one where several are the largest.
    correct: int
    #: Seconds that the model ran, reading the data excluded.
    seconds: float
    #: Number of images of each true class (row) that were taken for each class (column): int64
    #: `[classes, classes]`.
    confusion: npt.NDArray[np.int64] = field(repr=False, compare=False)

    @property
    def accuracy(self) -> float:
        """The share of correct images, 0 to 1; NaN for no images."""
        return self.correct / self.images if self.images else float("nan")

    @property
    def images_per_second(self) -> float:
        """Images by second of model time; NaN for no images."""
        return self.images / self.seconds if self.seconds > 0 else float("nan")

    def __str__(self) -> str:
        return (
            f"accuracy {self.accuracy:.2%} on {self.images:,} images, "
            f"{self.images_per_second:,.0f} images a second"
        )


def evaluate(
    model: Model,
    images: npt.ArrayLike | str | os.PathLike[str] | Iterable[tuple[npt.ArrayLike, npt.ArrayLike]],
    labels: npt.ArrayLike | str | os.PathLike[str] | None = None,
    *,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Run a model on labelled images and compare its largest outputs with the labels.

    Args:
        model: a model with a number for each class.
        images: uint8 `[N, H, W, C]` (packed uint32 words where the model's input is bits), as an array, a
            memory-mapped one, or the path of a `.npy` file, which is mapped; or an iterable of pairs (images
            `[n, H, W, C]`, labels `[n]`), of any n, or of single images `[H, W, C]` with their label.
        labels: integers `[N]` from 0 to the number of classes - 1, or the path of a `.npy` file; None where
            `images` is an iterable of pairs.
        threads: threads to use; None is one a core.
        progress: called with (images done, images in all) after each part; in all is 0 where that is unknown.

    Returns:
        The counts, `accuracy` and `images_per_second` among them.

    Raises:
        InvalidArgument: wrong dtype, shape, label or thread count, or a file that can't be read; the message
            names the argument.
    """
    thread_count(threads)
    if model.output_dtype == "bits":
        raise InvalidArgument(
            "no-classes", "the model ends in packed bits, not in a number for each class: nothing to evaluate"
        )
    limit = max(1, min(PART_IMAGES, PART_BYTES // model.input_bytes))
    if labels is None and not isinstance(images, (np.ndarray, str, os.PathLike)):
        total = 0
        parts = _gathered(images, len(model.input_shape), limit)
    else:
        pictures, truth = _opened("images", images), check_labels(_opened("labels", labels), model.classes)
        if pictures.ndim != 4 or len(pictures) != len(truth):
            raise InvalidArgument(
                "bad-shape",
                f"`labels` has shape {list(truth.shape)} and `images` {list(pictures.shape)}: "
                "expected N labels for N images [N, H, W, C]",
            )
        total = len(pictures)
        parts = ((pictures[at : at + limit], truth[at : at + limit]) for at in range(0, total, limit))
    confusion = np.zeros((model.classes, model.classes), np.int64)
    done, seconds = 0, 0.0
    for part, part_labels in parts:
        checked = check_labels(part_labels, model.classes)
        batch = model.check_input(part)
        start = time.perf_counter()
        outputs = model.run_integers(batch, threads=threads)
        seconds += time.perf_counter() - start
        _release(part)
        pairs = checked.astype(np.intp) * model.classes + outputs.argmax(axis=1)
        confusion += np.bincount(pairs, minlength=confusion.size).reshape(confusion.shape)
        done += len(checked)
        if progress is not None:
            progress(done, total)
    return Evaluation(done, int(confusion.trace()), seconds, confusion)


def _opened(argument: str, value: Any) -> Array:
    """An array; one that a path names is mapped, not read.

    Raises:
        InvalidArgument: no array, or no `.npy` file of one.
    """
    if value is None:
        raise InvalidArgument(
            "bad-argument", f"`{argument}` is None, expected integers [N], one for each image of the array"
        )
    if not isinstance(value, (str, os.PathLike)):
        return as_array(argument, value)
    try:
        mapped = np.load(value, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise InvalidArgument("not-readable", f"`{argument}` {value}: {error.strerror or error}") from error
    except (ValueError, EOFError) as error:
        reason = str(error).split("\n")[0]
        raise InvalidArgument("bad-npy", f"`{argument}` {value} is no .npy array: {reason}") from error
    if not isinstance(mapped, np.ndarray):
        raise InvalidArgument("bad-npy", f"`{argument}` {value} holds several arrays: save one with np.save")
    return mapped


def _gathered(pairs: Any, rank: int, limit: int) -> Iterator[tuple[Array, Array]]:
    """Batches from an iterable: single images gathered, and batches beyond `limit` cut.

    Raises:
        InvalidArgument: it is no iterable of pairs.
    """
    expected = "an array with `labels`, or an iterable of pairs (images, labels)"
    try:
        iterator = iter(pairs)
    except TypeError:
        raise InvalidArgument(
            "bad-argument", f"`images` is {type(pairs).__name__}, expected {expected}"
        ) from None
    held: list[tuple[Array, Array]] = []

    def together() -> tuple[Array, Array]:
        batch = np.stack([image for image, _ in held]), np.concatenate([label for _, label in held])
        held.clear()
        return batch

    for pair in iterator:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise InvalidArgument(
                "bad-argument", f"`images` yields {type(pair).__name__}, expected {expected}"
            )
        images, labels = as_array("images", pair[0]), np.atleast_1d(as_array("labels", pair[1]))
        if images.ndim == rank and len(labels) == 1:
            if held and held[0][0].shape != images.shape:
                yield together()
            held.append((images, labels))
            if len(held) == limit:
                yield together()
            continue
        if held:
            yield together()
        if images.ndim != rank + 1 or len(labels) != len(images):
            raise InvalidArgument(
                "bad-shape",
                f"`images` yields shapes {list(images.shape)} and {list(labels.shape)}, expected "
                "[n, H, W, C] and [n]",
            )
        for at in range(0, len(images), limit):
            yield images[at : at + limit], labels[at : at + limit]
    if held:
        yield together()


def _release(part: Array) -> None:
    """Give the pages of a mapped array back to the system, which may read them again from the file.

    Only pages of a file that nobody writes through this mapping: those of a copy-on-write mapping can hold
    what the file does not.
    """
    base: Any = part
    while isinstance(base, np.ndarray) and not isinstance(base.base, mmap.mmap):
        base = base.base
    if not isinstance(base, np.memmap) or base.mode != "r" or not hasattr(mmap, "MADV_DONTNEED"):
        return
    mapping: Any = base.base
    first = (
        part.__array_interface__["data"][0] - np.frombuffer(mapping, np.uint8).__array_interface__["data"][0]
    )
    # Whole pages inside the part; one that it shares with its neighbours goes with a later part, or stays.
    start = first & ~(mmap.PAGESIZE - 1)
    end = (first + part.nbytes) & ~(mmap.PAGESIZE - 1)
    if part.flags.c_contiguous and start < end:
        mapping.madvise(mmap.MADV_DONTNEED, start, end - start)
