"""The comparison of optimizers: the rivals' steps against naive ones, what is tuned and what is run again."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import synthetic
from conftest import require

SCRIPTS = Path(__file__).resolve().parent.parent.parent / "scripts"


@pytest.fixture(scope="module", autouse=True)
def torch() -> Any:
    found = all(importlib.util.find_spec(name) is not None for name in ("torch", "lightning_fabric"))
    require("torch and lightning-fabric", found, "pip install 'cbin-nn[torch]'")
    import torch

    torch.set_num_threads(1)
    return torch


@pytest.fixture
def ablation(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The script; what it registers is taken out again."""
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])
    import ablation
    from cbin_nn.train.models import MODELS
    from cbin_nn.train.optimizers import OPTIMIZERS

    before = [(table, dict(table)) for table in (MODELS, OPTIMIZERS)]
    yield ablation
    for table, values in before:
        table.clear()
        table.update(values)


@pytest.fixture
def rivals(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])
    import rivals

    return rivals


# ------------------------------------------------------------------------------------------------
# the rivals, on gradients that are drawn


def walk(torch: Any, optimizer: Any, p: Any, steps: int, scale: float = 1.0) -> Any:
    """Gradients and the weights after each step, float64 `[steps, ...]`."""
    rng = np.random.default_rng(5)
    gradients, weights = [], []
    for _ in range(steps):
        gradients.append(rng.normal(size=p.shape).astype(np.float32) * scale)
        p.grad = torch.tensor(gradients[-1])
        optimizer.step()
        weights.append(p.detach().numpy().astype(np.float64).copy())
    return np.array(gradients, np.float64), np.array(weights)


def latent(torch: Any) -> Any:
    return torch.nn.Parameter(torch.tensor(np.random.default_rng(4).uniform(-0.3, 0.3, 200).astype("f")))


def test_momentum_without_more_is_torchs_sgd(torch: Any, rivals: Any) -> None:
    ours, theirs = latent(torch), latent(torch)
    a = rivals.LatentMomentum([{"params": [ours], "binary": True}], latent_lr=1e-3, momentum=0.9)
    b = torch.optim.SGD([theirs], lr=1e-3, momentum=0.9)
    np.testing.assert_allclose(walk(torch, a, ours, 30)[1], walk(torch, b, theirs, 30)[1], atol=1e-6)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e3])
def test_normalized_momentum_has_a_step_of_rms_1(torch: Any, rivals: Any, scale: float) -> None:
    p = latent(torch)
    weights = p.detach().numpy().astype(np.float64)
    options = {"momentum": 0.95, "nesterov": True, "normalize": True}
    optimizer = rivals.LatentMomentum([{"params": [p], "binary": True}], latent_lr=0.02, **options)
    average = np.zeros(200)
    for gradient, found in zip(*walk(torch, optimizer, p, 30, scale), strict=True):
        average = 0.95 * average + gradient
        u = gradient + 0.95 * average
        weights = np.clip(weights - 0.02 * u / np.sqrt((u**2).mean()), -1, 1)
        np.testing.assert_allclose(found, weights, atol=1e-5)


def test_second_order_bop_flips_by_its_rule(torch: Any, rivals: Any) -> None:
    p = latent(torch)
    weights = np.where(p.detach().numpy() >= 0, 1.0, -1.0)
    optimizer = rivals.SecondOrderBop([{"params": [p], "binary": True}], gamma=0.1, threshold=0.2, sigma=0.01)
    average, square, flipped = np.zeros(200), np.zeros(200), 0
    for gradient, found in zip(*walk(torch, optimizer, p, 60), strict=True):
        average = 0.9 * average + 0.1 * gradient
        square = 0.99 * square + 0.01 * gradient**2
        flip = (np.abs(average) > 0.2 * (np.sqrt(square) + 1e-8)) & (np.sign(average) == weights)
        weights = np.where(flip, -weights, weights)
        flipped += int(flip.sum())
        np.testing.assert_array_equal(found, weights)
    assert flipped > 100


def test_bayesbinn_samples_by_its_rule(torch: Any, rivals: Any) -> None:
    """At gradients of 0 the weights are draws; with gradients they end as the sign of minus their average."""
    p = torch.nn.Parameter(torch.ones(4000))
    optimizer = rivals.BayesBiNN([{"params": [p], "binary": True}], latent_lr=0.5)
    shares, natural = [], 10.0
    for _ in range(6):
        p.grad = torch.zeros(4000)
        optimizer.step()
        natural -= 0.5 * natural
        shares.append((float((p.detach() > 0).float().mean()), 1 / (1 + np.exp(-2 * natural))))
    np.testing.assert_allclose(*np.transpose(shares), atol=0.03)
    assert shares[-1][1] < 0.7
    p = latent(torch)
    optimizer = rivals.BayesBiNN([{"params": [p], "binary": True}], latent_lr=0.1)
    average = np.zeros(200)
    gradients, weights = walk(torch, optimizer, p, 40)
    for gradient in gradients:
        average = 0.9 * average + 0.1 * gradient
    # float32 loses little of an average of 4e14: nearly every sign is that of the average.
    assert (weights[-1] == -np.sign(average)).mean() > 0.95


def test_the_auxiliary_gradient_leaves_the_forward_pass_and_has_its_share(torch: Any, rivals: Any) -> None:
    from cbin_nn.train import BinaryLinear, Sign

    torch.manual_seed(0)
    layer, real = BinaryLinear(12, 5), torch.nn.Linear(12, 5, bias=False)
    compensated = rivals.Compensated(layer, Sign("ste"), real, share=0.3)
    x = torch.randn(7, 12)
    upstream = torch.randn(7, 5)
    gradients = []
    for function in (lambda v: layer(Sign("ste")(v)), real, compensated):
        v = x.clone().requires_grad_()
        function(v).backward(upstream)
        gradients.append(v.grad)
    binary, auxiliary, both = gradients
    assert torch.equal(compensated(x), layer(Sign("ste")(x)))
    assert torch.equal(compensated.eval()(x), layer(Sign("ste")(x)))
    torch.testing.assert_close(both, binary + 0.3 * auxiliary * binary.norm() / auxiliary.norm())


def test_a_network_with_auxiliary_gradients_computes_the_same(torch: Any, rivals: Any) -> None:
    from cbin_nn.images import draw_images
    from cbin_nn.train import SmallCifar, binary_parameters, predict

    torch.manual_seed(1)
    surge = rivals.SurgeCifar(estimator="ste")
    plain = SmallCifar(estimator="ste")
    values = {k.replace(".layer.", "."): v for k, v in surge.state_dict().items() if ".real." not in k}
    plain.load_state_dict(values)
    images = draw_images(20, 32, 32, seed=2)
    assert torch.equal(predict(surge, images), predict(plain, images))
    assert len(binary_parameters(surge)) == 4


# ------------------------------------------------------------------------------------------------
# the stages


class Fake:
    """Records whose accuracy is a function of the step's power of two."""

    def __init__(self, ablation: Any, method: str, peak: int) -> None:
        self.ran: list[int] = []
        self.first, self.peak, self.ablation = ablation.METHODS[method].first, peak, ablation
        self.method = method

    def accuracy(self, run: Any) -> float | None:
        power = round(np.log2(run.step / self.first))
        return 1 - abs(power - self.peak) / 100 if power in self.ran else None

    def tune(self) -> None:
        while missing := [s for s, v in self.grid().items() if v is None]:
            assert self.ablation.best_step(self, "smallcifar", self.method, 45_000) is None
            self.ran.append(round(np.log2(missing[0] / self.first)))

    def grid(self) -> dict[float, float | None]:
        found: dict[float, float | None] = self.ablation.tuned(self, "smallcifar", self.method, 45_000)
        return found


@pytest.mark.parametrize(
    ("stride", "peak", "expected"),
    [
        (1, 1, [0, 1, 2, 3]),
        (1, 3, [0, 1, 2, 3, 4]),
        (1, -2, [-3, -2, -1, 0, 1, 2, 3]),
        (2, 2, [0, 1, 2, 3, 4, 6]),
        (4, 5, [0, 2, 3, 4, 5, 6, 8, 12]),
        (4, 17, [0, 4, 8, 12, 14, 15, 16, 17, 18, 20]),
    ],
)
def test_a_grid_goes_on_until_the_best_has_a_worse_step_at_either_side(
    ablation: Any, monkeypatch: pytest.MonkeyPatch, stride: int, peak: int, expected: list[int]
) -> None:
    import dataclasses

    monkeypatch.setitem(
        ablation.METHODS, "muon", dataclasses.replace(ablation.METHODS["muon"], stride=stride)
    )
    records = Fake(ablation, "muon", peak)
    records.tune()
    assert sorted(records.ran) == expected
    first = ablation.METHODS["muon"].first
    assert ablation.best_step(records, "smallcifar", "muon", 45_000) == first * 2.0**peak


def test_a_finished_run_is_not_run_again_and_tables_are_of_the_records(
    ablation: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    images, labels = synthetic.draw(400)
    monkeypatch.setattr(ablation, "HOLD_BACK", 100)
    run = ablation.Run("smallcifar", "muon", 1e-3, 2, 0, 300)
    values = ablation.train(run, images, labels, tmp_path / "run")
    # Three steps an epoch are few, but an update's root mean square is what the method promises.
    assert 0.6e-3 < values["rms_of_a_step"] < 1.3e-3
    assert len(values["flips_a_step"]) == 2 and 0 <= values["held_back"] <= 1
    records = ablation.Records(tmp_path / "records")
    records.add(run, values)
    again = ablation.Records(tmp_path / "records")
    assert again.found[run]["held_back"] == values["held_back"]
    other = ablation.Run("smallcifar", "muon", 1e-3, 2, 1, 300)
    assert again.accuracy(other) is None

    # The tuning as a command: the runs that are missing, each once, in an order that compares methods.
    ran = []

    def train(run: Any, *_: Any) -> dict[str, Any]:
        ran.append(run)
        return {**values, "held_back": 0.5 - abs(np.log(run.step / 1.9e-3)) / 100}

    monkeypatch.setattr(ablation, "train", train)
    monkeypatch.setattr("cbin_nn.data.cifar10", lambda *_: (images, labels))
    line = ["ablation.py", "--records", str(tmp_path / "records"), "--images", "300", "--stage"]
    tune = ["tuning", "--only", "muon", "--only", "rms-momentum"]
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", [*line, *tune])
        ablation.main()
    assert len(ran) == len(set(ran)) == 8
    assert [r.method for r in ran[:4]] == ["muon", "rms-momentum"] * 2
    table = capsys.readouterr().out
    assert "LatentMuon" in table and "0.002: **49.9" in table and "0.0005: 48." in table
    monkeypatch.setattr(sys, "argv", [*line, "finals", "--epochs", "6"])
    ablation.main()
    finals = ran[8:]
    assert {(r.method, r.step, r.epochs) for r in finals} == {("muon", 2e-3, 6)}  # rivals aren't tuned yet
    assert sorted(r.seed for r in finals) == [1, 2]  # the tuning's run is seed 0's
