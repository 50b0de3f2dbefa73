r"""Work with a user's `torch.nn.Module` that leaves no trace on it, nor on torch.

`untouched` remembers the attributes of every submodule (training flags, hooks, buffers, what a `forward`
assigns), of every parameter (`grad`, `requires_grad`), and the state of the random generators and of torch.
It puts them back whatever happens inside. The elements of tensors are not copied: what runs inside runs on
fake tensors (`torch.export`).
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np

__all__ = ["untouched"]


@contextlib.contextmanager
def untouched(torch: Any, module: Any) -> Iterator[None]:
    """Whatever is done to `module` and to torch's global state inside is undone at the end."""
    submodules = [(sub, dict(vars(sub)), _containers(vars(sub))) for sub in module.modules()]
    tensors = [*module.parameters(), *module.buffers()]
    gradients = [(t, t.requires_grad, t.grad if t.is_leaf else None) for t in tensors]
    randoms = random.getstate(), np.random.get_state()
    settings = _settings(torch)
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(randoms[0])
        np.random.set_state(randoms[1])
        _restore_settings(torch, settings)
        for sub, attributes, containers in submodules:
            vars(sub).clear()
            vars(sub).update(attributes)
            for container, content in containers:
                _refill(container, content)
        for tensor, requires, gradient in gradients:
            if tensor.is_leaf:
                if tensor.requires_grad != requires:
                    tensor.requires_grad_(requires)
                if tensor.grad is not gradient:
                    tensor.grad = gradient


def _containers(attributes: dict[str, Any]) -> list[tuple[Any, Any]]:
    """Containers among a module's attributes (parameters, hooks, a user's lists), with a copy of each."""
    return [(value, value.copy()) for value in attributes.values() if isinstance(value, (dict, list, set))]


def _refill(container: Any, content: Any) -> None:
    """Gives a container its content back, and stays the same object; untouched ones are left alone."""
    if isinstance(container, list):
        if len(container) != len(content) or any(a is not b for a, b in zip(container, content, strict=True)):
            container[:] = content
    elif isinstance(container, dict):
        same = list(container) == list(content) and all(container[key] is content[key] for key in content)
        if not same:
            container.clear()
            container.update(content)
    elif container != content:
        container.clear()
        container.update(content)


def _settings(torch: Any) -> dict[str, Any]:
    return {
        "dtype": torch.get_default_dtype(),
        "grad": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn": torch.is_deterministic_algorithms_warn_only_enabled(),
    }


def _restore_settings(torch: Any, settings: dict[str, Any]) -> None:
    if torch.get_default_dtype() != settings["dtype"]:
        torch.set_default_dtype(settings["dtype"])
    if torch.is_grad_enabled() != settings["grad"]:
        torch.set_grad_enabled(settings["grad"])
    now = _settings(torch)
    if (now["deterministic"], now["warn"]) != (settings["deterministic"], settings["warn"]):
        torch.use_deterministic_algorithms(settings["deterministic"], warn_only=settings["warn"])
