"""`cbin_nn.ops`: packing, and every family against a loop-free float64 evaluation of its definition."""

from __future__ import annotations

import doctest
import inspect
from typing import Any

import numpy as np
import pytest
from cbin_nn import Rule, ops
from cbin_nn.errors import InvalidArgument
from cbin_nn.rule import BatchNorm, Bias, MaxPool, PReLU, Scale
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

CHANNELS = (1, 3, 8, 16, 24, 31, 33, 40, 64, 96)
SIGNS = np.array([-1, 1], np.int8)


def test_the_examples_of_the_docstrings() -> None:
    outcome = doctest.testmod(ops)
    assert outcome.attempted >= 25
    assert outcome.failed == 0


def test_the_examples_of_the_page() -> None:
    outcome = doctest.testfile(str(ROOT / "docs" / "operators.md"), module_relative=False)
    assert outcome.attempted >= 20
    assert outcome.failed == 0


def test_the_page_lists_every_family() -> None:
    page = (ROOT / "docs" / "operators.md").read_text()
    for name in ops.__all__:
        assert f"`{name}`" in page


def test_families_are_plain_functions() -> None:
    for name in ops.__all__:
        function = getattr(ops, name)
        assert inspect.isfunction(function)
        assert function.__doc__
    assert inspect.signature(ops.bbconv2d).return_annotation == "Words"


# ------------------------------------------------------------------------------------------------
# packing


@given(st.integers(1, 100), st.integers(0, 3), st.integers(0, 2**32 - 1))
def test_pack_and_unpack(channels: int, rows: int, seed: int) -> None:
    signs = np.random.default_rng(seed).choice(SIGNS, (2, rows, channels))
    words = ops.pack(signs * 0.25)
    assert words.dtype == np.uint32
    assert words.shape == (2, rows, -(-channels // 32))
    back = ops.unpack(words, channels)
    assert back.dtype == np.int8
    np.testing.assert_array_equal(back, signs)
    for c in range(channels):
        np.testing.assert_array_equal(words[..., c // 32] >> (c % 32) & 1, signs[..., c] > 0)
    if channels % 32:
        assert not (words[..., -1] >> (channels % 32)).any()


def test_the_sign_of_zero() -> None:
    assert ops.pack([0.0, -0.0, -1e-45, 1e-45, np.inf, -np.inf]).tolist() == [0b011011]
    assert ops.pack(np.array([0, -1, 5], np.int8)).tolist() == [0b101]
    strided = np.arange(-8, 8).reshape(2, 8)[:, ::2]
    np.testing.assert_array_equal(ops.unpack(ops.pack(strided), 4), np.where(strided >= 0, 1, -1))


# ------------------------------------------------------------------------------------------------
# convolutions against their definition


def same(size: int, kernel: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    """TensorFlow's rule, as its documentation gives it."""
    span = (kernel - 1) * dilation + 1
    total = max(span - (size % stride or stride), 0)
    return total // 2, total - total // 2


def convolve(
    real: np.ndarray, w: np.ndarray, strides: Any, pads: Any, dilation: Any, fill: float = 0
) -> np.ndarray:
    """Float64 accumulators [N, H', W', O]; weights [O, kh, kw, C]."""
    padded = np.pad(real.astype(np.float64), ((0, 0), *pads, (0, 0)), constant_values=fill)
    spans = [(k - 1) * d + 1 for k, d in zip(w.shape[1:3], dilation, strict=True)]
    views = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=(1, 2))
    taps = views[:, :: strides[0], :: strides[1], :, :: dilation[0], :: dilation[1]]
    return np.einsum("nhwcij,oijc->nhwo", taps, w.astype(np.float64))


def both(function: Any, *args: Any, **kwargs: Any) -> np.ndarray:
    """The result, the same from both kernels."""
    found = function(*args, **kwargs)
    np.testing.assert_array_equal(function(*args, kernel="reference", **kwargs), found)
    np.testing.assert_array_equal(function(*args, threads=1, **kwargs), found)
    return found


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_convolutions_of_bits_are_their_definition(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    channels, filters = data.draw(st.sampled_from(CHANNELS)), data.draw(st.sampled_from((1, 5, 32, 37)))
    kernel = (data.draw(st.integers(1, 5)), data.draw(st.integers(1, 4)))
    strides = (data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3)))
    dilation = (data.draw(st.integers(1, 2)), data.draw(st.integers(1, 2)))
    padding = data.draw(st.sampled_from(["same", 2, ((0, 1), (3, 0)), ((1, 4), (0, 2))]))
    one = data.draw(st.sampled_from([0, 1]))
    height, width = data.draw(st.integers(9, 12)), data.draw(st.integers(7, 11))
    if padding == "same":
        pads = tuple(
            same(s, k, t, d) for s, k, t, d in zip((height, width), kernel, strides, dilation, strict=True)
        )
    else:
        pads = ((2, 2), (2, 2)) if padding == 2 else padding
    real = rng.choice(SIGNS, (2, height, width, channels))
    geometry = {"strides": strides, "padding": padding, "dilation": dilation, "pad_values": one}
    if data.draw(st.booleans()):
        w = rng.choice(SIGNS, (filters, *kernel, channels))
        found, count = both(ops.bbconv2d, ops.pack(real), w, **geometry), filters
        acc = convolve(real, w, strides, pads, dilation, one)
    else:
        w = rng.choice(SIGNS, (*kernel, channels))
        found, count = both(ops.bbdepthwiseconv2d, ops.pack(real), w, **geometry), channels
        grouped = ops.bbconv2d(ops.pack(real), w.transpose(2, 0, 1)[..., None], groups=channels, **geometry)
        np.testing.assert_array_equal(grouped, found)
        parts = [
            convolve(real[..., c : c + 1], w[None, :, :, c, None], strides, pads, dilation, one)
            for c in range(channels)
        ]
        acc = np.concatenate(parts, axis=-1)
    np.testing.assert_array_equal(ops.unpack(found, count), np.where(acc >= 0, 1, -1))


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_convolutions_of_bytes_are_their_definition(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    channels, filters = data.draw(st.sampled_from((1, 3, 8, 33))), data.draw(st.sampled_from((1, 8, 33)))
    kernel, padding = data.draw(st.sampled_from([1, 3, 4])), data.draw(st.sampled_from(["valid", "same", 1]))
    pads = {"valid": (0, 0), "same": same(7, kernel, 2), 1: (1, 1)}[padding]
    signed = data.draw(st.booleans())
    q = rng.integers(-128, 128, (2, 7, 7, channels)) + (0 if signed else 128)
    x = q.astype(np.int8 if signed else np.uint8)
    # (scale, offset) as float32, and the integers mul * q + add they stand for.
    scale, offset, mul, add = data.draw(
        st.sampled_from([(1, 0, 1, 0), (1 / 127.5, -1, 2, -255), (1 / 255, 0, 1, 0), (-0.5, 3, -1, 6)])
    )
    integers = mul * q + add
    threshold = rng.integers(-2000, 2001, filters) / 4
    if data.draw(st.booleans()):
        w = rng.choice(SIGNS, (filters, kernel, kernel, channels))
        function, extra, factor = ops.qbconv2d, {}, np.ones(filters)
    else:
        w = rng.integers(-128, 128, (filters, kernel, kernel, channels), dtype=np.int8)
        factor = rng.choice([-0.5, 0.25, 1.0, 2.0], filters)
        function, extra = ops.qqconv2d, {"weight_scale": factor}
    acc = convolve(integers, w, (2, 2), (pads, pads), (1, 1))
    unit = abs(float(np.float32(scale))) / abs(mul)  # the chain undoes the size of the scale
    steps = [Scale(1 / unit), Bias(threshold)]
    found = both(
        function,
        x,
        w,
        strides=2,
        padding=padding,
        input_scale=scale,
        input_offset=offset,
        chain=steps,
        **extra,
    )
    y = acc * factor + threshold
    clear = np.abs(y) > 1e-3  # the chain undoes the scale up to float32 rounding
    bits = ops.unpack(found, filters)
    np.testing.assert_array_equal(bits[clear], np.where(y >= 0, 1, -1)[clear])
    assert clear.mean() > 0.9


def test_the_zero_of_the_meaning_pads_a_first_layer() -> None:
    x = np.full((1, 3, 3, 1), 255, np.uint8)
    w = np.ones((1, 3, 3, 1), np.int8)
    # 2 q - 255 = 255 a tap: 4 taps in the corner, 6 at the edge, 9 in the middle.
    for taps, expected in ((4, 9), (6, 5), (9, 1)):
        rule = Rule.from_thresholds([255 * taps])
        bits = both(ops.qbconv2d, x, w, padding=1, input_scale=1 / 127.5, input_offset=-1, rule=rule)
        assert bits.sum() == expected
    int8 = (x ^ 0x80).view(np.int8)  # q - 128, with the same meaning: scale * q + (offset + 128 * scale)
    same_meaning = both(ops.qbconv2d, int8, w, padding=1, input_scale=2, input_offset=1, rule=rule)
    np.testing.assert_array_equal(same_meaning, bits)


@pytest.mark.parametrize("filters", [64, 6])
@pytest.mark.parametrize("pooled", [False, True])
def test_groups_are_convolutions_apart(filters: int, pooled: bool) -> None:
    rng = np.random.default_rng(filters)
    real = rng.choice(SIGNS, (2, 6, 6, 64))
    w = rng.choice(SIGNS, (filters, 3, 3, 32))
    mean, gamma = rng.integers(-9, 9, filters) + 0.5, rng.choice([-1.0, 1.0], filters)
    slopes = rng.choice([-0.5, 0.5], filters)
    bn = BatchNorm(gamma, 0, mean, 1)
    chain = [MaxPool(2), PReLU(slopes), bn] if pooled else [PReLU(slopes), bn]
    found = both(ops.bbconv2d, ops.pack(real), w, groups=2, chain=chain)
    acc = np.concatenate(
        [convolve(real[..., 32 * g : 32 * g + 32], part, (1, 1), ((0, 0), (0, 0)), (1, 1))
         for g, part in enumerate(np.split(w, 2))],
        axis=-1,
    )  # fmt: skip
    if pooled:
        acc = acc.reshape(2, 2, 2, 2, 2, filters).max(axis=(2, 4))
    y = gamma * (np.where(acc >= 0, acc, slopes * acc) - mean)
    np.testing.assert_array_equal(ops.unpack(found, filters), np.where(y >= 0, 1, -1))
    with pytest.raises(InvalidArgument, match=r"`groups` is 2: .*expected groups=1"):
        ops.bbconv2d.model(ops.pack(real), w, groups=2, chain=chain)


# ------------------------------------------------------------------------------------------------
# pools


def pool(values: np.ndarray, size: Any, strides: Any, pads: Any, lowest: float) -> np.ndarray:
    padded = np.pad(values, ((0, 0), *pads, (0, 0)), constant_values=lowest)
    views = np.lib.stride_tricks.sliding_window_view(padded, size, axis=(1, 2))
    return views[:, :: strides[0], :: strides[1]].max(axis=(4, 5))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_pool_in_a_chain_is_a_maximum_of_real_values(data: st.DataObject) -> None:
    """All three cases (OR, AND, two-sided), with overlap, padding and per-element slopes on either side."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    real = rng.choice(SIGNS, (2, 8, 7, 5))
    w = rng.choice(SIGNS, (6, 3, 3, 5))
    size, strides = data.draw(st.sampled_from([((2, 2), (2, 2)), ((3, 2), (2, 1)), ((3, 3), (1, 2))]))
    pads = data.draw(st.sampled_from([((0, 0), (0, 0)), ((1, 0), (0, 1)), ((1, 1), (1, 1))]))
    acc = convolve(real, w, (1, 1), ((1, 1), (1, 1)), (1, 1))
    shape = pool(acc, size, strides, pads, -np.inf).shape[1:]
    where = data.draw(st.sampled_from(["channel", "before", "after"]))

    def slopes(plane: tuple[int, ...], element: bool) -> np.ndarray:
        return rng.choice([-1.0, -0.5, 0.5, 1.0], plane if element else plane[-1:])

    gamma, mean = rng.choice([-1.0, 1.0, 2.0], 6), rng.integers(-5, 9, 6) + 0.5
    if where == "before":
        first, second = slopes(acc.shape[1:], True), np.ones(6)
    else:
        first, second = np.full(6, 0.5), slopes(shape, where == "after")
        if where == "after":  # a rule an element shares its channel's invert: one sign of slope a channel
            second = np.abs(second) * rng.choice([-1.0, 1.0], 6)
            gamma = np.abs(gamma)
    bn = BatchNorm(gamma, 0.25, mean, 1, 0)
    chain = [MaxPool(size, strides, pads), PReLU(second), bn]
    found = both(ops.bbconv2d, ops.pack(real), w, padding=1, prelu=first, chain=chain)
    y = pool(np.where(acc >= 0, acc, first * acc), size, strides, pads, -np.inf)
    y = gamma * (np.where(y >= 0, y, second * y) - mean) + 0.25
    np.testing.assert_array_equal(ops.unpack(found, 6), np.where(y >= 0, 1, -1))


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("padding", ["valid", "same", 1])
def test_pools_of_bits(channels: int, padding: Any) -> None:
    rng = np.random.default_rng(channels)
    signs = rng.choice(SIGNS, (2, 7, 6, channels))
    use_and = rng.choice([False, True], channels)
    turn = np.where(use_and, -1, 1)
    pads = {"valid": ((0, 0), (0, 0)), "same": (same(7, 3, 2), same(6, 2, 2)), 1: ((1, 1), (1, 1))}[padding]
    found = both(ops.bmaxpool2d, ops.pack(signs), channels, (3, 2), 2, padding, use_and)
    expected = pool((signs * turn).astype(np.float64), (3, 2), (2, 2), pads, -np.inf) * turn
    np.testing.assert_array_equal(ops.unpack(found, channels), expected)
    plain = ops.bmaxpool2d(ops.pack(signs), channels, 2)
    np.testing.assert_array_equal(plain, ops.bmaxpool2d(ops.pack(signs), channels, 2, 2, use_and=False))


# ------------------------------------------------------------------------------------------------
# dense layers and rules


@pytest.mark.parametrize("channels", CHANNELS)
def test_dense_layers_of_planes_and_of_features(channels: int) -> None:
    rng = np.random.default_rng(channels)
    signs = rng.choice(SIGNS, (4, 2, 3, channels))
    w = rng.choice(SIGNS, (35, 6 * channels))
    acc = signs.reshape(4, -1).astype(np.int64) @ w.T
    thresholds = rng.integers(-6, 7, 35)
    bits = both(ops.bbfc, ops.pack(signs), w, rule=Rule.from_thresholds(thresholds))
    assert bits.shape == (4, 2)
    np.testing.assert_array_equal(ops.unpack(bits, 35), np.where(acc >= thresholds, 1, -1))
    flat = ops.pack(signs.reshape(4, -1))
    np.testing.assert_array_equal(ops.bbfc(flat, w, chain=Bias(-thresholds)), bits)
    np.testing.assert_array_equal(both(ops.bbqfc, ops.pack(signs), w), acc)
    np.testing.assert_array_equal(ops.bbqfc(flat, w, output="i16"), acc)


def test_ties_go_to_even_and_the_ends_saturate() -> None:
    """All accumulators of 9 features, at scales that make ties, in every type."""
    signs = np.where(np.arange(10)[:, None] > np.arange(9), 1, -1)
    x, w, acc = ops.pack(signs), np.ones((1, 9), np.int8), signs.sum(axis=1)
    for scale in (2, 4, 0.25, 2**-5):  # powers of two: the fixed point needs no rounding
        for output in ("i8", "i16", "i32"):
            found, stated = both(ops.bbqfc, x, w, output=output, scale=scale), scale
            limits = np.iinfo(found.dtype)
            np.testing.assert_array_equal(found[:, 0], np.clip(np.rint(acc / stated), limits.min, limits.max))
    huge, scale = ops.bbqfc(x, w, chain=Scale(1e20), output="i8", return_scale=True)
    assert np.abs(huge.astype(int)).max() == 9
    assert scale == float(np.float32(1e20))
    chosen, scale = ops.bbqfc(x, w, chain=[Scale(1e20), Bias(3e19)], output="i8", return_scale=True)
    assert np.abs(chosen.astype(int)).max() == 127
    np.testing.assert_allclose(chosen[:, 0] * scale, acc * 1e20 + 3e19, atol=0.51 * scale)
    steep = ops.bbqfc(x, w, scale=1e-12)
    assert set(steep.ravel().tolist()) == {2**31 - 1, -(2**31)}


def test_prelu_and_batchnorm_come_before_the_scale() -> None:
    rng = np.random.default_rng(5)
    signs, w = rng.choice(SIGNS, (50, 40)), rng.choice(SIGNS, (7, 40))
    gamma, beta, mean = rng.normal(size=(3, 7)).astype(np.float32)
    slopes, variance = rng.normal(size=7).astype(np.float32), rng.random(7).astype(np.float32)
    bn = BatchNorm(gamma, beta, mean, variance)
    acc = (signs.astype(np.int64) @ w.T).astype(np.float64)
    logits = gamma * (np.where(acc >= 0, acc, slopes * acc) - mean) / np.sqrt(variance + 1e-3) + beta
    for output, worth in (("i8", 127), ("i16", 2**15 - 1), ("i32", 2**31 - 1)):
        q, scale = ops.bbqfc(ops.pack(signs), w, prelu=slopes, chain=bn, output=output, return_scale=True)
        assert scale * worth >= np.abs(logits).max()
        np.testing.assert_allclose(q * scale, logits, atol=0.6 * scale + 1e-5)


def test_a_rule_alone_and_its_chain_agree() -> None:
    rng = np.random.default_rng(7)
    x, w = ops.pack(rng.normal(size=(2, 5, 5, 40))), rng.choice(SIGNS, (9, 3, 3, 40))
    steps = [PReLU(rng.normal(size=(5, 5, 9))), Bias(rng.normal(size=9) * 9)]
    rule = Rule.from_chain(steps, accumulators=(-360, 360))
    assert rule.shape == (5, 5, 9)
    found = both(ops.bbconv2d, x, w, padding="same", rule=rule)
    np.testing.assert_array_equal(both(ops.bbconv2d, x, w, padding="same", chain=steps), found)


def test_empty_batches_strided_inputs_and_pointwise() -> None:
    rng = np.random.default_rng(3)
    x, w = ops.pack(rng.normal(size=(4, 5, 6, 40))), rng.choice(SIGNS, (33, 40))
    full = both(ops.bbpointwiseconv2d, x, w, strides=(2, 1))
    assert full.shape == (4, 3, 6, 2)
    np.testing.assert_array_equal(ops.bbpointwiseconv2d(x[::2], w, strides=(2, 1)), full[::2])
    np.testing.assert_array_equal(ops.bbconv2d(np.asfortranarray(x), w[:, None, None], strides=(2, 1)), full)
    assert ops.bbpointwiseconv2d(x[:0], w).shape == (0, 5, 6, 2)
    assert ops.bbqfc(x[:0, 0, 0], w).shape == (0, 33)


def test_the_model_of_a_call_gives_the_same() -> None:
    rng = np.random.default_rng(4)
    x = rng.integers(-128, 128, (3, 6, 6, 3), dtype=np.int8)
    w = rng.choice(SIGNS, (8, 3, 3, 3))
    model, batch = ops.qbconv2d.model(x, w, padding=1, prelu=0.5)
    np.testing.assert_array_equal(model.run(batch), ops.qbconv2d(x, w, padding=1, prelu=0.5))
    bits, fc = ops.pack(rng.normal(size=(3, 40))), rng.choice(SIGNS, (10, 40))
    model, batch = ops.bbqfc.model(bits, fc, output="i16")
    assert (model.input_dtype, model.output_dtype, batch.shape) == ("bits", "i16", (3, 1, 1, 2))
    np.testing.assert_array_equal(model.run(batch), ops.bbqfc(bits, fc, output="i16"))
    np.testing.assert_array_equal(model.run(batch[0]), ops.bbqfc(bits, fc, output="i16")[0])
    assert model.taps(batch[0])["bbqfc"].tolist() == model.run(batch[0]).tolist()
    lines: list[str] = []
    model.summary(lines.append)
    assert "Input: bits 1 x 1 x 40" in lines[0]
    assert "image 8 bytes" in lines[0]


def test_an_empty_batch_gives_an_empty_batch() -> None:
    words, pixels = np.zeros((0, 4, 4, 2), np.uint32), np.zeros((0, 4, 4, 40), np.uint8)
    signs = np.ones((3, 3, 3, 40), np.int8)
    assert ops.qbconv2d(pixels, signs).shape == (0, 2, 2, 1)
    assert ops.qqconv2d(pixels, signs).shape == (0, 2, 2, 1)
    assert ops.bbconv2d(words, signs).shape == (0, 2, 2, 1)
    assert ops.bbpointwiseconv2d(words, signs[:, 0, 0]).shape == (0, 4, 4, 1)
    assert ops.bbdepthwiseconv2d(words, np.ones((3, 3, 40), np.int8)).shape == (0, 2, 2, 2)
    assert ops.bmaxpool2d(words, 40, 2).shape == (0, 2, 2, 2)
    flat = np.zeros((0, 2), np.uint32)
    assert ops.bbfc(flat, signs[:, 0, 0]).shape == (0, 1)
    assert ops.bbqfc(flat, signs[:, 0, 0]).shape == (0, 3)


def test_ragged_input_names_the_argument() -> None:
    for call, argument in (
        (lambda: ops.pack([[1, 2], [3]]), "x"),
        (lambda: ops.unpack([[1, 2], [3]], 4), "words"),
        (lambda: ops.bbfc([[1, 2], [3]], np.ones((3, 40), np.int8)), "x"),
        (lambda: ops.bbfc(np.zeros((1, 2), np.uint32), [[1], [1, 2]]), "weights"),
    ):
        with pytest.raises(InvalidArgument, match=f"`{argument}`"):
            call()
