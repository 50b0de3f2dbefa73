"""Writes `tests/fixtures/onnx_answers.npz`: what onnxruntime answers to every network of `onnx_cases`.

Run it with a Python that has onnxruntime (the `bench` extra), from the repository's root:

    PYTHONPATH=python python tests/frameworks/make_onnx_answers.py

The file holds `names`, `outputs` (float32 `[cases, images, 5]`, NaN where onnxruntime refuses the network or
gives another shape) and `version`. onnxruntime does not know BipolarQuant, so that stands as
`scale * (1 - 2 * (x < 0))`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

TESTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS))

from onnx_cases import CLASSES, cases, images  # noqa: E402

#: Images whose answers are kept.
COUNT = 3


def standard(model: Any) -> Any:
    """The model with BipolarQuant written in operators of the standard."""
    copy = type(model)()
    copy.CopyFrom(model)
    graph = copy.graph
    for name, value in (("zero", 0), ("one", 1), ("two", 2)):
        graph.initializer.append(numpy_helper.from_array(np.float32(value), f"{name}'"))
    nodes = []
    for i, node in enumerate(model.graph.node):
        if node.op_type != "BipolarQuant":
            nodes.append(node)
            continue
        (x, scale), p = node.input, f"bipolar{i}/"
        nodes += [
            helper.make_node("Less", [x, "zero'"], [p + "below"]),
            helper.make_node("Cast", [p + "below"], [p + "number"], to=TensorProto.FLOAT),
            helper.make_node("Mul", [p + "number", "two'"], [p + "twice"]),
            helper.make_node("Sub", ["one'", p + "twice"], [p + "sign"]),
            helper.make_node("Mul", [p + "sign", scale], [node.output[0]]),
        ]
    del graph.node[:], copy.opset_import[:]
    graph.node.extend(nodes)
    copy.opset_import.extend(o for o in model.opset_import if o.domain == "")
    return copy


def answers(model: Any) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    nothing = np.full((COUNT, CLASSES), np.nan, np.float32)
    try:
        session = onnxruntime.InferenceSession(standard(model).SerializeToString(), options)
        (source,) = session.get_inputs()
        batch = images(COUNT).astype(np.uint8 if "uint8" in source.type else np.float32)
        if source.shape[1] == batch.shape[3]:
            batch = batch.transpose(0, 3, 1, 2)
        made = [session.run(None, {source.name: batch[i : i + 1]})[0] for i in range(COUNT)]
    except Exception:
        return nothing
    same = all(part.shape == (1, CLASSES) for part in made)
    return np.concatenate(made).astype(np.float32) if same else nothing


def main() -> None:
    onnxruntime.set_default_logger_severity(4)
    found = {case.key: answers(case.model) for case, _ in cases()}
    path = TESTS / "fixtures" / "onnx_answers.npz"
    outputs = np.stack(list(found.values()))
    np.savez_compressed(path, names=list(found), outputs=outputs, version=onnxruntime.__version__)
    known = int(np.isfinite(outputs).all(axis=(1, 2)).sum())
    print(f"{len(found)} networks, {known} of them answered, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
