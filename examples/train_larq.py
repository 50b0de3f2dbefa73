"""Train the seed's SmallCifar in Larq, convert it, and evaluate both.

    python examples/train_larq.py --data cifar-10-batches-bin -o smallcifar.h5
    cbin-nn bench smallcifar.h5 --board qemu-mps2-an500

Needs Larq and TensorFlow 2.15 (`pip install larq "tensorflow-cpu==2.15.1" "numpy<2"`). The network is that
of `cbin-nn train smallcifar-binary`, which trains it in PyTorch and further: 1-bit weights in the first
layer, too, a bias (a shift on the way to the threshold, free on the board), PReLU, max-pool, BatchNorm, and
the sign at the next layer's input. Choices are made on the last 5,000 images of the training split; the
test split is read once, at the end.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import cbin_nn
import larq as lq
import numpy as np
import tensorflow as tf

HOLD_BACK = 5000


def small_cifar(classes: int = 10) -> tf.keras.Sequential:
    """5x5 convolutions of 32, 32 and 64 channels, each pooled, and a dense layer; of `2 q / 255 - 1`."""
    layers: list[Any] = [tf.keras.layers.InputLayer((32, 32, 3))]
    for number, channels in enumerate((32, 32, 64), 1):
        layers += [
            lq.layers.QuantConv2D(
                channels,
                5,
                padding="same",
                input_quantizer=None if number == 1 else "approx_sign",
                kernel_quantizer="ste_sign",
                kernel_constraint="weight_clip",
                name=f"conv{number}",
            ),
            tf.keras.layers.PReLU(shared_axes=[1, 2], name=f"prelu{number}"),
            tf.keras.layers.MaxPooling2D(2, name=f"pool{number}"),
            tf.keras.layers.BatchNormalization(momentum=0.98, name=f"norm{number}"),
        ]
    layers += [
        tf.keras.layers.Flatten(name="flatten"),
        lq.layers.QuantDense(
            classes,
            input_quantizer="approx_sign",
            kernel_quantizer="ste_sign",
            kernel_constraint="weight_clip",
            use_bias=False,
            name="dense",
        ),
        tf.keras.layers.BatchNormalization(momentum=0.98, name="norm4"),
        tf.keras.layers.Activation("softmax", name="softmax"),
    ]
    return tf.keras.Sequential(layers, name="smallcifar")


def batches(images: Any, labels: Any, batch: int, seed: int) -> tf.data.Dataset:
    """Shuffled batches, mirrored by chance and moved by up to 2 pixels each way."""

    def augment(image: Any, label: Any) -> tuple[Any, Any]:
        image = tf.image.random_flip_left_right(image)
        image = tf.image.random_crop(tf.pad(image, [[2, 2], [2, 2], [0, 0]]), (32, 32, 3))
        return normalize(image), label

    data = tf.data.Dataset.from_tensor_slices((images, labels))
    return data.shuffle(len(images), seed=seed).map(augment, tf.data.AUTOTUNE).batch(batch).prefetch(2)


def normalize(pixels: Any) -> Any:
    """float32 in [-1, 1] of uint8."""
    return tf.cast(pixels, tf.float32) / 127.5 - 1.0


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="CIFAR-10; default: CBIN_NN_DATA")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--images", type=int, default=45_000, help="of the training split (default: 45000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--out", type=Path, default=Path("smallcifar.h5"))
    options = parser.parse_args()

    tf.keras.utils.set_random_seed(options.seed)
    images, labels = cbin_nn.data.cifar10(options.data, "train")
    if not 0 < options.images <= len(images) - HOLD_BACK:
        parser.error(f"--images: expected 1 to {len(images) - HOLD_BACK}, got {options.images}")
    network = small_cifar()
    steps = -(-options.images // options.batch)
    network.compile(
        tf.keras.optimizers.Adam(tf.keras.optimizers.schedules.CosineDecay(1e-3, options.epochs * steps)),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    network.fit(
        batches(images[: options.images], labels[: options.images], options.batch, options.seed),
        validation_data=(normalize(images[-HOLD_BACK:]), labels[-HOLD_BACK:]),
        epochs=options.epochs,
        verbose=2,
    )
    network.save(options.out)

    model = cbin_nn.convert(options.out, input_scale=1 / 127.5, input_offset=-1)
    print(model.conversion)
    images, labels = cbin_nn.data.cifar10(options.data)
    theirs = network.predict(normalize(images), batch_size=500, verbose=0).argmax(axis=1)
    ours = model.run(images).argmax(axis=1)
    print(f"Larq on TensorFlow: {np.mean(theirs == labels):.2%}")
    print(
        f"Converted:          {np.mean(ours == labels):.2%}; the same class for {np.mean(theirs == ours):.2%}"
    )


if __name__ == "__main__":
    main()
