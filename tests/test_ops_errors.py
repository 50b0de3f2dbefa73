"""Bad input of every family: an `InvalidArgument` that names the argument, what it got and expected."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cbin_nn import Rule, ops
from cbin_nn.errors import InvalidArgument
from cbin_nn.rule import BatchNorm, Bias, MaxPool, PReLU, Scale

NAN = float("nan")
CONVS = ("qbconv2d", "qqconv2d", "bbconv2d", "bbpointwiseconv2d", "bbdepthwiseconv2d")
SPATIAL = ("qbconv2d", "qqconv2d", "bbconv2d", "bbdepthwiseconv2d")
BYTES = ("qbconv2d", "qqconv2d")
PACKED = ("bbconv2d", "bbpointwiseconv2d", "bbdepthwiseconv2d", "bmaxpool2d", "bbfc", "bbqfc")
SIGNED = ("qbconv2d", "bbconv2d", "bbpointwiseconv2d", "bbdepthwiseconv2d", "bbfc", "bbqfc")
DENSE = ("bbfc", "bbqfc")
WEIGHTED = (*CONVS, *DENSE)
RULED = (*CONVS, "bbfc")
ALL = (*WEIGHTED, "bmaxpool2d")


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.int8)


def words(*shape: int, value: int = 1) -> np.ndarray:
    return np.full(shape, value, np.uint32)


#: Arguments that each family accepts: 5 x 6 pixels of 40 channels (3 for bytes), 4 output channels.
GOOD: dict[str, dict[str, Any]] = {
    "qbconv2d": {"x": np.ones((2, 5, 6, 3), np.uint8), "weights": ones(4, 3, 3, 3)},
    "qqconv2d": {"x": np.ones((2, 5, 6, 3), np.int8), "weights": ones(4, 3, 3, 3) * 7},
    "bbconv2d": {"x": words(2, 5, 6, 2), "weights": ones(4, 3, 3, 40)},
    "bbpointwiseconv2d": {"x": words(2, 5, 6, 2), "weights": ones(4, 40)},
    "bbdepthwiseconv2d": {"x": words(2, 5, 6, 2), "weights": ones(3, 3, 40)},
    "bmaxpool2d": {"x": words(2, 5, 6, 2), "channels": 40, "size": 2},
    "bbfc": {"x": words(2, 2), "weights": ones(4, 40)},
    "bbqfc": {"x": words(2, 2), "weights": ones(4, 40)},
}
#: Output channels of `GOOD`.
OUTPUTS = {name: 40 if name in ("bbdepthwiseconv2d", "bmaxpool2d") else 4 for name in GOOD}

#: (families, changed arguments, what the message must say: argument, got, expected).
BAD: list[tuple[tuple[str, ...], dict[str, Any], str]] = [
    # x
    (ALL, {"x": None}, r"`x` is object, expected"),
    (ALL, {"x": "image"}, r"`x` is <U5, expected"),
    (PACKED, {"x": np.ones((2, 5, 6, 40))}, r"`x` is float64, expected packed uint32 .*pack"),
    (PACKED, {"x": np.ones((2, 5, 6, 2), np.int64)}, r"`x` is int64, expected packed uint32"),
    (BYTES, {"x": np.ones((2, 5, 6, 3), np.float32)}, r"`x` is float32, expected uint8 or int8"),
    (BYTES, {"x": np.ones((5, 6, 3), np.uint8)}, r"`x` has shape \[5, 6, 3\], expected \[N, H, W, 3\]"),
    (BYTES, {"x": np.ones((2, 5, 6, 4), np.uint8)}, r"`x` has shape \[2, 5, 6, 4\], expected \[N, H, W, 3\]"),
    (BYTES, {"x": np.ones((2, 0, 6, 3), np.uint8)}, r"`x` makes height 0, expected 1 to 65535"),
    (PACKED, {"x": words(2, 5, 6, 1)}, r"`x` has shape .*expected|`x` has shape .*divide"),
    (PACKED, {"x": words(2, 5, 6, 3)}, r"`x` has shape .*expected|`x` has shape .*divide"),
    (PACKED, {"x": words(2)}, r"`x` has shape \[2\], expected"),
    (
        ("bbconv2d", "bmaxpool2d"),
        {"x": words(5, 6, 2)},
        r"`x` has shape \[5, 6, 2\], expected \[N, H, W, 2\]",
    ),
    (("bbconv2d", "bmaxpool2d"), {"x": words(2, 5, 0, 2)}, r"`x` makes width 0"),
    (DENSE, {"x": words(2, 1, 3, 2)}, r"`x` has shape .* do not divide the 40 features"),
    (DENSE, {"x": words(2, 1, 2, 2)}, r"`x` has shape \[2, 1, 2, 2\], expected \[N, H, W, 1\]"),
    (
        ("bbconv2d", "bbpointwiseconv2d", "bbdepthwiseconv2d", "bmaxpool2d"),
        {"x": words(2, 5, 6, 2, value=1 << 8)},
        r"`x` has a bit set above channel 39, expected the unused 24",
    ),
    (DENSE, {"x": words(2, 2, value=1 << 31)}, r"`x` has a bit set above channel 39"),
    # weights
    (WEIGHTED, {"weights": np.ones((4, 3, 3, 3))}, r"`weights` is float64, expected int8"),
    (WEIGHTED, {"weights": np.ones((4, 3, 3, 3), np.int16)}, r"`weights` is int16, expected int8"),
    (WEIGHTED, {"weights": ones(4)}, r"`weights` has shape \[4\], expected \["),
    (CONVS, {"weights": ones(4, 0, 3, 3)}, r"`weights` has shape .*expected"),
    (DENSE, {"weights": ones(0, 40)}, r"`weights` has shape \[0, 40\], expected"),
    (SIGNED, {"weights": lambda good: good["weights"] * 0}, r"`weights` holds 0, expected -1 and \+1"),
    (SIGNED, {"weights": lambda good: good["weights"] * 2}, r"`weights` holds 2, expected -1 and \+1"),
    (SIGNED, {"weights": lambda good: good["weights"] * -128}, r"`weights` holds -128, expected -1 and \+1"),
    (
        ("bbconv2d",),
        {"weights": ones(4, 3, 3, 65)},
        r"`x` has shape .*expected \[N, H, W, 3\]: .* 65 channels",
    ),
    (
        ("bbpointwiseconv2d",),
        {"weights": ones(4, 3, 3, 40)},
        r"`weights` has shape \[4, 3, 3, 40\], expected",
    ),
    (
        SPATIAL,
        {"weights": lambda good: ones(*bigger(good["weights"].shape))},
        r"`weights` makes a window of 3 x 7",
    ),
    (
        SPATIAL,
        {"dilation": 3},
        r"`weights` makes a window of 7 x 7 pixels \(dilation 3 x 3\), larger .* 5 x 6",
    ),
    (("bbdepthwiseconv2d",), {"weights": ones(4097, 1, 40)}, r"`weights` has shape .* above 4096, expected"),
    (DENSE, {"weights": ones(65536, 40)}, r"`weights` makes channels 65536, expected 1 to 65535"),
    (
        DENSE,
        {"x": words(1, 1, 40, 1), "weights": ones(65535, 40)},
        r"`weights` has shape .* expected at most",
    ),
    (
        ("bbpointwiseconv2d",),
        {"x": words(1, 1, 1, 33), "weights": ones(65000, 1056)},
        r"`weights` has shape \[65000, 1, 1, 1056\], .* elements in whole words, expected at most 67108864",
    ),
    # how it slides
    (CONVS, {"strides": 0}, r"`strides` is 0, expected an integer from 1 to 4096"),
    (CONVS, {"strides": (1, 0)}, r"`strides` is \(1, 0\), expected"),
    (CONVS, {"strides": -1}, r"`strides` is -1, expected"),
    (CONVS, {"strides": 1.5}, r"`strides` is 1.5, expected an integer"),
    (CONVS, {"strides": (1, 1, 1)}, r"`strides` is \(1, 1, 1\), expected"),
    (CONVS, {"strides": True}, r"`strides` is True, expected"),
    (CONVS, {"strides": 5000}, r"`strides` is 5000, expected an integer from 1 to 4096"),
    (SPATIAL, {"dilation": 0}, r"`dilation` is 0, expected"),
    (SPATIAL, {"dilation": "2"}, r"`dilation` is '2', expected"),
    (SPATIAL, {"padding": "full"}, r"`padding` is 'full', expected \"valid\", \"same\""),
    (SPATIAL, {"padding": -1}, r"`padding` is -1, expected"),
    (SPATIAL, {"padding": (1, 1)}, r"`padding` is \(1, 1\), expected .*\(\(top, bottom\), \(left, right\)\)"),
    (SPATIAL, {"padding": ((0, 1), (0, -1))}, r"`padding` is .*expected"),
    (SPATIAL, {"padding": 4097}, r"`padding` is 4097, expected"),
    (SPATIAL, {"padding": None}, r"`padding` is None, expected"),
    (
        SPATIAL,
        {"padding": 4096},
        r"`padding` makes 819\d x 819\d pixels of \d+ channels, .*expected at most 67108864",
    ),
    (("bbconv2d", "bbdepthwiseconv2d"), {"pad_values": 2}, r"`pad_values` is 2, expected 0 .* or 1"),
    (("bbconv2d", "bbdepthwiseconv2d"), {"pad_values": -1}, r"`pad_values` is -1, expected"),
    (("bbconv2d",), {"groups": 0}, r"`groups` is 0, expected"),
    (("bbconv2d",), {"groups": 2}, r"`groups` is 2 .*expected .* multiple of 32 input channels"),
    (
        ("bbconv2d",),
        {"groups": 3, "weights": ones(4, 3, 3, 32)},
        r"`groups` is 3 .*expected a divisor of the 4 output",
    ),
    (
        ("bbconv2d",),
        {"groups": 40, "weights": ones(80, 3, 3, 1)},
        r"`groups` is 40 with 80 filters .*multiplier",
    ),
    # how it is run
    (ALL, {"kernel": "fast"}, r"`kernel` is 'fast', expected \"optimized\" or \"reference\""),
    (ALL, {"kernel": None}, r"`kernel` is None, expected"),
    (ALL, {"threads": 0}, r"`threads` is 0, expected"),
    (ALL, {"threads": True}, r"`threads` is True, expected"),
    (ALL, {"threads": 1.0}, r"`threads` is 1.0, expected"),
    # chains
    (WEIGHTED, {"prelu": NAN}, r"`prelu` is nan at element 0, expected finite"),
    (WEIGHTED, {"prelu": [0.5, NAN]}, r"`prelu` is nan at element 1, expected finite"),
    (WEIGHTED, {"prelu": 1e39}, r"`prelu` is 1e\+39 .*expected finite float32"),
    (WEIGHTED, {"prelu": [0.5, 0.5]}, r"`slopes` of PReLU has shape \[2\], expected one number or \["),
    (WEIGHTED, {"prelu": "steep"}, r"`prelu` is 'steep', expected real numbers"),
    (
        WEIGHTED,
        {"prelu": [[1.0, 2.0]]},
        r"`prelu` has shape \[1, 2\], expected one number, \[C\] or \[H, W, C\]",
    ),
    (WEIGHTED, {"chain": "relu"}, r"`chain` holds 'relu', expected BatchNorm, PReLU, Bias, Scale or MaxPool"),
    (WEIGHTED, {"chain": [Bias(1), None]}, r"`chain` holds None|`chain` holds .*expected BatchNorm"),
    (WEIGHTED, {"chain": [Bias([1, 2, 3])]}, r"`values` of Bias has shape \[3\], expected one number or \["),
    (
        WEIGHTED,
        {"chain": [Scale(np.ones((9, 9, 4)))]},
        r"`values` of Scale has shape \[9, 9, 4\], expected one number",
    ),
    (WEIGHTED, {"chain": [BatchNorm(1, 0, [1, 2], 1)]}, r"`mean` of BatchNorm has shape \[2\], expected"),
    (CONVS, {"chain": [MaxPool(2), MaxPool(2)]}, r"`chain` holds 2 MaxPools|`size` makes a window"),
    (DENSE, {"chain": [MaxPool(2)]}, r"`chain` holds .*MaxPool.*expected none after a dense layer"),
    (CONVS, {"chain": [MaxPool(9)]}, r"`size` makes a window of 9 x 9 .*larger than the padded input"),
    (
        CONVS,
        {"chain": [MaxPool(2, padding=2)]},
        r"`padding` is 2: a window of 2 x 2 lies wholly in it, expected",
    ),
    (CONVS, {"chain": [MaxPool(2, padding="full")]}, r"`padding` is 'full', expected"),
    (
        ("bbconv2d", "bbpointwiseconv2d", "bbfc"),
        {"chain": [PReLU(-1), Bias(-2.5), PReLU(-1), Bias(-1.25)]},
        r"`chain` changes sign more than twice in channels 0, 1, 2, 3, expected one interval",
    ),
    # rules
    (RULED, {"rule": 3}, r"`rule` is 3, expected a cbin_nn.rule.Rule"),
    (RULED, {"rule": Rule.from_thresholds([1, 2, 3])}, r"`rule` has shape \[3\], expected \["),
    (
        CONVS,
        {"rule": Rule.from_thresholds(np.ones((1, 9, 4), int))},
        r"`rule` has shape \[1, 9, 4\], expected \[",
    ),
    (
        RULED,
        {"rule": Rule.from_thresholds([1] * 4), "prelu": 0.5},
        r"`rule` is given together with `prelu` or `chain`",
    ),
    (RULED, {"rule": Rule.from_thresholds([1] * 4), "chain": [Bias(1)]}, r"`rule` is given together"),
    # 8-bit inputs
    (BYTES, {"input_scale": 0}, r"`input_scale` .*scale is 0"),
    (BYTES, {"input_scale": NAN}, r"`input_scale` is nan .*expected finite"),
    (BYTES, {"input_scale": "x"}, r"`input_scale` is 'x', expected real numbers"),
    (BYTES, {"input_scale": [1, 2, 3]}, r"`input_scale` has different values, expected one for all channels"),
    (BYTES, {"input_offset": float("inf")}, r"`input_offset` is inf .*expected finite"),
    (BYTES, {"input_offset": 0.61803399}, r"`input_scale` and `input_offset`: .*no fraction p/m"),
    (
        ("qqconv2d",),
        {"weight_scale": [1, 2, 3]},
        r"`weight_scale` has shape \[3\], expected one number or \[4\]",
    ),
    (("qqconv2d",), {"weight_scale": NAN}, r"`weight_scale` is nan .*expected finite"),
    (
        ("qqconv2d",),
        {"x": np.ones((1, 20, 20, 256), np.uint8), "weights": ones(1, 20, 20, 256)},
        r"`weights` has shape .*do not fit a 32-bit accumulator, expected fewer taps",
    ),
    # pools
    (("bmaxpool2d",), {"channels": 0}, r"`channels` is 0, expected an integer from 1 to 65535"),
    (
        ("bmaxpool2d",),
        {"channels": 65},
        r"`x` has shape \[2, 5, 6, 2\], expected \[N, H, W, 3\]: .* 65 channels",
    ),
    (("bmaxpool2d",), {"channels": 40.0}, r"`channels` is 40.0, expected an integer"),
    (("bmaxpool2d",), {"size": 0}, r"`size` is 0, expected"),
    (("bmaxpool2d",), {"size": 6}, r"`size` makes a window of 6 x 6 pixels, larger than .* 5 x 6"),
    (("bmaxpool2d",), {"strides": 0}, r"`strides` is 0, expected"),
    (("bmaxpool2d",), {"padding": 2}, r"`padding` is 2: a window of 2 x 2 lies wholly in it"),
    (("bmaxpool2d",), {"padding": "around"}, r"`padding` is 'around', expected"),
    (
        ("bmaxpool2d",),
        {"use_and": [True, False]},
        r"`use_and` is bool \[2\], expected one bool or bool \[40\]",
    ),
    (("bmaxpool2d",), {"use_and": 1}, r"`use_and` is int64 \[\], expected one bool"),
    # outputs
    (("bbqfc",), {"output": "i64"}, r"`output` is 'i64', expected \"i8\", \"i16\" or \"i32\""),
    (("bbqfc",), {"scale": 0}, r"`scale` is 0, expected a normal float32 above 0"),
    (("bbqfc",), {"scale": -1.0}, r"`scale` is -1.0, expected"),
    (("bbqfc",), {"scale": NAN}, r"`scale` is nan .*expected finite"),
    (("bbqfc",), {"scale": 1e-37, "chain": Scale(1e30)}, r"`chain`: its logits do not fit"),
    (("bbqfc",), {"return_scale": 1}, r"`return_scale` is 1, expected True or False"),
    (("bbqfc",), {"chain": [PReLU(0.5), Bias(1), PReLU(0.5)]}, r"`chain`: .*more than two linear pieces"),
]


def bigger(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape with a kernel of 3 x 7."""
    return (3, 7, shape[2]) if len(shape) == 3 else (shape[0], 3, 7, shape[3])


CASES = [(family, change, message) for families, change, message in BAD for family in families]


@pytest.mark.parametrize("family", GOOD)
def test_the_good_arguments_are_good(family: str) -> None:
    found = getattr(ops, family)(**GOOD[family])
    assert len(found) == 2


@pytest.mark.parametrize(
    "family, change, message",
    CASES,
    ids=[f"{family}-{'-'.join(change)}-{i}" for i, (family, change, _) in enumerate(CASES)],
)
def test_a_bad_argument_is_named(family: str, change: dict[str, Any], message: str) -> None:
    arguments = dict(GOOD[family])
    for name, value in change.items():
        if name == "rule" and isinstance(value, Rule) and value.shape == (4,):
            value = Rule.from_thresholds([1] * OUTPUTS[family])
        arguments[name] = value(GOOD[family]) if callable(value) and not isinstance(value, Rule) else value
    for way in (getattr(ops, family), getattr(ops, family).model):
        with pytest.raises(InvalidArgument, match=message) as caught:
            way(**arguments)
        assert isinstance(caught.value, ValueError)
        assert "expected" in str(caught.value) or caught.value.slug in {
            "unsupported-scale",
            "output-overflow",
            "too-many-pieces",
        }
        assert caught.value.slug != "bad-layer-argument", "left to the native builder"


def test_every_family_and_argument_is_in_the_table() -> None:
    import inspect

    for family in GOOD:
        tried = {name for families, change, _ in BAD if family in families for name in change}
        assert tried >= set(inspect.signature(getattr(ops, family)).parameters), family


@pytest.mark.parametrize(
    "x, message",
    [
        ([1.0, NAN], "`x` is NaN 1 times, expected numbers"),
        ([True, False], r"`x` is bool, expected real numbers .*np.where"),
        ([1j], "`x` is complex128, expected real"),
        (["a"], "`x` is <U1, expected real"),
        (1.0, r"`x` has shape \[\], expected \[\.\.\., C\]"),
        (np.ones((3, 0)), r"`x` has shape \[3, 0\], expected"),
    ],
)
def test_pack_refuses(x: Any, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        ops.pack(x)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((words(1), 33), r"`words` has shape \[1\], expected \[\.\.\., 2\]: the words of 33 channels"),
        ((words(1, value=2), 1), "`words` has a bit set above channel 0"),
        ((np.ones(1), 1), "`words` is float64, expected packed uint32"),
        ((np.uint32(1), 1), r"`words` has shape \[\]"),
        ((words(1), 0), "`channels` is 0, expected an integer from 1"),
        ((words(1), 1.0), "`channels` is 1.0, expected an integer"),
    ],
)
def test_unpack_refuses(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        ops.unpack(*arguments)


def test_a_packed_model_checks_its_input() -> None:
    model, batch = ops.bbconv2d.model(**GOOD["bbconv2d"])
    for bad, message in (
        (batch.astype(np.int32), r"`images` is int32, expected packed uint32 \[N, H, W, 2\]"),
        (batch[:, :4], r"`images` has shape \[2, 4, 6, 2\], expected \[N, 5, 6, 2\]"),
        (batch | np.uint32(1 << 30), "`images` has a bit set above channel 39"),
    ):
        with pytest.raises(InvalidArgument, match=message):
            model.run(bad)
        with pytest.raises(InvalidArgument, match=message):
            model.bench("qemu-mps2-an500", bad)
