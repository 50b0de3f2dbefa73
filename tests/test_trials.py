"""Small networks from what users report, with their framework's answers: right, or refused with a true
reason.

The networks are shared material beside the project (`trials`). A case stands for its kind; the tests of its
kind are those of the readers.
"""

from __future__ import annotations

import re
from pathlib import Path

import cbin_nn
import numpy as np
import pytest
from cbin_nn.errors import ConversionError
from conftest import require, require_modules, shared_folder

#: Converted, with the framework's own answers.
RIGHT = [
    *("A01_dyn.pt2", "C04.pt2", "C06.pt2", "C07.pt2", "C10.pt2", "C13.pt2", "C19.pt2", "G12.pt2", "P01.pt2"),
    *("R08.pt2", "S_gt_int.pt2", "V13.pt2", "V44.pt2", "K09.h5", "K11.h5"),
    *("O01.onnx", "O31.onnx", "OPS13_ts.onnx", "S_where_like_ts.onnx"),
]

#: Refused: what the message says.
REFUSED = {
    # What depends on chance or on the batch.
    "A18.pt2": "depends? on chance",
    "A18_ts.onnx": "depends? on chance",
    "K01.h5": "dropout.*training=True.*chance",
    "K01.keras": "dropout.*training=True.*chance",
    "K02.h5": "batch_normalization.*training=True.*batch",
    "K02.keras": "batch_normalization.*training=True.*batch",
    # Arguments and attributes that are not honoured.
    "K05.h5": r"normalization.*axis=\[1\]",
    "K05.keras": r"normalization.*axis=\[1\]",
    "K47.h5": "mixed_float16",
    "L18.h5": "pad_values=-1",
    "N22.h5": "quantization_config.*Int8",
    "N22.keras": "quantization_config.*Int8",
    "O40.onnx": "operator set 6",
    # Layers and operators that are not read yet.
    "A21.pt2": "layer '3' \\(pad\\).*padding",
    "A21_ts.onnx": "Pad.*padding",
    "A22.pt2": "layer '0' \\(pad\\).*padding",
    "A22_ts.onnx": "Pad.*padding",
    "A33.pt2": r"reshape of \[1, 8, 1, 1\] to \[1, 8, 1\]",
    "A41.pt2": "sigmoid",
    "A41_ts.onnx": "Sigmoid.*keeps the order",
    "B03.onnx": "Quant.*several bits",
    "C23.pt2": "chunk",
    "C23_dynamo.onnx": "Split",
    "H05.h5": "ZeroPadding2D.*padding",
    "H06.h5": "Reshape",
    "H08.h5": "augmentation does nothing at inference",
    "H08.keras": "augmentation does nothing at inference",
    "K60.h5": "TFOpLambda.*Rescaling",
    "K68.h5": "sigmoid.*keeps the order",
    "K71.h5": "no number for each class",
    "L01.h5": r"input shape \(10, 10\)",
    "L03.h5": r"input shape \(100,\)",
    "L06.h5": "Reshape",
    "L07.h5": "Reshape",
    "L10.h5": "MaxPooling2D with the size of the plane.*the same network",
    "L14.h5": "ZeroPadding2D.*padding",
    "N04.keras": "Where",
    "N05.keras": "SignLayer.*code is not in the file",
    "N20.keras": "Clip",
    "P06.pt2": "network's input",
    "Q01.h5": "QKeras",
    "S_neg.pt2": "stands on bits",
    "S_one_minus.pt2": "stands on bits",
    "S_sign_zero_fix.pt2": "equality is no sign",
    "S_tanh.pt2": "tanh",
    "S_zero_one.pt2": "stands on bits",
    "V30.pt2": "1 of its 576 weights is 0",
}
#: Its one output is in a dict, and its answers are in objects of TensorFlow.
DICT = "N15.keras"


def trial(name: str) -> Path:
    folder = shared_folder() / "trials"
    require("trials", folder.is_dir(), "set CBIN_NN_SHARED to the folder that holds trials")
    require_modules("h5py", "onnx", reason="pip install 'cbin-nn[keras,onnx]'")
    return folder / name


def answers(path: Path) -> tuple[np.ndarray, np.ndarray]:
    stem = re.sub("_(ts|dynamo|dyn)$", "", path.stem)
    found = next(p for p in (path.with_suffix(".npz"), path.with_name(f"{stem}.npz")) if p.is_file())
    with np.load(found) as file:
        return file["images"], file["outputs"]


@pytest.mark.parametrize("name", RIGHT)
def test_converted_with_the_frameworks_answers(name: str) -> None:
    path = trial(name)
    images, outputs = answers(path)
    model = cbin_nn.convert(path)
    if images.shape[1:] != tuple(model.input_shape):
        images = images.transpose(0, 2, 3, 1)
    mine = model.run(images, dequantize=True)
    assert np.allclose(mine, outputs.reshape(len(outputs), -1), rtol=1e-5, atol=1e-5)
    assert len(np.unique(outputs.argmax(axis=-1))) > 1


@pytest.mark.parametrize("name", REFUSED)
def test_refused_for_what_is_true(name: str) -> None:
    path = trial(name)
    with pytest.raises(ConversionError) as caught:
        cbin_nn.convert(path)
    text = str(caught.value)
    assert name in text.splitlines()[0] and len(text.splitlines()) <= 20
    assert re.search(REFUSED[name], text, re.S | re.I), text
    assert caught.value.slug != "damaged-file"
    if not name.endswith((".h5", ".keras")):
        assert not re.search("quantizer|QuantConv|Rescaling", text)


def test_the_one_output_of_a_dict_is_taken() -> None:
    assert cbin_nn.convert(trial(DICT)).classes == 7


def test_every_trial_is_listed() -> None:
    folder = trial("")
    files = {p.name for p in folder.iterdir() if p.suffix in (".pt2", ".onnx", ".h5", ".keras")}
    assert files == {*RIGHT, *REFUSED, DICT}
