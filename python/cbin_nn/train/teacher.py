r"""The float teacher of a distillation, and its cached logits.

A teacher is trained once for each data set; what students need of it is its logits for every training image
and for its mirror image, averaged over three small shifts. They are cached, so a student's epoch costs no
more than without a teacher. Crops by a pixel or two share the logits of their image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .data import Draws, augment
from .models import Teacher

__all__ = ["teacher_logits", "train_teacher"]

#: Of the float teacher: SGD with Nesterov momentum, a triangular schedule, label smoothing.
_BATCH, _LR, _DECAY, _SMOOTHING, _SHIFT, _RISE = 250, 0.2, 5e-4, 0.05, 3, 0.2
#: Crops whose logits are averaged: (rows, columns).
_CROPS = ((0, 0), (1, 1), (-1, -1))


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    device = next(model.parameters()).device
    with torch.autocast(device.type, torch.bfloat16):
        logits: Tensor = model(x.to(device) / 128).float()
    return logits


def train_teacher(
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[Any],
    *,
    epochs: int = 7,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int, str], None] | None = None,
) -> nn.Module:
    """Train a `Teacher`.

    Args:
        images: uint8 `[N, S, S, 3]`, what may be trained on.
        labels: integers `[N]`.
        epochs: full passes.
        seed: of everything.
        device: to train on, in bfloat16.
        progress: called with (steps done, steps in all, "").

    Returns:
        The teacher in evaluation mode.
    """
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = Teacher(classes=int(np.max(labels)) + 1).to(device)
    torch.random.set_rng_state(state)
    pixels = torch.from_numpy(np.ascontiguousarray(images)).to(device)
    truth = torch.from_numpy(np.asarray(labels).astype(np.int64)).to(device)
    batch = min(_BATCH, len(images))
    steps = len(images) // batch
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": _DECAY}, {"params": others, "weight_decay": 0.0}],
        lr=_LR,
        momentum=0.9,
        nesterov=True,
    )
    model.train()
    for epoch in range(epochs):
        draws = Draws.of_epoch(seed, epoch, len(images), _SHIFT).to(device)
        for k in range(steps):
            done, total = epoch * steps + k, epochs * steps
            for group in optimizer.param_groups:
                group["lr"] = _LR * min((done + 1) / (_RISE * total), (total - done) / ((1 - _RISE) * total))
            part = slice(k * batch, (k + 1) * batch)
            index = draws.order[part]
            x = augment(pixels, index, draws.dy[part], draws.dx[part], draws.mirror[part])
            loss = F.cross_entropy(_logits(model, x), truth[index], label_smoothing=_SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if progress is not None:
                progress(done + 1, total, "")
    return model.eval()


@torch.no_grad()
def teacher_logits(
    model: nn.Module, images: npt.NDArray[np.uint8], *, batch: int = 500
) -> npt.NDArray[np.float32]:
    """Logits of each image and of its mirror image, averaged over small shifts.

    Args:
        model: the teacher.
        images: uint8 `[N, S, S, 3]`.
        batch: images at a time.

    Returns:
        float32 `[N, 2, classes]`.
    """
    model.eval()
    device = next(model.parameters()).device
    pixels = torch.from_numpy(np.ascontiguousarray(images)).to(device)
    sides: list[Tensor] = []
    for mirror in (0, 1):
        parts = []
        for start in range(0, len(images), batch):
            index = torch.arange(start, min(start + batch, len(images)), device=device)
            fill = torch.ones_like(index)
            crops = [
                _logits(model, augment(pixels, index, fill * dy, fill * dx, fill * mirror))
                for dy, dx in _CROPS
            ]
            parts.append(torch.stack(crops).mean(dim=0).cpu())
        sides.append(torch.cat(parts))
    logits: npt.NDArray[np.float32] = torch.stack(sides, dim=1).numpy().astype(np.float32)
    return logits


def cached_logits(
    path: Path,
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[Any],
    hold_back: int,
    **options: Any,
) -> npt.NDArray[np.float32]:
    """`teacher_logits` of a teacher that never saw the last `hold_back` images; kept in a `.npz` file.

    The file is used again only for the same images, and where its teacher never saw those either.
    """
    digest = hashlib.sha256(np.ascontiguousarray(images).data).hexdigest()
    if path.exists():
        with np.load(path, allow_pickle=False) as file:
            if str(file["images"]) == digest and int(file["hold_back"]) >= hold_back:
                kept: npt.NDArray[np.float32] = file["logits"]
                return kept
    count = len(images) - hold_back
    logits: npt.NDArray[np.float32] = teacher_logits(
        train_teacher(images[:count], labels[:count], **options), images
    )
    partial = path.with_name(f".{path.name}.partial.npz")
    np.savez(partial, logits=logits, images=digest, hold_back=hold_back)
    partial.replace(path)
    return logits
