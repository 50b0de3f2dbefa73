"""`verify` against live PyTorch: faulty readings, sources that change, split signs, modules that stay as they
are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cbin_nn
import numpy as np
import pytest
from cbin_nn import converters
from cbin_nn.converters import graph as g
from cbin_nn.converters import lower, read_source
from cbin_nn.images import draw_images
from cbin_nn.model import assemble
from conftest import FIXTURES
from sabotage import Hunt, hunt_readings

if os.environ.get("CBIN_NN_REQUIRE_ALL") != "1":
    pytest.importorskip("torch", reason="make test-frameworks installs torch in .venv-torch")

import torch
import torch_networks as networks

SOURCES = ("torch_2.pt2", "torch_9.pt2", "torch_17.pt2")


def test_faulty_readings_are_found_by_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hunt = Hunt()
    for name in SOURCES:
        source = FIXTURES / "frameworks" / name
        images = np.load(source.with_suffix(".npz"))["images"]
        hunt_readings(source, images[:6], tmp_path, monkeypatch, "torch", hunt, every=2)
    with capsys.disabled():
        print(f"\n{hunt.table('torch, readings')}")
    assert not hunt.missed and hunt.found >= 50 and hunt.placed >= 0.9 * hunt.found


class Net(torch.nn.Module):
    """Two binary layers; `sign` is the second one's, `end` what becomes of the logits."""

    input_shape = (3, 8, 8)

    def __init__(self, sign: Any = networks.where_sign, end: Any = lambda x: x) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.conv = networks.BinaryConv(3, 16, 3)
        self.norm = torch.nn.BatchNorm2d(16)
        torch.nn.init.normal_(self.norm.running_mean, 0, 300)
        torch.nn.init.constant_(self.norm.running_var, 1e5)
        torch.nn.init.normal_(self.norm.weight)
        self.head = networks.BinaryLinear(16 * 36, 5)
        self.sign, self.end = sign, end

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.end(self.head(self.sign(self.norm(self.conv(x))).flatten(1)))


def judged(module: torch.nn.Module, count: int = 8, **options: Any) -> Any:
    images = draw_images(count, 8, 8, 1)
    model = cbin_nn.convert(module, input_shape=(3, 8, 8), **options)
    return cbin_nn.verify(model, module, images, engine="framework", input_shape=(3, 8, 8))


@pytest.mark.parametrize("end", ["softmax", "log_softmax"])
def test_a_closing_softmax_is_evaluated(end: str) -> None:
    check = judged(Net(end=lambda x: getattr(torch, end)(x * 0.05, dim=1)).eval())
    assert check.exact and check.logit_error is None, str(check)
    assert check.reader[-1].tensor == end


@pytest.mark.parametrize("kind", ["softmax", "another factor"])
def test_an_end_that_was_read_wrong_is_found(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """What keeps the classes, but not the numbers."""
    module = Net(end=lambda x: torch.softmax(x * 0.05, dim=1)).eval()
    graph = read_source(module, input_shape=(3, 8, 8))
    last = graph.nodes[-1]
    assert isinstance(last, g.Softmax)
    if kind == "softmax":
        changed = graph.rebuilt(graph.nodes[:-1], last.inputs[0])
    else:
        wrong = g.Softmax(last.name, last.layer, last.inputs, log=True)
        changed = graph.rebuilt([*graph.nodes[:-1], wrong], last.name)
    model = assemble(*lower(changed))
    monkeypatch.setattr(converters, "read_source", lambda *a, **k: changed)
    check = cbin_nn.verify(model, module, draw_images(8, 8, 8, 1), input_shape=(3, 8, 8))
    assert not check.exact and check.top1_agree == 8
    assert check.first_fault is not None and check.first_fault[0] == "reader"


def test_a_batch_that_is_fixed_is_filled_up_and_cut_off() -> None:
    module = Net().eval()
    program = torch.export.export(module, (torch.zeros(3, *module.input_shape),))
    images = draw_images(8, 8, 8, 1)  # 3, 3 and 2
    check = cbin_nn.verify(cbin_nn.convert(program), program, images, engine="framework")
    assert check.exact and check.images == 8 and check.top1_agree == 8
    assert check.reader[0].values == 8 * 6 * 6 * 16


def test_a_sign_that_is_split_is_judged_by_its_three_values() -> None:
    """torch.sign of sums without a BatchNorm sees exact zeros, right before the last layer."""

    class Zeros(Net):
        def __init__(self) -> None:
            super().__init__()
            self.conv = networks.BinaryConv(3, 16, 3, bias=False)
            self.head = networks.BinaryLinear(16 * 36, 5, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.sign(self.conv(x)).flatten(1))

    module = Zeros().eval()
    images = np.zeros((6, 8, 8, 3), np.uint8)
    images[1:] = draw_images(5, 8, 8, 1) // 64  # small numbers: sums of 0 are common
    model = cbin_nn.convert(module, input_shape=(3, 8, 8))
    assert any("split into two bits" in note for note in model.conversion.notes)
    check = cbin_nn.verify(model, module, images, engine="framework", input_shape=(3, 8, 8))
    assert check.exact and check.logit_error == 0, str(check)
    sign = next(region for region in check.reader if region.kind == "bits")
    assert sign.values == 6 * 6 * 6 * 32


def test_a_program_that_depends_on_chance_is_not_called_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read as if its dropout did nothing. The random state of torch is as it was."""

    class Chance(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            bits = self.sign(self.norm(self.conv(x)))
            return self.head(
                (torch.nn.functional.dropout(bits, 0.5, True) if self.random else bits).flatten(1)
            )

    module = Chance().eval()
    module.random = False
    images = draw_images(8, 8, 8, 1)
    graph = read_source(module, input_shape=(3, 8, 8))
    model = cbin_nn.convert(module, input_shape=(3, 8, 8))
    module.random = True
    monkeypatch.setattr(converters, "read_source", lambda *a, **k: graph)
    state = torch.random.get_rng_state()
    check = cbin_nn.verify(model, module, images, engine="framework", input_shape=(3, 8, 8))
    assert check.verdict == "can't be judged" and not check.exact
    assert [region.layer for region in check.reader if not region.judged] == ["flatten"]
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_module_is_as_it_was() -> None:
    module = Net().eval()
    state = {name: value.clone() for name, value in module.state_dict().items()}
    assert judged(module).exact
    assert not any(child.training for child in module.modules())
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in module.parameters())
    assert not any(child._forward_hooks or child._forward_pre_hooks for child in module.modules())
