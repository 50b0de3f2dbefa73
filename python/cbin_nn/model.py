"""A converted model on the host: convert, load, save, run, describe."""

from __future__ import annotations

import hashlib
import io
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import numpy.typing as npt

from . import _native
from .errors import ConversionError, InvalidArgument, ModelFileError
from .files import write_atomically
from .geometry import array as as_array
from .geometry import thread_count
from .images import draw_images
from .operators import BMaxPool2D, Pool
from .zoo import PREFIX, card, resolve

if TYPE_CHECKING:
    from .converters import ConversionReport
    from .deploy import BenchReport, Progress
    from .evaluation import Evaluation
    from .operators import LoweredModel
    from .report import ModelReport

__all__ = [
    "ArenaBuffer",
    "Layer",
    "Model",
    "check_images",
    "check_words",
    "convert",
    "load",
    "save",
]

Array = npt.NDArray[Any]
OutputType = Literal["i8", "i16", "i32", "f32"]


@dataclass(frozen=True)
class Layer:
    """One operator of a model, as `Model.layers` lists it. Sizes are in bytes."""

    name: str
    operator: str
    #: (height, width, channels)
    output_shape: tuple[int, int, int]
    #: "bits", "i8", "i16" or "i32"
    output_dtype: str
    #: Multiply-accumulates an image, taps in the padding included.
    macs: int
    #: Weights and rules.
    flash: int
    #: This operator's output as it is stored.
    output_bytes: int
    scratch: int
    fused_pool: bool


@dataclass(frozen=True)
class ArenaBuffer:
    """A part of the arena, and when it is in use. Sizes and offsets are in bytes."""

    #: Name of the layer whose output or scratch it is, or of the image.
    name: str
    #: True for a layer's scratch, False for its output.
    scratch: bool
    offset: int
    bytes: int
    #: Index in `Model.layers` of the first and of the last layer during which it is in use.
    first: int
    last: int


class Model:
    """A checked `.cbn` model. Made by `convert` or `load`."""

    def __init__(self, native: _native.Model, conversion: ConversionReport | None = None) -> None:
        self._native = native
        #: What the conversion did, layer by layer; None for a model that was loaded.
        self.conversion = conversion

    @classmethod
    def from_bytes(cls, data: bytes) -> Model:
        """Check the bytes of a `.cbn` file.

        Raises:
            ModelFileError: they are no valid model; the message names the field.
        """
        return cls(_native.Model.from_bytes(bytes(memoryview(data))))

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self.to_bytes(), self.conversion)

    def to_bytes(self) -> bytes:
        """The bytes of the `.cbn` file."""
        return self._native.to_bytes()

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write the model to a `.cbn` file, whole or not at all.

        Args:
            path: the file.
            overwrite: replace a file that exists.

        Raises:
            OutputError: the file exists (and `overwrite` is False) or can't be written.
        """
        return write_atomically(path, self.to_bytes(), overwrite=overwrite)

    @property
    def name(self) -> str:
        """The source model's name."""
        return self._native.name

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of one image."""
        return self._native.input_shape

    @property
    def input_dtype(self) -> str:
        """What `run` takes: "u8" images, or "bits" (packed uint32 words)."""
        return self._native.input_dtype

    @property
    def input_bytes(self) -> int:
        """Bytes of one input."""
        return self._native.input_bytes

    @property
    def output_dtype(self) -> str:
        """What `run` returns: "i8", "i16", "i32", "f32", or "bits" (packed uint32 words)."""
        return "f32" if self._native.float_output else self._native.output_dtype

    @property
    def output_scale(self) -> float:
        """One step of the integer output in units of the source network's logits."""
        return self._native.output_scale

    @property
    def classes(self) -> int:
        """Length of one output."""
        return self._native.output_shape[2]

    @property
    def arena_bytes(self) -> int:
        """Working memory of one run on a board, scratch included, image and output excluded."""
        return self.memory_bytes - self.input_bytes

    @property
    def memory_bytes(self) -> int:
        """Arena and image of one run on a board."""
        return self._native.memory_bytes

    @property
    def in_place(self) -> bool:
        """Whether the image lies in the arena, on a board: its rows are written over once they are done with,
        so that both take less. That depends on the first layer.
        """
        return self._native.in_place

    @property
    def file_bytes(self) -> int:
        """Size of the `.cbn` file: what the model takes in flash."""
        return self._native.file_bytes

    @property
    def sha256(self) -> str:
        """Digest of the `.cbn` file, hexadecimal."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @property
    def layers(self) -> list[Layer]:
        """The operators, in execution order."""
        return [
            Layer(
                name=op.name,
                operator=op.kind,
                output_shape=op.output_shape,
                output_dtype=op.output_dtype,
                macs=op.macs,
                flash=op.constant_bytes,
                output_bytes=op.output_bytes,
                scratch=op.scratch_bytes,
                fused_pool=op.fused_pool,
            )
            for op in self._native.operators()
        ]

    @property
    def arena(self) -> list[ArenaBuffer]:
        """What lies where in the arena, and when: in order of the layers. The image comes first, where it is
        in the arena too."""
        return [ArenaBuffer(*row) for row in self._native.arena()]

    @property
    def macs(self) -> int:
        """Multiply-accumulates an image."""
        return sum(layer.macs for layer in self.layers)

    @property
    def kernels(self) -> str:
        """The vector instructions that `run` uses here: "avx512", "avx2", "neon", "portable" and so on.

        All give the same bytes. The environment variable `CBIN_NN_KERNELS` chooses one at loading.
        """
        return self._native.kernels

    @overload
    def run(
        self,
        images: npt.ArrayLike,
        *,
        threads: int | None = None,
        dequantize: bool = False,
        taps: Literal[False] = False,
    ) -> Array: ...

    @overload
    def run(
        self,
        images: npt.ArrayLike,
        *,
        threads: int | None = None,
        dequantize: bool = False,
        taps: Literal[True],
    ) -> tuple[Array, dict[str, Array]]: ...

    def run(
        self,
        images: npt.ArrayLike,
        *,
        threads: int | None = None,
        dequantize: bool = False,
        taps: bool = False,
    ) -> Array | tuple[Array, dict[str, Array]]:
        """Run a batch of images, bit for bit as a board does.

        Args:
            images: uint8 `[N, H, W, C]`, or one image `[H, W, C]`; packed uint32 `[N, H, W, words]` where
                the model's input is bits.
            threads: threads to use; None is one a core.
            dequantize: return float32 logits, the integers times `output_scale`.
            taps: return every operator's output too, as `taps` gives it for one image, stacked to `[N, ...]`.

        Returns:
            `[N, classes]` (`[classes]` for one image) of the model's output type: int8, int16, int32
            or float32. A model that ends in bits returns packed uint32 words `[N, H, W, words]`. With
            `taps`, that and a dict by operator name.

        Raises:
            InvalidArgument: wrong dtype, shape or thread count; the message names the argument.
        """
        batch = self.check_input(images)
        if dequantize and self._native.output_dtype == "bits":
            raise InvalidArgument(
                "no-logits", "`dequantize` is True, but this model ends in packed bits, which have no scale"
            )
        outputs = self.run_integers(batch, threads=threads)
        if dequantize or self._native.float_output:
            outputs = self.dequantize(outputs)
        result: Array = outputs[0] if batch.ndim == 3 else outputs
        if not taps:
            return result
        if batch.ndim == 3:
            return result, self.taps(batch)
        each = [self.taps(image) for image in batch]
        names = [layer.name for layer in self.layers]
        return result, {name: np.stack([found[name] for found in each]) for name in names} if each else {}

    def check_input(self, images: npt.ArrayLike) -> Array:
        """Check a batch, or one image, against what the model takes.

        Returns:
            uint8 `[N, H, W, C]` or uint32 `[N, H, W, words]`, without N for one image.

        Raises:
            InvalidArgument: naming what is wrong: dtype, shape, range or unused bits.
        """
        if self.input_dtype == "u8":
            return check_images(images, self.input_shape)
        height, width, channels = self.input_shape
        array = as_array("images", images)
        words = check_words("images", array, 3 if array.ndim == 3 else 4, channels)
        if words.shape[-3:-1] != (height, width):
            raise InvalidArgument(
                "bad-shape",
                f"`images` has shape {list(words.shape)}, expected [N, {height}, {width}, {words.shape[-1]}]",
            )
        return words

    def dequantize(self, outputs: Array) -> npt.NDArray[np.float32]:
        """Integer outputs `[N, classes]` as float32 logits of the source network: `outputs * output_scale`.

        Raises:
            InvalidArgument: `outputs` are not integers, for instance because they are logits already.
        """
        if outputs.dtype.kind not in "iu":
            raise InvalidArgument(
                "bad-dtype", f"`outputs` is {outputs.dtype}, expected the integers of run or run_integers"
            )
        return (outputs * self.output_scale).astype(np.float32)

    def run_integers(self, images: npt.ArrayLike, *, threads: int | None = None) -> Array:
        """As `run`, but always the integers `[N, classes]` that a board sends, whatever the output type."""
        batch = self.check_input(images)
        batch = batch[None] if batch.ndim == 3 else batch
        outputs: Array = self._native.run(batch, thread_count(threads), False)
        return outputs

    def taps(self, image: npt.ArrayLike) -> dict[str, Array]:
        """Every operator's output for one image, by operator name.

        Args:
            image: uint8 `[H, W, C]`, or packed uint32 `[H, W, words]`.

        Returns:
            int8 `[H, W, C]` of -1 and +1 for packed tensors, the integers `[classes]` otherwise.

        Raises:
            InvalidArgument: wrong dtype or shape.
        """
        batch = self.check_input(image)
        if batch.ndim != 3:
            raise InvalidArgument(
                "bad-shape", f"`image` has shape {list(batch.shape)}, expected one image [H, W, C]"
            )
        raw_input = np.ascontiguousarray(batch).view(np.uint8)
        tapped: dict[str, Array] = {}
        for layer, raw in zip(self.layers, self._native.run_taps(raw_input), strict=True):
            if layer.output_dtype == "bits":
                height, width, channels = layer.output_shape
                packed = np.frombuffer(raw, np.uint8).reshape(height, width, -1)
                bits = np.unpackbits(packed, axis=2, bitorder="little")[:, :, :channels]
                tapped[layer.name] = bits.astype(np.int8) * 2 - 1
            else:
                tapped[layer.name] = np.frombuffer(
                    raw, np.dtype(f"<{layer.output_dtype[0]}{len(raw) // self.classes}")
                )
        return tapped

    def weights(self) -> dict[str, Array]:
        """The unpacked weights of every operator that has any, by its name.

        Returns:
            int8 -1 and +1, or int8 and int16 where they are real weights; `[O, kh, kw, C]` for convolutions
            (`[1, kh, kw, C]` for depthwise ones), `[units, H, W, C]` for dense layers.

        Raises:
            InvalidArgument: a layout that this version can't unpack.
        """
        found = {}
        for name, dtype, layout, shape, raw in self._native.weights():
            if dtype == "bits":
                found[name] = _unpacked(name, layout, shape, raw)
            else:
                found[name] = np.frombuffer(raw, np.dtype(f"<{dtype[0]}{int(dtype[1:]) // 8}")).reshape(shape)
        return found

    def export_weights(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write `weights()` to an `.npz` file, for other tools: a name an operator.

        Args:
            path: the file to write.
            overwrite: replace a file that exists.

        Raises:
            OutputError: the file exists (and `overwrite` is False) or can't be written.
        """
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **self.weights())  # type: ignore[arg-type]
        return write_atomically(path, buffer.getvalue(), overwrite=overwrite)

    def evaluate(
        self,
        images: npt.ArrayLike | str | os.PathLike[str] | Iterable[tuple[npt.ArrayLike, npt.ArrayLike]],
        labels: npt.ArrayLike | str | os.PathLike[str] | None = None,
        *,
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> Evaluation:
        """Accuracy on labelled images, of any number, in constant memory.

        See `cbin_nn.evaluation.evaluate`.

        Args:
            images: uint8 `[N, H, W, C]`, memory-mapped or not; the path of a `.npy` file of them; or an
                iterable of pairs (images, labels).
            labels: integers `[N]`, or the path of a `.npy` file; None for an iterable of pairs.
            threads: threads to use; None is one a core.
            progress: called with (images done, images in all).

        Raises:
            InvalidArgument: wrong dtype, shape, label or thread count; the message names the argument.
        """
        from .evaluation import evaluate

        return evaluate(self, images, labels, threads=threads, progress=progress)

    def bench(
        self,
        board: str = "qemu-mps2-an500",
        images: npt.ArrayLike | None = None,
        *,
        labels: npt.ArrayLike | None = None,
        count: int | None = None,
        probe: str | None = None,
        timeout: float | None = None,
        progress: Progress | None = None,
    ) -> BenchReport:
        """Run images on a board and compare each output with the host's, byte for byte.

        `images` are uint8 `[N, H, W, C]`, `labels` integers `[N]`. See `cbin_nn.deploy.bench` for the
        arguments, the report and the errors.
        """
        from .deploy import bench

        return bench(
            self, board, images, labels=labels, count=count, probe=probe, timeout=timeout, progress=progress
        )

    def summary(self, print_fn: Callable[[str], None] = print) -> None:
        """Print the layers as Keras does: operator, output shape, MACs, flash and RAM."""
        from .report import summary

        print_fn(summary(self))

    def report(self, *benches: BenchReport) -> ModelReport:
        """Layers, memory, the conversion and benchmarks in one report: print it, show it in Jupyter, save it.

        Args:
            benches: benchmarks of this model, from `bench`.

        Raises:
            InvalidArgument: a benchmark is another model's.
        """
        from .report import ModelReport

        return ModelReport(self, benches)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.input_shape))
        layers = len(self.layers)
        output = f"{self.classes} {self.output_dtype}"
        return f"<cbin_nn.Model {self.name!r}: {shape} -> {output}, {layers} operators>"


def _restore(data: bytes, conversion: ConversionReport | None) -> Model:
    """A model from a pickle."""
    return Model(_native.Model.from_bytes(data), conversion)


def _unpacked(name: str, layout: str, shape: Sequence[int], raw: bytes) -> Array:
    """Weights of -1 and +1 from their stored bits."""
    rows, channels = int(np.prod(shape[:3])), shape[3]
    if layout == "canonical":
        stored = np.frombuffer(raw, np.uint8).reshape(rows, -1)
        bits = np.unpackbits(stored, axis=1, bitorder="little")[:, :channels]
    elif layout == "byte-mask":
        products = int(np.prod(shape[1:]))
        bits = np.frombuffer(raw, np.uint8).reshape(shape[0], -1)[:, :products] != 0
    else:
        raise InvalidArgument("unknown-layout", f"the weights of {name!r} have the layout {layout!r}")
    signs: Array = bits.astype(np.int8).reshape(shape) * np.int8(2) - np.int8(1)
    return signs


def check_images(images: npt.ArrayLike, shape: Sequence[int]) -> npt.NDArray[np.uint8]:
    """Check that `images` are uint8 `[N, H, W, C]` or `[H, W, C]` of the given `shape` (H, W, C).

    Raises:
        InvalidArgument: naming what is wrong: dtype, shape or range.
    """
    array = as_array("images", images)
    expected = ", ".join(map(str, shape))
    if array.dtype != np.uint8:
        hint = "pass integers 0..255 as np.uint8"
        if array.dtype.kind in "iuf" and array.size:
            low, high = array.min(), array.max()
            if array.dtype.kind == "f" and np.isnan(low):
                hint = "it holds NaN"
            elif not (low >= 0 and high <= 255):
                hint = f"its values run from {low:g} to {high:g}, and u8 holds 0 to 255; "
                hint += "cbin_nn.calibrate makes bytes of other numbers"
            elif array.dtype.kind == "f" and high <= 1:
                hint = "its values look scaled to 0..1: multiply by 255, round, and use .astype(np.uint8)"
            else:
                hint = "its values fit: use .astype(np.uint8)"
        raise InvalidArgument(
            "bad-dtype", f"`images` is {array.dtype}, expected uint8 [N, {expected}]: {hint}"
        )
    if array.ndim not in (3, 4) or array.shape[-3:] != tuple(shape):
        hint = ""
        if array.ndim in (3, 4) and array.shape[-3:] == (shape[2], shape[0], shape[1]):
            hint = ": these are channels first; use images.transpose(0, 2, 3, 1)"
        elif array.ndim in (3, 4) and array.shape[-3:-1] == tuple(shape[:2]):
            hint = _channel_hint(array.shape[-1], shape[2])
        elif array.ndim in (2, 3) and shape[2] == 1 and array.shape[-2:] == tuple(shape[:2]):
            hint = ": the axis of the one channel is missing; use images[..., None]"
        raise InvalidArgument(
            "bad-shape",
            f"`images` has shape {list(array.shape)}, expected [N, {expected}] (channels last){hint}",
        )
    return array


def _channel_hint(given: int, expected: int) -> str:
    """What to do about images of another number of channels."""
    if (given, expected) == (4, 3):
        return ": the fourth channel looks like transparency (RGBA); use images[..., :3]"
    if (given, expected) in ((3, 1), (4, 1)):
        return ": these are colours, and the network takes grey; make them grey (PIL: image.convert('L'))"
    if (given, expected) == (1, 3):
        return ": these are grey, and the network takes colours; use images.repeat(3, axis=-1)"
    return f": the network takes {expected} channels, and the images have {given}"


def check_words(
    argument: str, value: npt.ArrayLike, rank: int | None, channels: int
) -> npt.NDArray[np.uint32]:
    """Check packed words `[..., ceil(channels / 32)]`.

    Args:
        argument: what messages call it.
        value: the words.
        rank: number of axes; None is any.
        channels: number of true channels.

    Returns:
        uint32, contiguous.

    Raises:
        InvalidArgument: wrong dtype, rank or number of words, or a bit above the last channel is set.
    """
    array = as_array(argument, value)
    count = (channels + 31) // 32
    layout = {3: "[H, W, {}]", 4: "[N, H, W, {}]"}.get(rank or 0, "[..., {}]").format(count)
    if array.dtype != np.uint32:
        raise InvalidArgument(
            "bad-dtype",
            f"`{argument}` is {array.dtype}, expected packed uint32 {layout}: use cbin_nn.ops.pack",
        )
    if array.ndim != (rank or max(array.ndim, 1)) or array.shape[-1] != count:
        raise InvalidArgument(
            "bad-shape",
            f"`{argument}` has shape {list(array.shape)}, expected {layout}: the words of {channels} "
            "channels",
        )
    unused = count * 32 - channels
    if unused and array.size:
        last = int(np.bitwise_or.reduce(array[..., -1], axis=None))
        if last >> (32 - unused):
            raise InvalidArgument(
                "padding-bits",
                f"`{argument}` has a bit set above channel {channels - 1}, expected the unused {unused} "
                "high bits of each last word to be 0",
            )
    return np.ascontiguousarray(array, np.uint32)


def convert(
    source: Any,
    *,
    output: OutputType = "i32",
    input_scale: float | Sequence[float] | None = None,
    input_offset: float | Sequence[float] | None = None,
    fuse: bool = True,
    input_shape: Sequence[int] | None = None,
) -> Model:
    """Convert a trained network to integer operators, exactly.

    Args:
        source: a file, told by its content and not by its suffix: Larq/Keras `.h5` or `.keras`, PyTorch
            `.pt2` (`torch.export.save`), ONNX or QONNX, a SavedModel folder; a live Keras model or
            `torch.nn.Module`; a plain description, a dict (`cbin_nn.converters.description`); or
            `zoo:NAME`, the source of a model that ships with the package (needs the extra `torch`).
        output: type of the last layer's output. "f32" is i32 on the board, times its scale on the host.
        input_scale: the network was trained on `input_scale * q + input_offset` of a u8 pixel q, one number
            or one a channel; default 1.
        input_offset: default 0. For images normalised as `x / 127.5 - 1`, pass 1 / 127.5 and -1; for
            `(x / 255 - mean) / deviation`, pass `1 / (255 * deviation)` and `-mean / deviation`, a list each.
        fuse: False keeps convolutions and max-pools apart wherever stored bits can be pooled.
        input_shape: (C, H, W) of one image; only a live torch module needs it.

    Returns:
        The model; `model.conversion` says what was folded into what, and what was approximated by how much.

    Raises:
        ConversionError: layers or options can't be converted; the message names all of them and what to do.
        MissingExtra: the package that reads this kind of source is not installed.
        InvalidArgument: the source is of no known kind, or an argument has a wrong value.
    """
    from .converters import lower_file

    name = os.fspath(source) if isinstance(source, (str, os.PathLike)) else ""
    if name.startswith(PREFIX):
        return _convert_zoo(name, output, (input_scale, input_offset), fuse)
    lowered, report = lower_file(
        source,
        output=output,
        input_scale=input_scale,
        input_offset=input_offset,
        fuse=fuse,
        input_shape=input_shape,
    )
    try:
        return assemble(lowered, report)
    except (ConversionError, InvalidArgument) as error:  # what the source states is beyond a limit
        from .converters.sources import describe

        if error.slug == "bad-kernels":  # of the environment, not of the source
            raise
        raise ConversionError(error.slug, error.message).inside(describe(source)) from error


def assemble(lowered: LoweredModel, report: ConversionReport) -> Model:
    """The model of some operators, each with the weight layout that suits boards best.

    What a layout costs can depend on how often activations are +1, which eight generated images say.

    Networks that take long are given fewer images, down to none, so that conversion ends in seconds whatever
    sizes a file states.

    Args:
        lowered: the operators, which read u8 images.
        report: what the conversion did, for `Model.conversion`.
    """
    height, width, channels = lowered.input_shape
    count = min(8, _SAMPLE_PRODUCTS // _products(lowered, report))
    samples = draw_images(count, height, width, seed=1, channels=channels)
    return Model(_native.Model.from_bytes(_native.build_model(lowered, samples.tobytes())), report)


#: Products that the images together may take, a few seconds' worth.
_SAMPLE_PRODUCTS = 2**32
#: What drawing a value of an image takes, and unpacking one of a plane, in products.
_DRAWN, _UNPACKED = 512, 16


def _products(lowered: LoweredModel, report: ConversionReport) -> int:
    """An estimate of the work of one image, in products: a fused pool computes its windows one by one."""
    work = _DRAWN * math.prod(lowered.input_shape)
    for operator, told in zip(lowered.operators, report.operators, strict=True):
        if isinstance(operator, BMaxPool2D):
            each = math.prod(operator.window.kernel)
        else:
            pool: Pool | None = getattr(operator, "pool", None)
            each = math.prod(operator.weights.shape[1:]) * (math.prod(pool.window.kernel) if pool else 1)
        work += math.prod(told.shape) * (each + _UNPACKED)
    return work


def _convert_zoo(name: str, output: OutputType, meaning: tuple[Any, Any], fuse: bool) -> Model:
    """The model `name` of the zoo, converted again from its trained parameters."""
    from .train import require_torch

    known = card(name)
    if meaning != (None, None):
        raise InvalidArgument(
            "bad-argument",
            f"input_scale, input_offset: {name} takes pixels as they are, 0 to 255; leave them out",
        )
    require_torch()
    from .train.export import convert_parameters

    return convert_parameters(known.parameters, known.recipe, name=known.name, output=output, fuse=fuse)


def load(path: str | os.PathLike[str]) -> Model:
    """Load a `.cbn` file, or a model that ships with the package: `zoo:NAME`.

    Raises:
        ModelFileError: it can't be read, or is no valid model; the message names the file and the field.
        InvalidArgument: `path` is no path, or the zoo has no model of that name.
    """
    if not isinstance(path, (str, os.PathLike)):
        what = type(path).__name__
        hint = (
            "; the bytes of a model go to Model.from_bytes"
            if isinstance(path, (bytes, bytearray, memoryview))
            else ""
        )
        raise InvalidArgument("bad-argument", f"`path` is {what}, expected the name of a .cbn file{hint}")
    path = resolve(path)
    try:
        data = Path(os.fsdecode(path)).read_bytes()
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise ModelFileError("not-readable", f"{path!s}: {reason}") from error
    if data[:8] == b"\x89HDF\r\n\x1a\n" or data[:4] == b"PK\x03\x04" or data[:1] == b"\x08":
        raise ModelFileError(
            "not-converted",
            f"{path} looks like a Keras, PyTorch or ONNX file: convert it first (cbin-nn convert {path} -o "
            "MODEL.cbn)",
        )
    try:
        return Model.from_bytes(data)
    except ModelFileError as error:
        raise ModelFileError(error.slug, f"{path}: {error.message}") from None


def save(model: Model, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Write a model to a `.cbn` file. See `Model.save`."""
    return model.save(path, overwrite=overwrite)
