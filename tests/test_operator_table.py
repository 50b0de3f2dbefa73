"""Every row of the README's operator table, by name: reference, optimized, oracle and board agree.

The calls are taken from the table itself and evaluated. The oracle is float64 on unpacked values;
parameters are dyadic, so that it is exact and ties occur.
"""

from __future__ import annotations

import re
import shutil
from typing import Any

import numpy as np
import pytest
from cbin_nn import deploy, ops
from cbin_nn.errors import BoardError
from cbin_nn.rule import BatchNorm
from conftest import ROOT, require

BOARD = "qemu-mps2-an500"
NAMES = [
    "QBConv2D",
    "QBConv2D_Optimized",
    "QBConv2D_Optimized_PReLU",
    "QQConv2D",
    "QQConv2D_Optimized",
    "QQConv2D_Optimized_PReLU",
    "BBConv2D",
    "BBConv2D_Optimized",
    "BBConv2D_Optimized_PReLU",
    "BBPointwiseConv2D",
    "BBPointwiseConv2D_Optimized",
    "BBPointwiseConv2D_Optimized_PReLU",
    "BMaxPool2D",
    "BMaxPool2D_Optimized",
    "BBFC",
    "BBFC_Optimized",
    "BBFC_Optimized_PReLU",
    "BBQFC",
    "BBQFC_Optimized",
    "BBQFC_Optimized_PReLU",
]
#: name -> call, as the README prints them.
TABLE = dict(
    re.findall(r"^\| (\w+) \| `(ops\.[^`]+)` \|", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
)
CHANNELS = (1, 3, 8, 16, 24, 31, 33, 40, 64, 96)


class Case:
    """Arguments of one family, with their real meaning."""

    def __init__(self, family: str, channels: int, seed: int) -> None:
        rng = np.random.default_rng([seed, channels])
        self.channels, filters = channels, 37
        plane = (3, 1, 1) if family in ("bbfc", "bbqfc") else (3, 5, 6)
        if family[0] == "q":
            self.x: np.ndarray = rng.integers(0, 256, (*plane, channels), dtype=np.uint8)
            self.real = self.x.astype(np.float64)
        else:
            self.real = rng.choice([-1.0, 1.0], (*plane, channels))
            self.x = ops.pack(self.real)
        side = 3 if family in ("qbconv2d", "qqconv2d", "bbconv2d") else 1
        shape = (filters, side, side, channels)
        if family == "qqconv2d":
            self.w = rng.integers(-128, 128, shape, dtype=np.int8)
        else:
            self.w = rng.choice(np.array([-1, 1], np.int8), shape)
        self.kernel = self.w.astype(np.float64)
        if family in ("bbfc", "bbqfc"):
            self.x, self.w = self.x[:, 0, 0], self.w[:, 0, 0]
        wide = {"qbconv2d": 64.0, "qqconv2d": 4096.0}.get(family, 1.0)  # accumulators are wider
        self.gamma = rng.choice([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0], filters)
        self.beta = rng.integers(-8, 9, filters) / 4 * wide
        self.mean = rng.integers(-6, 7, filters) / 2 * wide
        self.slopes = rng.integers(-6, 7, filters) / 4
        self.bn = BatchNorm(self.gamma, self.beta, self.mean, np.float32(4), 0)

    def values(self, name: str) -> np.ndarray:
        """Real values before the sign, or the pooled ones."""
        if name.startswith("BMaxPool"):
            n, h, w, c = self.real.shape
            return (
                self.real[:, : h // 2 * 2, : w // 2 * 2].reshape(n, h // 2, 2, w // 2, 2, c).max(axis=(2, 4))
            )
        views = np.lib.stride_tricks.sliding_window_view(self.real, self.kernel.shape[1:3], axis=(1, 2))
        y = np.einsum("nhwcij,oijc->nhwo", views, self.kernel)
        if name.endswith("_PReLU"):
            y = np.where(y >= 0, y, self.slopes * y)
        return self.gamma * (y - self.mean) / 2 + self.beta


def evaluate(call: str, case: Case) -> Any:
    return eval(call, {"ops": ops, **vars(case)})


def outputs_of(name: str) -> tuple[str, ...]:
    return ("i8", "i16", "i32") if name.startswith("BBQFC") else ("",)


def family_of(call: str) -> str:
    return re.findall(r"^ops\.(\w+)\(", call)[0]


def test_the_table_has_the_twenty_names() -> None:
    assert list(TABLE) == NAMES
    for name, call in TABLE.items():
        assert ('kernel="reference"' in call) == ("_Optimized" not in name), name
        assert ("prelu=" in call) == name.endswith("_PReLU"), name
        assert family_of(call) == re.sub("_.*", "", name).lower()


@pytest.mark.parametrize("name", NAMES)
def test_reference_optimized_and_oracle_agree(name: str) -> None:
    for seed, channels in enumerate(CHANNELS):
        case = Case(family_of(TABLE[name]), channels, seed)
        values = case.values(name)
        for output in outputs_of(name):
            call = TABLE[name].replace('"i8"', f'"{output}"')
            found = evaluate(call, case)
            plain = call.replace(', kernel="reference"', "")
            for kernel in ("reference", "optimized"):
                np.testing.assert_array_equal(evaluate(f'{plain[:-1]}, kernel="{kernel}")', case), found)
            if output:
                integers, scale = evaluate(f"{plain[:-1]}, return_scale=True)", case)
                np.testing.assert_array_equal(integers, found)
                assert found.dtype == np.dtype(output.replace("i", "int"))
                check_integers(found, values[:, 0, 0] / scale)
                continue
            bits = ops.unpack(found, values.shape[-1])  # refuses set padding bits
            expected = np.where(values >= 0, 1, -1)
            np.testing.assert_array_equal(bits, expected.reshape(bits.shape))


def check_integers(found: np.ndarray, exact: np.ndarray) -> None:
    """Rounded to nearest; a value within the fixed point's error of a half may go either way."""
    assert np.abs(found - exact).max() <= 0.5 + 1e-4
    clear = np.abs(exact - np.floor(exact) - 0.5) > 1e-4
    np.testing.assert_array_equal(found[clear], np.rint(exact)[clear])


@pytest.mark.parametrize("name", NAMES)
def test_the_emulated_board_agrees(name: str) -> None:
    require("qemu-system-arm", shutil.which("qemu-system-arm") is not None, "apt-get install qemu-system-arm")
    try:
        deploy.runner_path(BOARD)
    except BoardError:
        require("the runner image", False, "make firmware")
    for output in outputs_of(name):
        call = TABLE[name].replace('"i8"', f'"{output}"')
        case = Case(family_of(call), 40, 99)
        model, batch = evaluate(re.sub(r"^(ops\.\w+)\(", r"\1.model(", call), case)
        report = model.bench(BOARD, batch)
        assert (report.images, report.agree) == (3, 3)
        expected = evaluate(call, case)
        np.testing.assert_array_equal(report.outputs.reshape(expected.shape), expected)
