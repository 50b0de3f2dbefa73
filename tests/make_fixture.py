"""Writes the committed fixtures; needs no TensorFlow.

    python tests/make_fixture.py                                   tiny.h5, tiny.keras, images and predictions
    python tests/make_fixture.py --smallcifar smallcifar_prelu.h5  also smallcifar.h5, reduced from that file

`tiny` has the layout that Keras 2.15 with Larq 0.14 writes, with everything that is awkward about it: PReLU
before and after the pool, negative and zero gammas, a missing gamma, quantizers as records, strings and null.
`smallcifar` is a trained network without its optimizer, its kernels stored as int8 signs.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

FIXTURES = Path(__file__).resolve().parent / "fixtures"
SEED = 20240229


def keras_layer(
    class_name: str, package: str, name: str, build: list[Any] | None = None, **config: Any
) -> dict[str, Any]:
    """One entry of `config.layers` as Keras 2.15 writes it."""
    base = {"name": name, "trainable": True, "dtype": "float32"}
    layer: dict[str, Any] = {
        "module": package,
        "class_name": class_name,
        "config": {**base, **config},
        "registered_name": class_name if package.startswith("larq") else None,
    }
    if build is not None:
        layer["build_config"] = {"input_shape": build}
    return layer


def quantizer(name: str, build: list[Any]) -> dict[str, Any]:
    """A quantizer with the nested build_config that Keras 2.15 adds."""
    return {
        "module": "larq.quantizers",
        "class_name": "SteSign",
        "config": {"name": name, "trainable": True, "dtype": "float32", "clip_value": 1.0},
        "registered_name": "SteSign",
        "build_config": {"input_shape": build},
    }


def conv(
    name: str,
    filters: int,
    kernel: int,
    build: list[Any],
    input_quantizer: Any,
    kernel_quantizer: Any,
    **more: Any,
) -> dict[str, Any]:
    return keras_layer(
        "QuantConv2D",
        "larq.layers",
        name,
        build,
        filters=filters,
        kernel_size=[kernel, kernel],
        strides=[1, 1],
        padding="same",
        data_format="channels_last",
        dilation_rate=[1, 1],
        groups=1,
        activation="linear",
        use_bias=False,
        pad_values=0.0,
        input_quantizer=input_quantizer,
        kernel_quantizer=kernel_quantizer,
        **more,
    )


def batch_norm(name: str, build: list[Any], scale: bool = True) -> dict[str, Any]:
    return keras_layer(
        "BatchNormalization",
        "keras.layers",
        name,
        build,
        axis=[len(build) - 1],
        momentum=0.99,
        epsilon=0.001,
        center=True,
        scale=scale,
    )


def pool(name: str, build: list[Any]) -> dict[str, Any]:
    return keras_layer(
        "MaxPooling2D",
        "keras.layers",
        name,
        build,
        pool_size=[2, 2],
        padding="valid",
        strides=[2, 2],
        data_format="channels_last",
    )


Weights = list[tuple[str, dict[str, np.ndarray]]]


def tiny() -> tuple[dict[str, Any], Weights]:
    """(config of the model, weights by layer in order)."""
    rng = np.random.default_rng(SEED)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    def latent(*shape: int) -> np.ndarray:
        return rng.uniform(-1, 1, shape).astype(np.float32)

    n = None
    layers = [
        {
            "module": "keras.layers",
            "class_name": "InputLayer",
            "config": {
                "batch_input_shape": [n, 12, 12, 3],
                "dtype": "float32",
                "sparse": False,
                "ragged": False,
                "name": "conv_1_input",
            },
            "registered_name": None,
        },
        conv(
            "conv_1",
            16,
            3,
            [n, 12, 12, 3],
            None,
            quantizer("ste_sign", [3, 3, 3, 16]),
            batch_input_shape=[n, 12, 12, 3],
        ),
        keras_layer("PReLU", "keras.layers", "prelu_1", [n, 12, 12, 16], shared_axes=[1, 2]),
        batch_norm("norm_1", [n, 12, 12, 16]),
        pool("pool_1", [n, 12, 12, 16]),
        conv("conv_2", 40, 3, [n, 6, 6, 16], quantizer("ste_sign_2", [n, 6, 6, 16]), "ste_sign"),
        pool("pool_2", [n, 6, 6, 40]),
        keras_layer("PReLU", "keras.layers", "prelu_2", [n, 3, 3, 40], shared_axes=[1, 2]),
        batch_norm("norm_2", [n, 3, 3, 40]),
        keras_layer("Flatten", "keras.layers", "flatten", [n, 3, 3, 40], data_format="channels_last"),
        keras_layer(
            "QuantDense",
            "larq.layers",
            "dense",
            [n, 360],
            units=10,
            activation="linear",
            use_bias=False,
            input_quantizer=quantizer("ste_sign_4", [n, 360]),
            kernel_quantizer=quantizer("ste_sign_3", [360, 10]),
        ),
        batch_norm("norm_3", [n, 10], scale=False),
        keras_layer("Activation", "keras.layers", "softmax", [n, 10], activation="softmax"),
    ]
    gamma_1, gamma_2 = normal(16), normal(40)
    gamma_1[3], gamma_2[5] = 0, 0
    weights: Weights = [
        ("conv_1", {"kernel": latent(3, 3, 3, 16)}),
        ("prelu_1", {"alpha": (0.5 * normal(1, 1, 16))}),
        (
            "norm_1",
            {
                "gamma": gamma_1,
                "beta": 0.3 * normal(16),
                "moving_mean": 300 * normal(16),
                "moving_variance": 2e5 * rng.uniform(0.5, 2, 16).astype(np.float32),
            },
        ),
        ("conv_2", {"kernel": latent(3, 3, 16, 40)}),
        ("prelu_2", {"alpha": (0.5 * normal(1, 1, 40))}),
        (
            "norm_2",
            {
                "gamma": gamma_2,
                "beta": 0.3 * normal(40),
                "moving_mean": 8 + 6 * normal(40),
                "moving_variance": 100 * rng.uniform(0.5, 2, 40).astype(np.float32),
            },
        ),
        ("dense", {"kernel": latent(360, 10)}),
        (
            "norm_3",
            {
                "beta": 0.3 * normal(10),
                "moving_mean": 9 * normal(10),
                "moving_variance": 300 * rng.uniform(0.5, 2, 10).astype(np.float32),
            },
        ),
    ]
    weights = [
        (layer, {k: np.asarray(v, np.float32) for k, v in arrays.items()}) for layer, arrays in weights
    ]
    return {"name": "tiny", "layers": layers}, weights


def write_hdf5(path: Path, config: dict[str, Any], weights: Weights, compress: bool = False) -> None:
    """The `.h5` container of Keras 2.15."""
    by_name = dict(weights)
    names = [layer["config"]["name"] for layer in config["layers"] if layer["class_name"] != "InputLayer"]
    with h5py.File(path, "w", track_order=False) as file:
        file.attrs["backend"] = "tensorflow"
        file.attrs["keras_version"] = "2.15.0"
        file.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": config})
        root = file.create_group("model_weights")
        root.attrs["backend"] = "tensorflow"
        root.attrs["keras_version"] = "2.15.0"
        root.attrs["layer_names"] = np.array([name.encode() for name in names])
        for name in names:
            group = root.create_group(name)
            arrays = by_name.get(name, {})
            group.attrs["weight_names"] = np.array([f"{name}/{leaf}:0".encode() for leaf in arrays])
            for leaf, array in arrays.items():
                options = (
                    {"compression": "gzip", "compression_opts": 9} if compress and array.size > 500 else {}
                )
                group.create_dataset(f"{name}/{leaf}:0", data=array, track_times=False, **options)
        root.create_group("top_level_model_weights").attrs["weight_names"] = np.array([], "S1")


def write_archive(path: Path, config: dict[str, Any], weights: Weights) -> None:
    """The `.keras` container of Keras 2.15: groups by snake-case class and count; layer names are not
    used."""
    snake = {
        "QuantConv2D": "quant_conv2d",
        "PReLU": "p_re_lu",
        "BatchNormalization": "batch_normalization",
        "MaxPooling2D": "max_pooling2d",
        "Flatten": "flatten",
        "QuantDense": "quant_dense",
        "Activation": "activation",
    }
    by_name = dict(weights)
    buffer = io.BytesIO()
    counts: dict[str, int] = {}
    with h5py.File(buffer, "w", track_order=False) as file:
        for layer in config["layers"]:
            if layer["class_name"] == "InputLayer":
                continue
            stem = snake[layer["class_name"]]
            number = counts.get(stem, 0)
            counts[stem] = number + 1
            group = file.create_group(f"layers/{stem}_{number}" if number else f"layers/{stem}")
            variables = group.create_group("vars")
            for i, array in enumerate(by_name.get(layer["config"]["name"], {}).values()):
                variables.create_dataset(str(i), data=array, track_times=False)
        file.create_group("vars")
    model = {"module": "keras", "class_name": "Sequential", "config": config, "registered_name": None}
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in (
            (
                "metadata.json",
                json.dumps({"keras_version": "2.15.0", "date_saved": "2024-02-29@00:00:00"}).encode(),
            ),
            ("config.json", json.dumps(model).encode()),
            ("model.weights.h5", buffer.getvalue()),
        ):
            archive.writestr(zipfile.ZipInfo(member, (1980, 1, 1, 0, 0, 0)), content)


def reduce_smallcifar(source: Path, target: Path) -> None:
    """A trained `.h5` model without optimizer and training config, kernels as int8 signs."""
    with h5py.File(source, "r") as file:
        config = json.loads(file.attrs["model_config"])["config"]
        root = file["model_weights"]
        weights: Weights = []
        for layer in config["layers"]:
            name = layer["config"]["name"]
            if name not in root:
                continue
            arrays = {}
            for full in root[name].attrs["weight_names"]:
                full = full if isinstance(full, str) else full.decode()
                array = root[name][full][()]
                leaf = full.rsplit("/", 1)[-1].split(":")[0]
                arrays[leaf] = np.where(array >= 0, 1, -1).astype(np.int8) if leaf == "kernel" else array
            weights.append((name, arrays))
    write_hdf5(target, config, weights, compress=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--smallcifar", type=Path, metavar="H5", help="trained model to reduce to smallcifar.h5"
    )
    arguments = parser.parse_args()

    import oracle
    from cbin_nn.images import draw_images

    FIXTURES.mkdir(exist_ok=True)
    config, weights = tiny()
    write_hdf5(FIXTURES / "tiny.h5", config, weights)
    write_archive(FIXTURES / "tiny.keras", config, weights)
    images = draw_images(100, 12, 12, SEED)
    np.save(FIXTURES / "tiny_images.npy", images)
    if arguments.smallcifar:
        reduce_smallcifar(arguments.smallcifar, FIXTURES / "smallcifar.h5")
    for name, pictures in (("tiny", images), ("smallcifar", draw_images(100, 32, 32, SEED))):
        if (FIXTURES / f"{name}.h5").exists():
            logits = oracle.evaluate_file(FIXTURES / f"{name}.h5", pictures).logits
            np.savez(FIXTURES / f"{name}_predictions.npz", logits=logits, argmax=logits.argmax(axis=1))


if __name__ == "__main__":
    main()
