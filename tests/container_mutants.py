r"""Mutants of model files: a valid container with something changed, the same for the same seed.

`mutant("h5", 7)` draws one of the fixtures and one of these ways:

- **bytes**: bits flipped, runs set, copied, cut or inserted, words of four or eight bytes given the values of
  boundaries and of other offsets in the file; often near a structure of the container (HDF5's trees and
  heaps, zip's directory, the first bytes of a message).
- **members**: one member of an archive changed so, and zipped again with right sizes and checksums; members
  dropped, doubled, renamed.
- **JSON**: values of the architecture replaced, deleted, doubled, exchanged, with other types, numbers at the
  boundaries, class and operator names of other layers.
- **objects**: HDF5 data sets with other values, types, shapes, filters and links; ONNX nodes, attributes,
  dimensions and initializers.

The last two are what gets past the container, into readers and lowering.
"""

from __future__ import annotations

import functools
import io
import json
import random
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import onnx

FIXTURES = Path(__file__).resolve().parent / "fixtures"
KINDS = ("h5", "keras", "pt2", "onnx")


class Mutant(NamedTuple):
    """A changed file: its bytes, the fixture that it was, and how it was changed."""

    content: bytes
    source: str
    how: str


def mutant(kind: str, seed: int) -> Mutant:
    """The mutant number `seed` of a kind of container: "h5", "keras", "pt2" or "onnx"."""
    rng = random.Random(f"{kind}/{seed}")
    path = rng.choice(sources(kind))
    data = _read(path)
    ways = _WAYS[kind]
    how = rng.choices(list(ways), [weight for weight, _ in ways.values()])[0]
    try:
        content = ways[how][1](data, rng)
    except Exception as error:  # a library may refuse to write what a mutation asks for
        content, how = _bytes(data, rng), f"bytes ({how}: {type(error).__name__})"
    return Mutant(content, path.name, how)


@functools.cache
def sources(kind: str) -> list[Path]:
    """The fixtures of a kind, told by their first bytes."""
    found = []
    for path in sorted([*FIXTURES.glob("*.*"), *(FIXTURES / "frameworks").glob("*.*")]):
        magic = path.read_bytes()[:4]
        told = {b"\x89HDF": "h5", b"PK\x03\x04": path.suffix[1:]}.get(magic, path.suffix[1:])
        if told == kind:
            found.append(path)
    return found


@functools.cache
def _read(path: Path) -> bytes:
    return path.read_bytes()


# ------------------------------------------------------------------------------------------------
# bytes

_STRUCTURES = re.compile(
    rb"\x89HDF|TREE|SNOD|HEAP|GCOL|OHDR|OCHK|FRHP|FHDB|FHIB|BTHD|BTLF|PK\x01\x02|PK\x03\x04|PK\x05\x06"
)
_WORDS = (
    0,
    1,
    -1,
    2,
    8,
    127,
    128,
    255,
    256,
    2**15,
    2**16 - 1,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**62,
    2**63 - 1,
)


def _place(data: bytes | bytearray, rng: random.Random) -> int:
    """A position, in half of the draws near a structure of the container."""
    if rng.random() < 0.5:
        found = [match.start() for match in _STRUCTURES.finditer(data)]
        if found:
            return min(len(data) - 1, rng.choice(found) + rng.randrange(rng.choice((16, 64, 512))))
    if rng.random() < 0.3:
        return min(len(data) - 1, rng.randrange(2048))
    return rng.randrange(len(data))


def _bytes(data: bytes, rng: random.Random) -> bytes:
    """`data` with one to four changes of bytes."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if not out:
            break
        at = _place(out, rng)
        run = rng.choice((1, 2, 4, 8, 16, 64, 512))
        change = rng.randrange(9)
        if change == 0:
            for _ in range(rng.choice((1, 1, 4, 30))):
                out[_place(out, rng)] ^= 1 << rng.randrange(8)
        elif change == 1:
            out[at : at + run] = bytes([rng.choice((0, 255, 1, 128))]) * len(out[at : at + run])
        elif change == 2:
            other = _place(out, rng)
            out[at : at + run] = out[other : other + run][: len(out[at : at + run])]
        elif change == 3:
            del out[rng.choice((at, rng.randrange(len(out)))) :]
        elif change == 4:
            out[at:at] = rng.choice((rng.randbytes(run), bytes(run), out[at : at + run]))
        elif change == 5:
            del out[at : at + run]
        else:
            size = rng.choice((4, 8))
            at -= at % rng.choice((1, size))
            offsets = [match.start() for match in _STRUCTURES.finditer(out)] or [0]
            word = rng.choice((rng.choice(_WORDS), rng.choice(offsets), rng.randrange(len(out)), at))
            if rng.random() < 0.3:
                word = int.from_bytes(out[at : at + size], "little") + rng.choice((-8, -1, 1, 8, 1 << 16))
            out[at : at + size] = (word % (1 << 8 * size)).to_bytes(size, "little")[
                : len(out[at : at + size])
            ]
    return bytes(out)


# ------------------------------------------------------------------------------------------------
# JSON

#: Names of layers and operators that one may be exchanged for.
_NAMES = [
    "InputLayer",
    "Dense",
    "Conv2D",
    "QuantConv2D",
    "QuantDense",
    "QuantDepthwiseConv2D",
    "DepthwiseConv2D",
    "MaxPooling2D",
    "Flatten",
    "PReLU",
    "ReLU",
    "LeakyReLU",
    "BatchNormalization",
    "Activation",
    "Dropout",
    "Add",
    "Concatenate",
    "Rescaling",
    "Normalization",
    "Softmax",
    "Lambda",
    "Sequential",
    "Functional",
    "Model",
    "ste_sign",
    "SteSign",
    "approx_sign",
    "magnitude_aware_sign",
    "softmax",
    "relu",
    "linear",
    "sigmoid",
    "valid",
    "same",
    "causal",
    "channels_first",
    "channels_last",
    "float32",
    "float16",
    "mixed_float16",
    "int8",
    "None",
    "torch.ops.aten.conv2d.default",
    "torch.ops.aten.linear.default",
    "torch.ops.aten.sign.default",
    "torch.ops.aten.view.default",
    "torch.ops.aten.mul.Tensor",
    "torch.ops.aten.add.Tensor",
    "torch.ops.aten.expand.default",
    "torch.ops.aten.permute.default",
    "torch.ops.aten.max_pool2d.default",
    "torch.ops.aten.where.self",
    "torch.ops.aten.ge.Scalar",
    "torch.ops.aten.pow.Tensor_Scalar",
    "torch.ops.aten.mean.dim",
]
_NUMBERS = (
    0, 1, -1, 2, 3, 7, 31, 32, 33, 64, 255, 256, 1000, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**62, 2**63,
    10**30, 10**4400, 0.0, -0.0, 0.5, 1e-45, 1e-30, 1e30, 3.5e38, 1e308, 1e400, float("nan"), float("-inf"),
)  # fmt: skip


def _slots(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Every place in a JSON document, as (container, key)."""
    stack = [value]
    while stack:
        each = stack.pop()
        if isinstance(each, dict):
            found += [(each, key) for key in each]
            stack += each.values()
        elif isinstance(each, list):
            found += [(each, i) for i in range(len(each))]
            stack += each
    return found


def _json_text(text: str, rng: random.Random) -> str:
    """A JSON document with one to three values changed."""
    document = json.loads(text)
    if rng.random() < 0.08:
        _repeat(document, rng)
        return _dumped(document)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        slots = _slots(document, [])
        if not slots:
            break
        if rng.random() < 0.6:  # leaves change what a layer is, the rest what it is made of
            slots = [slot for slot in slots if not isinstance(slot[0][slot[1]], (dict, list))] or slots
        where, key = rng.choice(slots)
        _change(where, key, slots, rng)
    text = _dumped(document)
    if rng.random() < 0.01:
        text = rng.choice(
            ("[" * 10**5, text[: rng.randrange(len(text))], f'{{"a": {"9" * 10**6}}}', '{"a":' * 10**5)
        )
    return text


_REPEATS = (2, 5, 20, 200)


def _repeat(document: Any, rng: random.Random) -> None:
    """A layer without weights, or a node of a torch program, many times over: chains that nobody writes."""
    count = rng.choice(_REPEATS)
    lists = [
        w[k] for w, k in _slots(document, []) if k in ("layers", "nodes") and isinstance(w[k], list) and w[k]
    ]
    if not lists:
        return
    layers = rng.choice(lists)
    at = rng.randrange(len(layers))
    if "target" in layers[at]:  # torch: the last copy makes what the node made
        node = layers[at]
        tensors = [each["arg"]["as_tensor"] for each in node["inputs"] if "as_tensor" in each["arg"]]
        if not tensors or "as_tensor" not in node["outputs"][0]:
            return
        made = node["outputs"][0]["as_tensor"]["name"]
        copies = [json.loads(json.dumps(node)) for _ in range(count)]
        for i, copy in enumerate(copies):
            arguments = [each["arg"]["as_tensor"] for each in copy["inputs"] if "as_tensor" in each["arg"]]
            if i:
                arguments[0]["name"] = f"{made}_{i - 1}"
            copy["outputs"][0]["as_tensor"]["name"] = made if i == count - 1 else f"{made}_{i}"
        layers[at : at + 1] = copies
        return
    kind, settings = rng.choice(
        (
            ("ReLU", {}),
            ("LeakyReLU", {"alpha": 0.25, "negative_slope": 0.25}),
            ("Activation", {"activation": "relu"}),
            ("Rescaling", {"scale": 0.9, "offset": 0.1}),
            ("MaxPooling2D", {"pool_size": [1, 1], "strides": [1, 1], "padding": "valid"}),
            ("Dropout", {"rate": 0.5}),
        )
    )
    layers[at:at] = [
        {"class_name": kind, "config": {"name": f"repeated_{i}", "dtype": "float32", **settings}}
        for i in range(count)
    ]


def _dumped(document: Any) -> str:
    """JSON, with integers of any length (Python refuses to write those of more than 4300 digits)."""
    return re.sub(r'"<(\d+) nines>"', lambda m: "9" * int(m[1]), json.dumps(_spelt(document)))


def _spelt(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**4000:
        return "<4400 nines>"
    if isinstance(value, dict):
        return {key: _spelt(each) for key, each in value.items()}
    return [_spelt(each) for each in value] if isinstance(value, list) else value


def _change(where: Any, key: Any, slots: list[tuple[Any, Any]], rng: random.Random) -> None:
    value = where[key]
    change = rng.randrange(10)
    if change < 4:  # another value of the same type, that a reader may well take
        if isinstance(value, bool):
            where[key] = not value
        elif isinstance(value, (int, float)):
            where[key] = rng.choice((rng.choice(_NUMBERS), value + 1, value * 2, -value, value - 1))
        elif isinstance(value, str):
            texts = [str(w[k]) for w, k in slots if isinstance(w[k], str)]
            where[key] = rng.choice(
                (rng.choice(_NAMES), rng.choice(texts or [""]), value + "x", value.upper())
            )
        elif isinstance(value, list) and value:
            rng.choice((rng.shuffle, lambda v: v.append(v[0]), lambda v: v.pop(), lambda v: v.extend(v * 3)))(
                value
            )
        else:
            where[key] = rng.choice((None, [], {}, 0, "same"))
    elif change == 4:
        other, name = rng.choice(slots)
        where[key] = other[name]
        if _depth_of(where, key):  # a document can't hold itself
            where[key] = None
    elif change == 5:
        del where[key]
    elif change == 6:
        junk: tuple[Any, ...] = (
            None,
            True,
            "",
            "\ud800\0",
            "a" * 10**5,
            [],
            [1],
            [None],
            {},
            {"a": 1},
            [[1, 2], 3],
        )
        where[key] = rng.choice(junk)
    elif change == 7:
        where[key] = rng.choice(_NUMBERS)
    elif change == 8:
        where[key] = rng.choice(([value] * rng.choice((2, 50)), {"class_name": value, "config": {}}))
    elif isinstance(where, dict):
        where[rng.choice(("unknown", "dtype", "strides", "groups", "use_bias", "axis", "name", "as_int"))] = (
            value
        )
    else:
        where.insert(key, value)


def _depth_of(where: Any, key: Any) -> bool:
    """Whether a document now holds itself."""
    stack, seen = [where[key]], 0
    while stack and seen < 10**5:
        each = stack.pop()
        seen += 1
        if each is where:
            return True
        if isinstance(each, dict):
            stack += each.values()
        elif isinstance(each, list):
            stack += each
    return bool(stack)


# ------------------------------------------------------------------------------------------------
# HDF5


def _hdf5_edited(data: bytes, rng: random.Random, edit: Callable[[Any, random.Random], None]) -> bytes:
    buffer = io.BytesIO(data)
    with h5py.File(buffer, "r+") as file:
        edit(file, rng)
    return buffer.getvalue()


def _hdf5_json(data: bytes, rng: random.Random) -> bytes:
    def edit(file: Any, rng: random.Random) -> None:
        text = file.attrs["model_config"]
        text = text.decode() if isinstance(text, bytes) else text
        changed = _json_text(text, rng)
        file.attrs["model_config"] = np.bytes_(changed.encode("utf-8", "replace"))

    return _hdf5_edited(data, rng, edit)


def _hdf5_objects(data: bytes, rng: random.Random) -> bytes:
    return _hdf5_edited(data, rng, _edit_objects)


def _edit_objects(file: Any, rng: random.Random) -> None:
    """Other values, types, shapes, filters and links of data sets; other attributes."""
    names: list[str] = []
    file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    groups: list[Any] = [file]
    file.visititems(lambda name, item: groups.append(item) if isinstance(item, h5py.Group) else None)
    for _ in range(rng.choice((1, 1, 2))):
        name = rng.choice(names)
        if name not in file:
            continue
        array = np.asarray(file[name][()])
        change = rng.randrange(9)
        if change <= 2 and array.size:
            special = (np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, 3e38, -3e38, 1e30, 1e-30, 1.0, -1.0, 0.5)
            flat = array.reshape(-1).astype(np.float32)
            count = rng.choice((1, 1, flat.size // 2 or 1, flat.size))
            flat[rng.sample(range(flat.size), count)] = rng.choice(special)
            file[name][...] = flat.reshape(array.shape)
            continue
        if change == 3:
            groups_with = [group for group in groups if group and len(group.attrs)]
            attributes = rng.choice(groups_with).attrs if groups_with else file.attrs
            key = rng.choice(list(attributes) or ["weight_names"])
            attributes[key] = rng.choice(
                (0, np.zeros(0), np.array([b"kernel:0"] * 3), b"\xff", "x" * 60000, np.nan)
            )
            continue
        del file[name]
        if change == 4:
            continue
        if change == 5:
            kind = rng.choice(("f2", "f8", "i1", "u8", "S5", "?", "c8", "i8"))
            with np.errstate(all="ignore"):
                file[name] = array.astype(kind)
        elif change == 6:
            shape = list(array.shape) or [1]
            shape[rng.randrange(len(shape))] = rng.choice((0, 1, 2, 3, 50))
            file[name] = np.resize(array, shape)
        elif change == 7:
            options: dict[str, Any] = rng.choice(
                ({"compression": "gzip"}, {"compression": "lzf"}, {"shuffle": True}, {"fletcher32": True})
            )
            if array.ndim:
                file.create_dataset(name, data=array, chunks=array.shape, **options)
        else:
            links: tuple[Any, ...] = (
                h5py.SoftLink("/"),
                h5py.SoftLink(f"/{name}"),
                h5py.ExternalLink("/etc/passwd", "/"),
                file[rng.choice(names)] if rng.choice(names) in file else h5py.SoftLink("/x"),
                file["/"],
            )
            file[name] = rng.choice(links)


# ------------------------------------------------------------------------------------------------
# zip


def _members(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _zipped(members: list[tuple[str, bytes]], rng: random.Random) -> bytes:
    buffer = io.BytesIO()
    packed = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", packed) as archive:
        warnings.simplefilter("ignore")  # a name twice is meant
        for name, content in members:
            info = zipfile.ZipInfo(name)
            info.compress_type = packed
            if rng.random() < 0.02:
                with archive.open(info, "w", force_zip64=True) as member:
                    member.write(content)
            else:
                archive.writestr(info, content)
    return buffer.getvalue()


def _with_member(
    data: bytes, rng: random.Random, wanted: str, change: Callable[[bytes, random.Random], bytes]
) -> bytes:
    """One member, of those whose name has `wanted` in it, changed."""
    members = _members(data)
    name = rng.choice(sorted(name for name in members if re.search(wanted, name)))
    members[name] = change(members[name], rng)
    return _zipped(list(members.items()), rng)


def _member_bytes(data: bytes, rng: random.Random) -> bytes:
    return _with_member(data, rng, "", lambda content, rng: _bytes(content or b"\0", rng))


def _member_list(data: bytes, rng: random.Random) -> bytes:
    """Members dropped, doubled, renamed, exchanged, or large."""
    members = list(_members(data).items())
    at, other = rng.randrange(len(members)), rng.randrange(len(members))
    name, content = members[at]
    change = rng.randrange(6)
    if change == 0:
        del members[at]
    elif change == 1:
        members.append((name, members[other][1]))
    elif change == 2:
        members[at] = (
            rng.choice(("../" + name, name.upper(), name + "\0x", "config.json", "/" + name)),
            content,
        )
    elif change == 3:
        members[at], members[other] = (name, members[other][1]), (members[other][0], content)
    elif change == 4:
        members[at] = (name, bytes(rng.choice((0, 1, 2**20, 2**24))))
    else:
        members += [(f"extra/{i}", b"") for i in range(rng.choice((1, 2000)))]
    return _zipped(members, rng)


def _json_bytes(content: bytes, rng: random.Random) -> bytes:
    return _json_text(content.decode(), rng).encode("utf-8", "replace")


# ------------------------------------------------------------------------------------------------
# ONNX

_OPERATORS = [
    "Conv",
    "Gemm",
    "MatMul",
    "Sign",
    "BatchNormalization",
    "MaxPool",
    "AveragePool",
    "Flatten",
    "Reshape",
    "Transpose",
    "Add",
    "Mul",
    "Sub",
    "Div",
    "Clip",
    "Relu",
    "PRelu",
    "LeakyRelu",
    "Identity",
    "Dropout",
    "Softmax",
    "Where",
    "Greater",
    "Less",
    "GreaterOrEqual",
    "Expand",
    "Gather",
    "Concat",
    "Slice",
    "Shape",
    "Squeeze",
    "Unsqueeze",
    "ReduceMean",
    "ReduceSum",
    "Pow",
    "Sqrt",
    "Cast",
    "Constant",
    "Pad",
    "Neg",
    "Abs",
    "Tanh",
    "Max",
    "Min",
    "BipolarQuant",
    "Loop",
]


def _onnx_objects(data: bytes, rng: random.Random) -> bytes:
    """A message whose nodes, attributes, shapes or initializers say something else."""
    model = onnx.load_model_from_string(data)
    graph = model.graph
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        node = rng.choice(graph.node)
        tensor = rng.choice(graph.initializer) if graph.initializer else None
        change = rng.randrange(14)
        if change == 13 and node.input and len(node.output) == 1:
            _repeat_node(graph, node, rng.choice(_REPEATS))
        elif change <= 2 and node.attribute:
            _edit_attribute(rng.choice(node.attribute), rng)
        elif change == 3:
            node.op_type = rng.choice(_OPERATORS)
        elif change == 4 and node.input:
            names = [name for each in graph.node for name in (*each.input, *each.output)]
            node.input[rng.randrange(len(node.input))] = rng.choice((*names, "", "nothing"))
        elif change == 5:
            rng.choice((graph.node.remove, lambda each: graph.node.append(each)))(node)
        elif change == 6:
            attribute = node.attribute.add()
            attribute.name = rng.choice(
                ("strides", "pads", "group", "axis", "alpha", "perm", "auto_pad", "unknown")
            )
            attribute.type = onnx.AttributeProto.INTS
            attribute.ints.extend(rng.choice(_INTEGERS) for _ in range(rng.randrange(5)))
        elif change == 7 and tensor is not None and tensor.dims:
            tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(_INTEGERS)
        elif change == 8 and tensor is not None:
            tensor.data_type = rng.randrange(0, 24)
        elif change == 9 and tensor is not None and tensor.raw_data:
            raw = np.frombuffer(tensor.raw_data, np.uint8).copy()
            values = np.array([rng.choice(_FLOATS)], "<f4").view(np.uint8)
            at = rng.randrange(0, max(1, len(raw) - 4), 4) if len(raw) > 4 else 0
            raw[at : at + 4] = values[: len(raw[at : at + 4])]
            tensor.raw_data = raw.tobytes()[: rng.choice((None, None, at))]
        elif change == 10:
            dimension = graph.input[0].type.tensor_type.shape.dim
            rng.choice(dimension).dim_value = rng.choice(_INTEGERS)
        elif change == 11:
            rng.choice(model.opset_import).version = rng.choice((-1, 0, 1, 6, 9, 13, 18, 22, 25, 2**31))
        else:
            node.domain = rng.choice(("", "com.microsoft", "onnx.brevitas", "ai.onnx"))
            node.name = rng.choice((node.name, "", "\n", "x" * 1000))
    return model.SerializeToString()


_INTEGERS = (0, 1, -1, 2, 3, 5, 32, 33, 64, 255, 1000, 65535, 2**20, 2**31 - 1, 2**31, 2**62, -(2**63))
_FLOATS = (np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, 3e38, 1e30, -1.0, 0.5)


def _repeat_node(graph: Any, node: Any, count: int) -> None:
    """A node many times over; the last copy makes what the node made."""
    nodes = list(graph.node)
    at = next(i for i, each in enumerate(nodes) if each == node)
    made = node.output[0]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for _ in range(count)]
    for i, copy in enumerate(copies):
        if i:
            copy.input[0] = f"{made}_{i - 1}"
        copy.output[0] = made if i == count - 1 else f"{made}_{i}"
    whole = [onnx.NodeProto.FromString(each.SerializeToString()) for each in nodes]
    whole[at : at + 1] = copies
    del graph.node[:]
    graph.node.extend(whole)


def _edit_attribute(attribute: Any, rng: random.Random) -> None:
    if attribute.ints and rng.random() < 0.8:
        attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(_INTEGERS)
    elif attribute.type == onnx.AttributeProto.INT and rng.random() < 0.8:
        attribute.i = rng.choice(_INTEGERS)
    elif attribute.type == onnx.AttributeProto.FLOAT and rng.random() < 0.8:
        attribute.f = rng.choice(_FLOATS)
    elif attribute.HasField("t") and attribute.t.dims and rng.random() < 0.8:
        attribute.t.dims[rng.randrange(len(attribute.t.dims))] = rng.choice(_INTEGERS)
    elif rng.random() < 0.5:
        attribute.type = rng.randrange(0, 15)
    else:
        attribute.name = rng.choice(
            ("strides", "pads", "group", "axis", "epsilon", "alpha", "value", "unknown")
        )


# ------------------------------------------------------------------------------------------------

_WEIGHTS = r"weights\.h5$"
_CONFIG = r"config\.json$"
_PROGRAM = r"models/[^/]*\.json$"
#: Kind -> way -> (how often it is drawn, what it does).
_WAYS: dict[str, dict[str, tuple[int, Callable[[bytes, random.Random], bytes]]]] = {
    "h5": {"bytes": (50, _bytes), "JSON": (30, _hdf5_json), "objects": (20, _hdf5_objects)},
    "keras": {
        "bytes": (20, _bytes),
        "member: bytes of weights": (20, lambda d, r: _with_member(d, r, _WEIGHTS, _bytes)),
        "member: any bytes": (5, _member_bytes),
        "members": (5, _member_list),
        "JSON": (35, lambda d, r: _with_member(d, r, r"(^|/)config\.json$", _json_bytes)),
        "objects": (15, lambda d, r: _with_member(d, r, _WEIGHTS, _hdf5_objects)),
    },
    "pt2": {
        "bytes": (20, _bytes),
        "member: any bytes": (15, _member_bytes),
        "members": (5, _member_list),
        "JSON: program": (45, lambda d, r: _with_member(d, r, _PROGRAM, _json_bytes)),
        "JSON: weights": (15, lambda d, r: _with_member(d, r, _CONFIG, _json_bytes)),
    },
    "onnx": {"bytes": (50, _bytes), "objects": (50, _onnx_objects)},
}
