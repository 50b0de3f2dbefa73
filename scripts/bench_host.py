"""Images a second on this machine: ours beside what else runs the same network, in one run.

    python scripts/bench_host.py [--model FILE.h5] [--data DIR] [--python ENGINE=PATH ...] [--record DIR]

The network is a sequential Larq model. Ours is what `cbin_nn.convert` makes of it; the others get it as
float32, with the weights' signs taken beforehand: ONNX (built here, node by node) for onnxruntime,
functions for torch, the file itself for Keras, and the converted file for Larq Compute Engine. Each engine
runs in a process of its own, which an interpreter of its own may serve (`--python torch=.venv-
torch/bin/python`); one that can't be imported is left out and named. Images are handed over as each engine
likes them best, before the clock starts.

Every engine first tries its batch sizes on a part of the images. Then all engines take turns, round by
round, each with its best batch size on all images (a slow one on the first of them), while the others wait:
a ratio comes from one round, and the table shows the median of the rounds. Latencies are medians of single
images. The processor time of an image tells how far other programs have disturbed the run: with one thread
it is the inverse of images/s on an idle machine.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
#: Images of the search for the best batch size.
TRIAL = 1024
ROUNDS = 5
LATENCIES = 300
#: A turn of a slow engine takes this long, on the first of the images; the others run all of them.
SECONDS = 3

Runner = Callable[[Any], Any]


def layers_of(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The layers of a sequential Larq model, weights among their values."""
    import h5py

    layers = []
    with h5py.File(path) as file:
        for layer in json.loads(file.attrs["model_config"])["config"]["layers"]:
            kind, config = layer["class_name"], layer["config"]
            values: dict[str, Any] = {"config": config}
            group = file["model_weights"].get(config["name"])
            if group is not None:
                for name in group.attrs["weight_names"]:
                    name = name if isinstance(name, str) else name.decode()
                    values[name.split("/")[-1].split(":")[0]] = group[name][()]
            layers.append((kind, values))
    return layers


def sign(x: np.ndarray) -> np.ndarray:
    """+1 where x >= 0, else -1."""
    return np.where(x >= 0, np.float32(1), np.float32(-1))


def channels_first(values: np.ndarray) -> np.ndarray:
    """HWC parameters as CHW."""
    return np.ascontiguousarray(np.transpose(values, (2, 0, 1)))


def dense_channels_first(kernel: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Rows of a dense kernel from HWC order to CHW order."""
    height, width, channels = shape
    return kernel.reshape(height, width, channels, -1).transpose(2, 0, 1, 3).reshape(kernel.shape)


def build_onnx(layers: list[tuple[str, dict[str, Any]]], shape: tuple[int, int, int], path: Path) -> None:
    """Write the network as float32 ONNX, channels first, with a free batch size."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes: list[Any] = []
    constants: list[Any] = []

    def constant(values: np.ndarray) -> str:
        name = f"c{len(constants)}"
        constants.append(numpy_helper.from_array(np.asarray(values, np.float32), name))
        return name

    def node(kind: str, *inputs: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, list(inputs), [f"t{len(nodes)}"], **attributes))
        return f"t{len(nodes) - 1}"

    plus, minus, zero = constant(np.float32(1)), constant(np.float32(-1)), constant(np.float32(0))
    at = "images"
    height, width, channels = shape
    for kind, values in layers:
        config = values["config"]
        if config.get("input_quantizer") is not None:
            at = node("Where", node("GreaterOrEqual", at, zero), plus, minus)
        if kind == "QuantConv2D":
            weights = constant(sign(values["kernel"]).transpose(3, 2, 0, 1))
            auto = "SAME_UPPER" if config["padding"] == "same" else "VALID"
            at = node("Conv", at, weights, auto_pad=auto, strides=config["strides"])
            if config["padding"] != "same":
                height, width = (
                    n - k + 1 for n, k in zip((height, width), config["kernel_size"], strict=True)
                )
            channels = config["filters"]
        elif kind == "QuantDense":
            kernel = dense_channels_first(sign(values["kernel"]), (height, width, channels))
            at = node("Gemm", at, constant(kernel))
        elif kind == "PReLU":
            alpha = values["alpha"]
            at = node("PRelu", at, constant(channels_first(alpha) if alpha.ndim == 3 else alpha))
        elif kind == "BatchNormalization":
            ones = np.ones_like(values["moving_mean"])
            parts = [values.get("gamma", ones), values.get("beta", 0 * ones)]
            parts += [values["moving_mean"], values["moving_variance"]]
            at = node("BatchNormalization", at, *map(constant, parts), epsilon=config["epsilon"])
        elif kind == "MaxPooling2D":
            at = node("MaxPool", at, kernel_shape=config["pool_size"], strides=config["strides"])
            height, width = (n // p for n, p in zip((height, width), config["pool_size"], strict=True))
        elif kind == "Flatten":
            at = node("Flatten", at)
        elif kind not in ("InputLayer", "Activation"):
            raise SystemExit(f"bench_host: no float network is built for a layer {kind}")
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", shape[2], *shape[:2]])
    output = helper.make_tensor_value_info(at, TensorProto.FLOAT, ["N", None])
    graph = helper.make_graph(nodes, "network", [images], [output], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)


# ------------------------------------------------------------------------------------------------
# Engines: each gives, for a number of threads, its version, its batch sizes and a function of the images


def ours(folder: Path, threads: int) -> tuple[str, list[int], Runner, Any]:
    """This package."""
    import cbin_nn

    model = cbin_nn.load(folder / "model.cbn")
    images = np.load(folder / "images.npy")
    version = f"cbin-nn {cbin_nn.__version__}, {model.kernels}"
    return version, [0], lambda x: model.run(x, threads=threads), images


def onnxruntime(folder: Path, threads: int) -> tuple[str, list[int], Runner, Any]:
    """ONNX Runtime on the float network."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = ort.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    images = np.ascontiguousarray(np.load(folder / "images.npy").transpose(0, 3, 1, 2), np.float32)
    version = f"onnxruntime {ort.__version__}"
    return version, [1, 16, 64, 256, 1024], lambda x: session.run(None, {"images": x})[0], images


def torch(folder: Path, threads: int) -> tuple[str, list[int], Runner, Any]:
    """PyTorch on the float network, channels last in memory."""
    import torch

    torch.set_num_threads(threads)
    network = json.loads((folder / "network.json").read_text())
    tensors = {name: torch.from_numpy(values) for name, values in np.load(folder / "network.npz").items()}
    functional = torch.nn.functional

    @torch.inference_mode()
    def run(x: Any) -> Any:
        for kind, name, config in network:
            if config.get("input_quantizer") is not None:
                x = torch.where(x >= 0, 1.0, -1.0)
            if kind == "QuantConv2D":
                x = functional.conv2d(
                    x, tensors[f"{name}.kernel"], None, config["strides"], config["padding"]
                )
            elif kind == "QuantDense":
                x = x @ tensors[f"{name}.kernel"]
            elif kind == "PReLU":
                x = torch.where(x >= 0, x, x * tensors[f"{name}.alpha"])
            elif kind == "BatchNormalization":
                parts = [
                    tensors.get(f"{name}.{p}") for p in ("moving_mean", "moving_variance", "gamma", "beta")
                ]
                x = functional.batch_norm(x, *parts, False, 0.0, config["epsilon"])
            elif kind == "MaxPooling2D":
                x = functional.max_pool2d(x, config["pool_size"], config["strides"])
            elif kind == "Flatten":
                x = x.flatten(1)
        return x.numpy()

    images = torch.from_numpy(np.load(folder / "images.npy").transpose(0, 3, 1, 2).astype(np.float32))
    images = images.contiguous(memory_format=torch.channels_last)
    return f"torch {torch.__version__}", [1, 16, 64, 256, 1024], run, images


def keras(folder: Path, threads: int) -> tuple[str, list[int], Runner, Any]:
    """Larq on Keras on TensorFlow: the layers' own code, as one compiled function."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import larq
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    with larq.context.quantized_scope(True):
        model = tf.keras.models.load_model(folder / "model.h5", compile=False)
    function = tf.function(lambda x: model(x, training=False), reduce_retracing=True)
    images = tf.constant(np.load(folder / "images.npy").astype(np.float32))
    version = f"larq {larq.__version__} on tensorflow {tf.__version__}"
    return version, [64, 256, 1024], lambda x: function(x).numpy(), images


def larq_compute_engine(folder: Path, threads: int) -> tuple[str, list[int], Runner, Any]:
    """Larq Compute Engine's interpreter, an image at a time: its model has a fixed batch size."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import larq
    import larq_compute_engine as lce
    import tensorflow as tf
    from larq_compute_engine.tflite.python.interpreter import Interpreter

    with larq.context.quantized_scope(True):
        model = tf.keras.models.load_model(folder / "model.h5", compile=False)
    interpreter = Interpreter(lce.convert_keras_model(model), num_threads=threads)
    images = np.load(folder / "images.npy").astype(np.float32)
    version = f"larq-compute-engine {importlib.metadata.version('larq-compute-engine')}"
    return version, [1], lambda x: interpreter.predict(x), images


ENGINES = {
    "cbin-nn": ours,
    "onnxruntime": onnxruntime,
    "torch": torch,
    "keras": keras,
    "larq-compute-engine": larq_compute_engine,
}


def serve(engine: str, folder: Path, threads: int) -> None:
    """A worker: one line of JSON for each command on standard input."""
    # What the libraries print goes elsewhere.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    version, sizes, run, images = ENGINES[engine](folder, threads)
    count = len(images)

    def answer(value: dict[str, Any]) -> None:
        print(json.dumps(value), file=answers, flush=True)

    def whole(size: int, limit: int) -> list[Any]:
        step = size or limit
        return [run(images[at : min(at + step, limit)]) for at in range(0, limit, step)]

    answer({"version": version, "sizes": sizes, "images": count})
    for line in sys.stdin:
        command = json.loads(line)
        if command["do"] == "batch":
            limit = min(command["limit"], count)
            start, busy = time.perf_counter(), time.process_time()
            outputs = whole(command["size"], limit)
            seconds, busy = time.perf_counter() - start, time.process_time() - busy
            classes = np.concatenate(outputs).argmax(axis=1)
            answer({"seconds": seconds, "busy": busy, "images": limit, "classes": classes.tolist()})
        else:
            one, times = images[:1], []
            for _ in range(command["repeat"]):
                start = time.perf_counter()
                run(one)
                times.append(time.perf_counter() - start)
            answer({"latency": statistics.median(times)})


class Worker:
    """One engine with a number of threads, in a process of its own."""

    def __init__(self, engine: str, python: str, folder: Path, threads: int) -> None:
        self.engine, self.threads, self.size, self.limit = engine, threads, 0, 0
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TF_CPP_MIN_LOG_LEVEL": "3"}
        environment["PYTHONPATH"] = str(ROOT / "python")
        command = [python, __file__, "--serve", engine, "--folder", str(folder), "--threads", str(threads)]
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=environment,
        )
        self.hello = self.read()

    def read(self) -> dict[str, Any]:
        """The next answer; raises RuntimeError with the last line of what the engine printed."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.log.seek(0)
            lines = [text.strip() for text in self.log.read().splitlines() if text.strip()]
            raise RuntimeError(lines[-1] if lines else f"status {self.process.returncode}")
        value: dict[str, Any] = json.loads(line)
        return value

    def ask(self, **command: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return self.read()

    def tune(self) -> None:
        """Find the best batch size."""
        rates = {}
        for size in self.hello["sizes"]:
            self.ask(do="batch", size=size, limit=64)
            trial = self.ask(do="batch", size=size, limit=TRIAL)
            rates[size] = trial["images"] / trial["seconds"]
        self.size = max(rates, key=lambda size: rates[size])
        self.limit = max(TRIAL, int(rates[self.size] * SECONDS))

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()


# ------------------------------------------------------------------------------------------------
# The run


def images_for(data: Path | None, shape: tuple[int, int, int]) -> tuple[np.ndarray, str]:
    """CIFAR-10's test images, or drawn ones repeated where there is no such folder."""
    from cbin_nn.data import cifar10
    from cbin_nn.errors import DataError
    from cbin_nn.images import draw_images

    if shape == (32, 32, 3):
        with contextlib.suppress(DataError):
            return cifar10(data)[0], "CIFAR-10's test images"
    drawn = draw_images(200, *shape[:2], channels=shape[2])
    return np.tile(drawn, (50, 1, 1, 1)), "200 drawn images, 50 times"


def prepare(source: Path, data: Path | None, folder: Path) -> str:
    """Write what the engines read; says what the images are."""
    import cbin_nn

    model = cbin_nn.convert(source)
    model.save(folder / "model.cbn")
    images, what = images_for(data, model.input_shape)
    np.save(folder / "images.npy", images)
    (folder / "model.h5").write_bytes(source.read_bytes())
    layers = layers_of(source)
    with contextlib.suppress(ImportError):
        build_onnx(layers, model.input_shape, folder / "model.onnx")
    network, tensors = [], {}
    shape = model.input_shape
    for kind, values in layers:
        name = values["config"]["name"]
        network.append((kind, name, values["config"]))
        for part, value in values.items():
            if part == "config":
                continue
            if kind == "QuantConv2D":
                value, shape = sign(value).transpose(3, 2, 0, 1), (0, 0, value.shape[3])
            elif kind == "QuantDense":
                side = round((value.shape[0] / shape[2]) ** 0.5)
                value = dense_channels_first(sign(value), (side, side, shape[2]))
            elif part == "alpha" and value.ndim == 3:
                value = channels_first(value)
            tensors[f"{name}.{part}"] = np.ascontiguousarray(value, np.float32)
    (folder / "network.json").write_text(json.dumps(network))
    np.savez(folder / "network.npz", **tensors)
    return what


def processor() -> tuple[str, list[str]]:
    """The CPU's name and those of its features that kernels here look at."""
    known = ["avx2", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_vpopcntdq", "asimd", "asimddp"]
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine(), []
    fields = dict((part.strip() for part in line.split(":", 1)) for line in text.splitlines() if ":" in line)
    has = (fields.get("flags") or fields.get("Features") or "").split()
    return fields.get("model name", platform.machine()), [feature for feature in known if feature in has]


def start(pythons: dict[str, str], folder: Path, threads: list[int]) -> tuple[list[Worker], dict[str, str]]:
    """The engines that are there, tuned, and why the others are not."""
    workers: list[Worker] = []
    missing: dict[str, str] = {}
    for engine in ENGINES:
        for count in threads:
            if engine in missing:
                continue
            try:
                worker = Worker(engine, pythons.get(engine, pythons["*"]), folder, count)
                worker.tune()
                workers.append(worker)
            except RuntimeError as error:
                missing[engine] = str(error)
    return workers, missing


def measure(workers: list[Worker], count: int, rounds: int) -> list[dict[str, Any]]:
    """One row a worker: rates and ratios to ours with as many threads, medians of the rounds."""
    rates: list[list[float]] = [[] for _ in workers]
    latencies: list[list[float]] = [[] for _ in workers]
    busy: list[list[float]] = [[] for _ in workers]
    classes: list[Any] = [None] * len(workers)
    for _ in range(rounds):
        for at, worker in enumerate(workers):
            batch = worker.ask(do="batch", size=worker.size, limit=min(count, worker.limit))
            rates[at].append(batch["images"] / batch["seconds"])
            busy[at].append(batch["busy"] / batch["images"])
            classes[at] = np.array(batch["classes"])
            latencies[at].append(worker.ask(do="one", repeat=LATENCIES)["latency"])
    ours_at = {worker.threads: at for at, worker in enumerate(workers) if worker.engine == "cbin-nn"}
    rows = []
    for at, worker in enumerate(workers):
        mine = ours_at[worker.threads]
        ratios = [a / b for a, b in zip(rates[mine], rates[at], strict=True)]
        latency_ratios = [b / a for a, b in zip(latencies[mine], latencies[at], strict=True)]
        rows.append(
            {
                "engine": worker.engine,
                "version": worker.hello["version"],
                "threads": worker.threads,
                "batch": worker.size or count,
                "images_per_second": statistics.median(rates[at]),
                "ours_is_faster_by": statistics.median(ratios),
                "processor_us": 1e6 * statistics.median(busy[at]),
                "latency_us": 1e6 * statistics.median(latencies[at]),
                "our_latency_is_shorter_by": statistics.median(latency_ratios),
                "same_class": float((classes[at] == classes[mine][: len(classes[at])]).mean()),
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    head = "| engine | threads | batch | images/s | ours, times | processor, us/image | latency, us "
    lines = [head + "| ours, times | same class |", "|---|--:|--:|--:|--:|--:|--:|--:|--:|"]
    for row in rows:
        lines.append(
            f"| {row['version']} | {row['threads']} | {row['batch']} | {row['images_per_second']:,.0f} | "
            f"{row['ours_is_faster_by']:.1f} | {row['processor_us']:,.1f} | {row['latency_us']:,.0f} | "
            f"{row['our_latency_is_shorter_by']:.1f} | {row['same_class']:.2%} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Run the benchmark, or serve as one of its workers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=ROOT / "tests" / "fixtures" / "smallcifar.h5")
    parser.add_argument("--data", type=Path, help="folder of CIFAR-10")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--python", action="append", default=[], metavar="ENGINE=PATH")
    parser.add_argument("--record", type=Path, help="folder for a dated copy of the figures")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.folder, options.threads)
        return 0
    pythons = {"*": sys.executable, **dict(item.split("=", 1) for item in options.python)}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = sorted({1, cores})
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        images = prepare(options.model, options.data, folder)
        workers, missing = start(pythons, folder, threads)
        try:
            rows = measure(workers, len(np.load(folder / "images.npy", mmap_mode="r")), options.rounds)
        finally:
            for worker in workers:
                worker.close()
    name, features = processor()
    mine = [row["images_per_second"] for row in rows if row["engine"] == "cbin-nn"]
    lines = [
        f"{options.model.name}, {images}; {options.rounds} rounds, medians",
        f"CPU: {name}, {cores} cores; {' '.join(features) or 'features unknown'}",
        f"Load before the run: {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "",
        "",
        table(rows),
        "",
    ]
    others = [row for row in rows if row["engine"] == "onnxruntime"]
    if others:
        best = max(others, key=lambda row: row["images_per_second"])
        lines.append(
            f"Ours to onnxruntime's best setting: {max(mine) / best['images_per_second']:.1f} times."
        )
        shortest = min(row["latency_us"] for row in others)
        ours_shortest = min(row["latency_us"] for row in rows if row["engine"] == "cbin-nn")
        lines.append(
            f"Latency of one image: {shortest / ours_shortest:.1f} times shorter than onnxruntime's shortest."
        )
    lines.append(f"{threads[-1]} threads to 1: {mine[-1] / mine[0]:.2f} times.")
    lines += [f"Left out: {engine} ({why})" for engine, why in missing.items()]
    text = "\n".join(lines)
    value = {
        "cpu": name,
        "features": features,
        "cores": cores,
        "images": images,
        "rows": rows,
        "missing": missing,
    }
    print(json.dumps(value) if options.json else text)
    if options.record:
        today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
        command = "python scripts/" + " ".join([Path(__file__).name, "--model", options.model.name])
        path = options.record / f"{today}-host-{options.model.stem}.md"
        path.write_text(f"# Host, {today}\n\n    {command}\n\n{text}\n")
        print(f"Recorded in {path}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
