"""The command line: the verbs of the Python API.

`--json` prints one JSON object on standard output and nothing else there. Progress goes to standard
error, and only where that is a terminal. Exit status: 0 done, 1 an error in one line (a network that can't be
converted: one line for each kind of reason), 2 wrong usage.
"""

from __future__ import annotations

import json
import os
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import click
import numpy as np
import numpy.typing as npt

from . import __version__
from .errors import CbinError, InvalidArgument
from .files import check_target
from .geometry import MAX_THREADS

__all__ = ["main"]

MODEL = click.Path(path_type=Path)
as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
report_file = click.option(
    "--report", type=MODEL, metavar="FILE", help="Write a report, too: .html (with pictures), .md or .txt."
)
force = click.option("--force", is_flag=True, help="Overwrite an output file that exists.")


def _quotient(text: str) -> float:
    """`0.5`, or `1/127.5`."""
    numerator, _, denominator = text.partition("/")
    return float(numerator) / float(denominator or 1)


class _Numbers(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """One number or fraction, or several with commas between them: one a channel."""

    name = "NUMBER[,...]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            numbers = [_quotient(part) for part in value.split(",")]
        except (ValueError, ZeroDivisionError):
            self.fail(f"{value!r} is no number, nor numbers with commas between them", param, ctx)
        return numbers[0] if len(numbers) == 1 else numbers


def input_meaning(command: Any) -> Any:
    """The options --input-scale and --input-offset."""
    command = click.option(
        "--input-offset", type=_Numbers(), help="See --input-scale; one, or one a channel.  [default: 0]"
    )(command)
    return click.option(
        "--input-scale",
        type=_Numbers(),
        help="The network saw scale * q + offset of a pixel q; one, or one a channel.  [default: 1]",
    )(command)


class _Verbs(click.Group):
    """Prints this package's errors as one line, and keeps the order of the commands."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except CbinError as error:
            _fail(ctx, error.message)
        except BrokenPipeError:
            # The reader of our output has left (`| head`): no error of ours.
            sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115
            ctx.exit(1)
        except (OSError, MemoryError, OverflowError) as error:
            _fail(ctx, f"{type(error).__name__}: {error or 'too large for this machine'}")


def _fail(ctx: click.Context, message: str) -> None:
    lines = [" ".join(line.split()) for line in message.splitlines()]
    click.echo(
        "\n".join(filter(None, [f"cbin-nn: {lines[0]}" if lines else "cbin-nn", *lines[1:]])), err=True
    )
    ctx.exit(1)


@click.group(
    cls=_Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Example: cbin-nn convert model.h5 -o model.cbn && cbin-nn inspect model.cbn",
)
@click.version_option(__version__, prog_name="cbin-nn")
def main() -> None:
    """Binarized neural networks on microcontrollers: convert, run on the host, run on a board."""


def _print(value: dict[str, Any], as_json: bool, text: str) -> None:
    click.echo(json.dumps(value) if as_json else text)


def _check_report(path: Path | None, force: bool) -> None:
    """Refuses a report that can't be written before the work that it is to show."""
    if path is not None:
        from .report import report_kind

        report_kind(path)
        check_target(path, overwrite=force)


def _load_array(argument: str, path: Path) -> npt.NDArray[Any]:
    try:
        array = np.load(path, allow_pickle=False)
    except OSError as error:
        raise InvalidArgument("not-readable", f"{argument} {path}: {error.strerror or error}") from error
    except (ValueError, EOFError, zipfile.BadZipFile, MemoryError) as error:
        reason = str(error).split("\n")[0]
        raise InvalidArgument("bad-npy", f"{argument} {path} is no .npy array: {reason}") from error
    if not isinstance(array, np.ndarray):
        raise InvalidArgument("bad-npy", f"{argument} {path} holds several arrays: save one with np.save")
    return array


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error where that is a terminal, else nothing."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@main.command(epilog="Example: cbin-nn convert model.h5 -o model.cbn --input-scale 1/127.5 --input-offset -1")
@click.argument("source", type=MODEL)
@click.option(
    "-o", "--output-file", "out", type=MODEL, required=True, metavar="MODEL.cbn", help="File to write."
)
@click.option(
    "--output",
    type=click.Choice(["i8", "i16", "i32", "f32"]),
    default="i32",
    show_default=True,
    help="Type of the last layer's output.",
)
@input_meaning
@click.option("--no-fuse", is_flag=True, help="Keep convolutions and max-pools apart where possible.")
@force
@as_json
def convert(
    source: Path,
    out: Path,
    output: str,
    input_scale: Any,
    input_offset: Any,
    no_fuse: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Convert SOURCE to a .cbn model: Larq/Keras (.h5, .keras), PyTorch (.pt2), ONNX or QONNX."""
    from .model import convert as convert_file

    check_target(out, overwrite=force)
    model = convert_file(
        source,
        output=cast(Any, output),
        input_scale=input_scale,
        input_offset=input_offset,
        fuse=not no_fuse,
    )
    model.save(out, overwrite=force)
    report = model.conversion
    assert report is not None
    value = {"model": str(out), "bytes": model.file_bytes, "sha256": model.sha256, **report.to_dict()}
    _print(value, as_json, f"{report}\n{out}: {model.file_bytes:,} bytes")


@main.command(epilog="Example: cbin-nn inspect model.cbn --report model.html")
@click.argument("model", type=MODEL)
@report_file
@force
@as_json
def inspect(model: Path, report: Path | None, force: bool, as_json: bool) -> None:
    """Show the layers of MODEL: operator, shape, MACs, flash and RAM.

    MODEL may also be a source file (.h5, .keras, .pt2, .onnx): then also what its conversion folds,
    approximates and drops.
    """
    from .report import summary

    _check_report(report, force)
    loaded = _load_or_convert(model)
    if report is not None:
        loaded.report().save(report, overwrite=force)
    value = {
        "name": loaded.name,
        "input_shape": list(loaded.input_shape),
        "output": loaded.output_dtype,
        "output_scale": loaded.output_scale,
        "classes": loaded.classes,
        "macs": loaded.macs,
        "flash": loaded.file_bytes,
        "arena": loaded.arena_bytes,
        "sha256": loaded.sha256,
        "layers": [
            {
                "name": layer.name,
                "operator": layer.operator,
                "fused_pool": layer.fused_pool,
                "output_shape": list(layer.output_shape),
                "output_dtype": layer.output_dtype,
                "macs": layer.macs,
                "flash": layer.flash,
                "output_bytes": layer.output_bytes,
                "scratch": layer.scratch,
            }
            for layer in loaded.layers
        ],
    }
    if loaded.conversion is not None:
        value["conversion"] = loaded.conversion.to_dict()
    told = "" if loaded.conversion is None else f"\n{loaded.conversion}"
    _print(value, as_json, summary(loaded) + told)


@main.command(epilog="Example: cbin-nn verify model.cbn model.h5 --images images.npy")
@click.argument("model", type=MODEL)
@click.argument("source", type=MODEL)
@click.option("--images", type=MODEL, required=True, metavar="IMAGES.npy", help="u8 [N, H, W, C].")
@click.option(
    "--engine",
    type=click.Choice(["auto", "framework", "built-in"]),
    default="auto",
    show_default=True,
    help="What runs the source.",
)
@input_meaning
@as_json
def verify(
    model: Path,
    source: Path,
    images: Path,
    engine: str,
    input_scale: Any,
    input_offset: Any,
    as_json: bool,
) -> None:
    """Compare MODEL with the SOURCE that it was converted from, layer by layer.

    The reading of SOURCE is judged by its framework, the conversion by exact arithmetic. Exit
    status 1 where either differs beyond near-ties and stated bounds, or can't be judged.
    """
    from .model import load
    from .verification import verify as run_verify

    report = run_verify(
        load(model),
        source,
        _load_array("images", images),
        engine=cast(Any, engine),
        input_scale=input_scale,
        input_offset=input_offset,
    )
    _print(report.to_dict(), as_json, str(report))
    if not report.exact:
        click.get_current_context().exit(1)


@main.command(epilog="Example: cbin-nn run model.cbn images.npy -o logits.npy")
@click.argument("model", type=MODEL)
@click.argument("images", type=MODEL)
@click.option(
    "-o", "--output-file", "out", type=MODEL, required=True, metavar="OUT.npy", help="File to write."
)
@click.option("--dequantize", is_flag=True, help="Write float32 logits instead of integers.")
@click.option("--threads", type=click.IntRange(1, MAX_THREADS), help="Threads to use.  [default: one a core]")
@force
@as_json
def run(
    model: Path, images: Path, out: Path, dequantize: bool, threads: int | None, force: bool, as_json: bool
) -> None:
    """Run MODEL on IMAGES, a .npy file of u8 [N, H, W, C], on the host."""
    import io

    from .files import write_atomically
    from .model import load

    check_target(out, overwrite=force)
    loaded = load(model)
    outputs = loaded.run(_load_array("images", images), threads=threads, dequantize=dequantize)
    buffer = io.BytesIO()
    np.save(buffer, outputs)
    write_atomically(out, buffer.getvalue(), overwrite=force)
    value = {"output": str(out), "shape": list(outputs.shape), "dtype": str(outputs.dtype)}
    _print(value, as_json, f"{out}: {outputs.dtype} {list(outputs.shape)}")


@main.command("eval", epilog="Example: cbin-nn eval model.cbn --data cifar-10-batches-bin")
@click.argument("model", type=MODEL)
@click.option(
    "--data", type=MODEL, metavar="DIR", help="Folder of CIFAR-10.  [default: the variable CBIN_NN_DATA]"
)
@click.option(
    "--images", type=MODEL, metavar="IMAGES.npy", help="Instead: u8 [N, H, W, C], mapped, of any length."
)
@click.option("--labels", type=MODEL, metavar="L.npy", help="Integers [N]; with --images.")
@click.option("--threads", type=click.IntRange(1, MAX_THREADS), help="Threads to use.  [default: one a core]")
@as_json
def evaluate(
    model: Path,
    data: Path | None,
    images: Path | None,
    labels: Path | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Accuracy of MODEL on CIFAR-10's test split, or on labelled images, on the host."""
    from .model import load

    if (images is None) != (labels is None) or (images is not None and data is not None):
        raise click.UsageError("give --images and --labels together, or --data")
    loaded = load(model)
    if loaded.output_dtype == "bits":
        raise InvalidArgument(
            "no-classes", f"{model} ends in packed bits, not in a number for each class: nothing to evaluate"
        )
    pictures: Any = images
    truth: Any = labels
    if images is None:
        from .data import cifar10

        pictures, truth = cifar10(data)
    with _progress("images") as progress:
        result = loaded.evaluate(pictures, truth, threads=threads, progress=progress)
    value = {
        "accuracy": result.accuracy,
        "images": result.images,
        "images_per_second": result.images_per_second,
        "kernels": loaded.kernels,
    }
    _print(value, as_json, str(result))


#: The options of the commands that open a board.
_BOARD_OPTIONS = [
    click.option("--board", default="qemu-mps2-an500", show_default=True, help="A name of `cbin-nn boards`."),
    click.option(
        "--probe",
        metavar="SELECTOR",
        help="Debug probe, as `cbin-nn probes` lists it.  [default: the only one]",
    ),
    click.option("--speed", "speed_khz", type=click.IntRange(1, 100_000), metavar="KHZ", help="Its clock."),
    click.option("--under-reset", is_flag=True, help="Attach while the chip is held in reset."),
    click.option(
        "--timeout",
        type=click.FloatRange(min=0.0),
        metavar="SECONDS",
        help="How long board and probe may be silent.",
    ),
]


def _board_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_BOARD_OPTIONS):
        command = option(command)
    return command


@main.command(
    epilog="Example: cbin-nn bench model.cbn --board qemu-mps2-an500 --images images.npy --count 20"
)
@click.argument("model", type=MODEL)
@_board_options
@click.option("--images", type=MODEL, metavar="IMAGES.npy", help="u8 [N, H, W, C].  [default: drawn images]")
@click.option("--labels", type=MODEL, metavar="L.npy", help="Integers [N], for the accuracy.")
@click.option("--count", type=click.IntRange(1, 1_000_000), help="Use only the first COUNT images.")
@report_file
@force
@as_json
def bench(
    model: Path,
    board: str,
    probe: str | None,
    speed_khz: int | None,
    under_reset: bool,
    timeout: float | None,
    images: Path | None,
    labels: Path | None,
    count: int | None,
    report: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Run MODEL on a board; compare each output with the host's, and count by layer.

    MODEL may also be a source file (.h5, .keras, .pt2, .onnx): it is converted first.
    """
    from .deploy import bench as run_bench

    _check_report(report, force)
    loaded = _load_or_convert(model)
    truth = None if labels is None else _load_array("labels", labels)
    pictures = None if images is None else _load_array("images", images)
    with _progress(board) as progress:
        result = run_bench(
            loaded,
            board,
            pictures,
            labels=truth,
            count=count,
            probe=probe,
            speed_khz=speed_khz,
            under_reset=under_reset,
            timeout=timeout,
            progress=progress,
            flash_progress=lambda step, operation, done, total: progress(done, total),
        )
    if report is not None:
        loaded.report(result).save(report, overwrite=force)
    _print(result.to_dict(), as_json, str(result))


@main.command(epilog="Example: cbin-nn flash model.cbn --board stm32f746g-disco")
@click.argument("model", type=MODEL)
@_board_options
@as_json
def flash(
    model: Path,
    board: str,
    probe: str | None,
    speed_khz: int | None,
    under_reset: bool,
    timeout: float | None,
    as_json: bool,
) -> None:
    """Write MODEL to a board, with the runner where another one is there.

    MODEL may also be a source file (.h5, .keras): it is converted first.
    """
    from .deploy import flash as flash_board

    loaded = _load_or_convert(model)
    with _progress(board) as progress:
        report = flash_board(
            loaded,
            board,
            probe=probe,
            speed_khz=speed_khz,
            under_reset=under_reset,
            timeout=timeout,
            flash_progress=lambda step, operation, done, total: progress(done, total),
        )
    did = "written" if report.written else "unchanged: the board held it already"
    text = f"{report.board}: model {report.model_sha256[:12]} {did}; runner {report.runner_version}"
    _print(asdict(report), as_json, text)


@main.command(epilog="Example: cbin-nn probes")
@as_json
def probes(as_json: bool) -> None:
    """List the debug probes that are connected."""
    from .deploy import probes as connected
    from .report import text_table

    found = connected()
    rows = [
        [probe.selector, probe.name, "yes" if probe.accessible else "no: see docs/boards.md"]
        for probe in found
    ]
    table = text_table(["Probe", "What it is", "Usable"], rows) if rows else "no debug probe is connected"
    _print({"probes": [asdict(probe) for probe in found]}, as_json, table)


def _load_or_convert(path: Path) -> Any:
    from .model import convert as convert_file
    from .model import load

    try:
        return load(path)
    except CbinError as error:
        if error.slug != "not-converted":
            raise
    return convert_file(path)


@main.command(epilog="Example: cbin-nn boards --json")
@as_json
def boards(as_json: bool) -> None:
    """List the boards."""
    from .deploy import boards as known_boards
    from .report import text_table

    known = known_boards()
    value = {
        "boards": [
            {
                "name": board.name,
                "description": board.description,
                "core": board.core,
                "clock_hz": board.clock_hz,
                "needs": board.needs,
                "simulated": board.simulated,
            }
            for board in known
        ]
    }
    rows = [[board.name, board.core, board.description, board.needs] for board in known]
    _print(value, as_json, text_table(["Board", "Core", "What it is", "Needs"], rows))


@main.command(epilog="Example: cbin-nn zoo smallcifar")
@click.argument("name", required=False)
@as_json
def zoo(name: str | None, as_json: bool) -> None:
    """List the models that ship with the package, or show the card of NAME.

    Wherever a MODEL is expected, zoo:NAME is one.
    """
    from . import zoo as models
    from .report import text_table

    cards = [models.card(n) for n in models.names()] if name is None else [models.card(name)]
    if name is not None:
        _print(cards[0].to_dict(), as_json, str(cards[0]))
        return
    rows = [[f"{models.PREFIX}{c.name}", f"{c.accuracy:.2%}", c.description] for c in cards]
    value = {"models": [c.to_dict() for c in cards]}
    _print(value, as_json, text_table(["Model", "Accuracy", "What it is"], rows))


@main.command(epilog="Example: cbin-nn train smallcifar --data cifar-10-batches-bin -o runs/smallcifar")
@click.argument("name")
@click.option(
    "--data", type=MODEL, metavar="DIR", help="Folder of CIFAR-10.  [default: the variable CBIN_NN_DATA]"
)
@click.option(
    "-o", "--output-dir", "out", type=MODEL, metavar="RUN", help="Folder of the run.  [default: runs/NAME]"
)
@click.option("--recipe", "recipe_file", type=MODEL, metavar="FILE", help="A recipe in JSON, not NAME's own.")
@click.option("--set", "changes", multiple=True, metavar="FIELD=VALUE", help="Change a field of the recipe.")
@click.option("--until", type=click.IntRange(1), help="Stop after this epoch; the same command goes on.")
@click.option(
    "--teacher-epochs", type=click.IntRange(1), default=7, show_default=True, help="Of the float teacher."
)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Of torch, on the CPU.")
@as_json
def train(
    name: str,
    data: Path | None,
    out: Path | None,
    recipe_file: Path | None,
    changes: tuple[str, ...],
    until: int | None,
    teacher_epochs: int,
    threads: int,
    as_json: bool,
) -> None:
    """Train the network NAME on CIFAR-10's training split, and convert it to RUN/NAME.cbn.

    A run that was stopped goes on where it was. Only the training split is read; RUN/log.csv has a
    row an epoch. Under torchrun, each process takes its share of every batch.
    """
    from .data import cifar10
    from .train import require_torch
    from .train.command import read_changes, run

    require_torch()
    images, labels = cifar10(data, "train")
    with _progress(name) as progress:
        result = run(
            name,
            images,
            labels,
            out or Path("runs") / name,
            recipe_file=recipe_file,
            changes=read_changes(changes),
            until=until,
            teacher_epochs=teacher_epochs,
            threads=threads,
            progress=progress,
        )
    if result is not None:
        _print(result.to_dict(), as_json, str(result))
