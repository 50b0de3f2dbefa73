"""Advice in the words of the framework that a network comes from.

Lowering knows what is wrong; how to mend it has other names in Keras, torch, ONNX and a description. Advice
never asks for another network where the same function can be written so that it converts.
"""

from __future__ import annotations

__all__ = ["advice"]

#: What to do -> framework -> text; "" is for any other.
_TABLE: dict[str, dict[str, str]] = {
    "binary input": {
        "": "put a sign before it",
        "keras": "give it input_quantizer='ste_sign', or put a sign before it",
        "torch": "put a sign before it: torch.where(x >= 0, 1.0, -1.0)",
        "onnx": "put a sign before it: Where(x >= 0, 1, -1), or Sign where its input is never 0",
        "description": 'put {"type": "sign"} before it',
    },
    "binary weights": {
        "": "train it with weights of one absolute value a filter",
        "keras": "train it as QuantConv2D or QuantDense with kernel_quantizer='ste_sign'",
        "torch": "train it with binarized weights: scale * torch.where(w >= 0, 1.0, -1.0), one scale a "
        "filter",
        "onnx": "train it with weights of one absolute value a filter, and export them as they are used",
        "description": "give it weights of one absolute value a filter",
    },
    "no zeros in weights": {
        "": "map 0 to +1",
        "torch": "write torch.where(w >= 0, 1.0, -1.0) in place of torch.sign(w)",
        "onnx": "write where(w >= 0, 1, -1) in place of sign(w), and export again",
    },
    "no zeros": {
        "": "train further: an untrained BatchNorm is the identity, and maps a sum of 0 to 0",
        "keras": "use a quantizer of Larq, which is +1 at 0, or train further: an untrained "
        "BatchNormalization is the identity, and maps a sum of 0 to 0",
        "torch": "use torch.where(x >= 0, 1.0, -1.0) instead of torch.sign, or train further: an untrained "
        "BatchNorm is the identity, and maps a sum of 0 to 0",
        "onnx": "export the network with where(x >= 0, 1, -1) instead of sign, or train further: an "
        "untrained BatchNorm is the identity, and maps a sum of 0 to 0",
    },
    "scale of the input": {
        "": "move it after the first layer, or apply it before the network",
        "keras": "move it after the first layer, or normalise the images with Rescaling",
    },
    "real input": {
        "": "begin with a layer on the image itself, without a sign before it",
        "keras": "leave out the first layer's input_quantizer",
    },
    "by element": {
        "": "share the parameters over height and width",
        "keras": "share the parameters over height and width (PReLU's shared_axes=[1, 2])",
    },
    "long chain": {"": "leave out what repeats, and merge BatchNorms that follow one another"},
    "end": {
        "": "the network must end in a dense layer on bits (a linear layer after a sign), perhaps with bias, "
        "BatchNorm, PReLU or softmax after it",
        "keras": "the model must end in a dense layer on bits (QuantDense with input_quantizer, or Dense "
        "after a sign), perhaps with bias, BatchNormalization, PReLU or softmax after it",
    },
    "sign of zero": {"": "sign", "keras": "keras.ops.sign", "torch": "torch.sign", "onnx": "Sign"},
}


def advice(what: str, framework: str) -> str:
    """The text for `what`, an entry of the table, in the words of `framework`."""
    texts = _TABLE[what]
    return texts.get(framework, texts[""])
