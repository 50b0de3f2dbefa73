"""What the user passes in is as it was: training flags, gradients, hooks, attributes, random state."""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Callable
from typing import Any

import cbin_nn
import numpy as np
import pytest
from cbin_nn.errors import ConversionError
from cbin_nn.images import draw_images

if os.environ.get("CBIN_NN_REQUIRE_ALL") != "1":
    pytest.importorskip("torch", reason="make test-frameworks installs torch in .venv-torch")

import torch
from torch import nn

SHAPE = (2, 6, 5)
IMAGES = draw_images(8, 6, 5, 4, channels=2)


class Binary(nn.Module):
    """A small binarized network with something of everything that could be touched."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        nn.init.normal_(self.norm.running_mean, 0, 100)
        nn.init.constant_(self.norm.running_var, 1e4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4 * 30, 3)
        self.seen: list[str] = []
        self.last: Any = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = torch.where(self.conv.weight >= 0, 1.0, -1.0)
        y = self.norm(nn.functional.conv2d(x, weight, padding=1))
        y = self.drop(torch.where(y >= 0, 1.0, -1.0))
        return nn.functional.linear(y.flatten(1), torch.where(self.head.weight >= 0, 1.0, -1.0))


class Raises(Binary):
    """Fails half way, after it changed what it can."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append("called")
        self.norm.eval()
        self.norm.train()
        torch.rand(3)
        random.random()
        np.random.rand()
        torch.set_grad_enabled(True)
        torch.set_default_dtype(torch.float64)
        raise RuntimeError("half way")


class Draws(Binary):
    """A forward that takes from the random generators."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append("called")
        random.random()
        np.random.rand()
        torch.rand(2)
        return super().forward(x)


def state(module: nn.Module) -> dict[str, Any]:
    """Everything about a module and torch that must not change, by value or by identity."""
    found: dict[str, Any] = {
        "random": torch.get_rng_state().tolist(),
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),
        "dtype": torch.get_default_dtype(),
        "grad": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
    for name, sub in module.named_modules():
        found[f"{name}: training"] = sub.training
        found[f"{name}: attributes"] = sorted(vars(sub))
        for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks"):
            found[f"{name}: {hooks}"] = dict(getattr(sub, hooks))
        if hasattr(sub, "seen"):
            found[f"{name}: seen"] = list(sub.seen), sub.last
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        found[f"{name}: identity"] = id(tensor), tensor.dtype, tensor.device, tensor.requires_grad
        found[f"{name}: version"] = None if tensor.is_inference() else tensor._version
        found[f"{name}: values"] = tensor.detach().clone().tolist()
        found[f"{name}: gradient"] = None if tensor.grad is None else (id(tensor.grad), tensor.grad.tolist())
    return found


def trained() -> Binary:
    """In training mode, with gradients, a hook, a frozen parameter and a frozen BatchNorm."""
    module = Binary().train()
    module.head.weight.grad = torch.ones_like(module.head.weight)
    module.norm.weight.grad = torch.ones_like(module.norm.weight)
    module.conv.bias.requires_grad_(False)
    module.norm.eval()
    module.head.register_forward_hook(lambda *_: None)
    return module


def wrapper() -> nn.Module:
    """A frozen BatchNorm under a fresh wrapper, which is in training mode."""
    return nn.Sequential(trained())


def half_trained() -> nn.Module:
    """In evaluation mode, with a submodule that was left in training mode."""
    module = trained().eval()
    module.drop.train()
    module.norm.train()
    return module


def parametrized() -> nn.Module:
    class Scale(nn.Module):
        def forward(self, w: torch.Tensor) -> torch.Tensor:
            return 2 * w

    module = trained()
    nn.utils.parametrize.register_parametrization(module.conv, "weight", Scale())
    return module


def inference_parameters() -> nn.Module:
    with torch.inference_mode():
        return Binary()


def user_train() -> nn.Module:
    """BatchNorm is kept frozen by the module's own `train`."""

    class Frozen(Binary):
        def train(self, mode: bool = True) -> Any:
            super().train(mode)
            self.norm.eval()
            return self

    return Frozen().train()


MODULES: dict[str, Callable[[], nn.Module]] = {
    "trained": trained,
    "fresh wrapper": wrapper,
    "half trained": half_trained,
    "parametrized": parametrized,
    "DataParallel": lambda: nn.DataParallel(trained()),
    "torch.compile": lambda: torch.compile(trained()),
    "compiled DataParallel": lambda: torch.compile(nn.DataParallel(trained())),
    "inference parameters": inference_parameters,
    "a train of its own": user_train,
    "draws": lambda: Draws().train(),
}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_module_is_as_it_was(name: str) -> None:
    module = MODULES[name]()
    twin = MODULES[name]()
    before = state(module)
    model = cbin_nn.convert(module, input_shape=SHAPE)
    assert state(module) == before
    cbin_nn.verify(model, module, IMAGES, input_shape=SHAPE)
    assert state(module) == before
    twin = getattr(twin, "_orig_mod", twin).eval()
    with torch.no_grad():
        expected = twin(torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).copy()).float()).numpy()
    assert np.abs(model.dequantize(model.run(IMAGES)) - expected).max() < 1e-4 * np.abs(expected).max()


def test_a_module_is_as_it_was_after_an_error() -> None:
    for make in (
        lambda: Raises().train(),
        lambda: nn.Sequential(Raises().train().eval()),
        lambda: Raises().eval(),
    ):
        module = make()
        before = state(module)
        with pytest.raises(ConversionError, match="half way"):
            cbin_nn.convert(module, input_shape=SHAPE)
        assert state(module) == before
    # Exported, and refused by the reader.
    module = nn.Sequential(trained(), nn.LogSigmoid())
    before = state(module)
    with pytest.raises(ConversionError, match="log_sigmoid"):
        cbin_nn.convert(module, input_shape=SHAPE)
    assert state(module) == before


def test_the_random_state_goes_on_where_it_was() -> None:
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    module = Draws().train()
    torch.manual_seed(1)
    expected = torch.rand(2).tolist(), random.random(), float(np.random.rand())
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    cbin_nn.convert(module, input_shape=SHAPE)
    assert (torch.rand(2).tolist(), random.random(), float(np.random.rand())) == expected


def test_conversions_inside_contexts_leave_them() -> None:
    module = trained()
    with torch.inference_mode():
        cbin_nn.convert(module, input_shape=SHAPE)
        assert torch.is_inference_mode_enabled()
    with torch.enable_grad():
        cbin_nn.convert(module, input_shape=SHAPE)
        assert torch.is_grad_enabled()


def test_modules_that_can_not_be_exported_say_what_to_do() -> None:
    scripted = torch.jit.trace(Binary().eval(), torch.zeros(1, *SHAPE))
    with pytest.raises(ConversionError, match=r"TorchScript.*torch\.nn\.Module"):
        cbin_nn.convert(scripted, input_shape=SHAPE)
    with pytest.raises(ConversionError, match=r"float16.*\.float\(\)"):
        cbin_nn.convert(nn.Sequential(nn.Conv2d(2, 4, 3), trained().norm).half(), input_shape=SHAPE)
    lazy = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    with pytest.raises(ConversionError, match="lazy layer"):
        cbin_nn.convert(lazy, input_shape=SHAPE)
    assert lazy[1].has_uninitialized_params()
    with pytest.raises(ConversionError, match="meta"):
        cbin_nn.convert(Binary().to("meta"), input_shape=SHAPE)


def test_a_module_of_an_exported_program_converts() -> None:
    module = Binary().eval()
    program = torch.export.export(module, (torch.zeros(1, *SHAPE),)).module()
    expected = cbin_nn.convert(copy.deepcopy(module), input_shape=SHAPE).run(IMAGES)
    assert np.array_equal(cbin_nn.convert(program, input_shape=SHAPE).run(IMAGES), expected)


CHANCE: dict[str, Callable[[], nn.Module]] = {}


def chance(name: str) -> Callable[[Any], Any]:
    def note(function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
        class Made(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.norm = nn.BatchNorm2d(4, track_running_stats=False)
                self.live = nn.BatchNorm2d(4)

            def forward(self, y: torch.Tensor) -> torch.Tensor:
                return function(self, y)  # type: ignore[arg-type, call-arg]

        CHANCE[name] = Made
        return function

    return note


chance("chance: F.dropout")(lambda self, y: nn.functional.dropout(y, 0.5))
chance("chance: F.alpha_dropout")(lambda self, y: nn.functional.alpha_dropout(y, 0.5, True))
chance("chance: F.dropout2d")(lambda self, y: nn.functional.dropout2d(y, 0.5))
chance("chance: F.feature_alpha_dropout")(lambda self, y: nn.functional.feature_alpha_dropout(y, 0.5, True))
chance("chance: F.rrelu")(lambda self, y: nn.functional.rrelu(y, training=True))
chance("chance: rand_like")(lambda self, y: y + torch.rand_like(y))
chance("chance: randn")(lambda self, y: y + torch.randn(1, 4, 1, 1))
chance("chance: bernoulli")(lambda self, y: torch.bernoulli(torch.sigmoid(y)))
chance("chance: normal_")(lambda self, y: y + torch.empty(1, 4, 1, 1).normal_())
chance("chance: uniform_")(lambda self, y: y * torch.empty(1, 4, 1, 1).uniform_(0.5, 1))
chance("batch: no running statistics")(lambda self, y: self.norm(y))
chance("batch: F.batch_norm")(lambda self, y: nn.functional.batch_norm(y, None, None, training=True))
chance("batch: training=True")(
    lambda self, y: nn.functional.batch_norm(y, self.live.running_mean, self.live.running_var, training=True)
)
chance("batch: mean")(lambda self, y: y - y.mean(dim=0, keepdim=True))
chance("batch: mean and variance")(lambda self, y: (y - y.mean(dim=(0, 2, 3), keepdim=True)) / y.std())


class Chancy(Binary):
    """The network with something that depends on chance or on the batch behind its BatchNorm."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.norm = nn.Sequential(self.norm, CHANCE[name]())


@pytest.mark.parametrize("name", sorted(CHANCE))
def test_what_depends_on_chance_or_on_the_batch_is_refused(name: str) -> None:
    kind = name.split(":")[0]
    module = Chancy(name).eval()
    before = state(module)
    with pytest.raises(ConversionError, match=f"depend on (the )?{kind}"):
        cbin_nn.convert(module, input_shape=SHAPE)
    assert state(module) == before
    program = torch.export.export(module, (torch.zeros(2, *SHAPE),)).run_decompositions()
    with pytest.raises(ConversionError, match=f"depend on (the )?{kind}"):
        cbin_nn.convert(program)


def test_a_module_that_counts_its_calls_is_refused() -> None:
    class Counts(Binary):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls.add_(1)
            return super().forward(x) * self.calls

    module = Counts()
    before = state(module)
    with pytest.raises(ConversionError, match="depend on the calls before"):
        cbin_nn.convert(module, input_shape=SHAPE)
    assert state(module) == before
    program = torch.export.export(module.eval(), (torch.zeros(2, *SHAPE),))
    with pytest.raises(ConversionError, match="depend on the calls before"):
        cbin_nn.convert(program.run_decompositions())
