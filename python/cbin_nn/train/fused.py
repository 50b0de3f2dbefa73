r"""The elementwise part of a block in one pass on the CPU: what makes training on two cores bearable.

A training step of a small binary network spends most of its time not in convolutions but in walking large
planes several times: shift, PReLU, max-pool, batch statistics, BatchNorm, sign, and the same backwards.
`fused.cpp` does these in four passes over bfloat16 planes in NHWC order, vectorized by the compiler.
Products of -1 and +1 are exact in bfloat16; a stored accumulator is rounded to 8 significant bits, which
acts as a little noise in training. Evaluation doesn't come here: it is plain float32 and exact.

    y = prelu(scale * c + bias);  p = maxpool2x2(y);  z = BatchNorm(p);  out = sign(z)

Sums are made over a fixed number of chunks and added in order, so a result doesn't depend on the number of
threads. The extension is compiled once by `torch.utils.cpp_extension` (a C++ compiler and ninja are needed,
and torch keeps it in its cache); where that fails, `available()` is False and the plain modules do the work.
"""

from __future__ import annotations

import functools
import logging
import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["ESTIMATORS", "augment", "available", "block", "convolution_dtype", "supports"]

#: The estimators of the sign whose derivative `fused.cpp` knows.
ESTIMATORS = ("approx", "ste")

_FLAGS = ["-O3", "-march=native", "-ffast-math"]
_log = logging.getLogger(__name__)


@functools.cache
def _extension() -> Any:
    if platform.machine() not in ("x86_64", "AMD64", "aarch64", "arm64"):
        return None
    try:
        import os
        import sys
        import zlib

        from torch.utils.cpp_extension import load

        # ninja, where pip has put it beside this interpreter, without the folder being on the path.
        beside = str(Path(sys.executable).parent)
        if beside not in os.environ.get("PATH", "").split(os.pathsep):
            os.environ["PATH"] = os.pathsep.join(filter(None, [beside, os.environ.get("PATH", "")]))
        flags = list(_FLAGS)
        if platform.machine() in ("x86_64", "AMD64"):
            flags.append("-mprefer-vector-width=512")
        source = Path(__file__).with_name("fused.cpp")
        # Each version has a folder of its own in torch's cache: two of them don't overwrite each other.
        name = f"cbin_nn_fused_{zlib.crc32(source.read_bytes()):08x}"
        return load(name, [str(source)], extra_cflags=flags, verbose=False)
    except Exception as error:  # no compiler, no ninja, no cache folder: the plain modules do the work
        _log.warning("fused CPU kernels are not available (%s)", str(error).strip().split("\n")[0])
        return None


def available() -> bool:
    """Whether the extension could be built here. The first call builds it."""
    return _extension() is not None


@functools.cache
def convolution_dtype() -> torch.dtype:
    """What a convolution between two fused blocks computes in: bfloat16, or float32 where that is quicker.

    A CPU without instructions for bfloat16 emulates it, at three times the time of float32. The planes stay
    in bfloat16 either way, so the forward pass has the same bits.
    """
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    known = [capabilities[name] for name in ("avx512_bf16", "amx_bf16", "bf16") if name in capabilities]
    return torch.float32 if known and not any(known) else torch.bfloat16


def supports(channels: int, height: int, width: int) -> bool:
    """Whether `block` takes planes of this size: 32 or 64 channels, even sides."""
    return channels in (32, 64) and height % 2 == 0 and width % 2 == 0


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        c: Tensor,
        bias: Tensor,
        slope: Tensor,
        gamma: Tensor,
        beta: Tensor,
        scale: float,
        eps: float,
        estimator: str,
    ) -> tuple[Tensor, Tensor, Tensor]:
        planes = c.permute(0, 2, 3, 1).contiguous()
        pooled, where, sums = _extension().pool_fwd(planes, scale, bias.detach(), slope.detach())
        count = pooled.numel() // pooled.size(3)
        mean = sums[0] / count
        variance = sums[1] / count - mean * mean
        inverse = (variance + eps).rsqrt()
        factor = (gamma.detach().double() * inverse).float()
        offset = (beta.detach().double() - mean * gamma.detach().double() * inverse).float()
        ctx.save_for_backward(
            planes,
            pooled,
            where,
            factor,
            offset,
            mean,
            inverse,
            gamma.detach(),
            bias.detach(),
            slope.detach(),
        )
        ctx.scale, ctx.count, ctx.ste = scale, count, estimator == "ste"
        out = _extension().sign_fwd(pooled, factor, offset).permute(0, 3, 1, 2)
        unbiased = variance * count / max(1, count - 1)
        ctx.mark_non_differentiable(mean, unbiased)
        return out, mean, unbiased

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        planes, pooled, where, factor, offset, mean, inverse, gamma, bias, slope = ctx.saved_tensors
        gradient = gradient.permute(0, 2, 3, 1).contiguous()
        sums = _extension().bwd_sums(gradient, pooled, factor, offset, ctx.ste)
        # BatchNorm's gradient is q0 * g + q1 * p + q2 with the two sums of the batch inside.
        beta_gradient = sums[0]
        gamma_gradient = inverse * (sums[1] - mean * sums[0])
        q0 = gamma.double() * inverse
        q1 = -q0 * inverse * gamma_gradient / ctx.count
        q2 = -q0 * beta_gradient / ctx.count - q1 * mean
        q = torch.stack([q0, q1, q2]).float().contiguous()
        out, sums = _extension().bwd(
            gradient, pooled, where, planes, factor, offset, q, bias, slope, ctx.scale, ctx.ste
        )
        return (
            out.permute(0, 3, 1, 2),
            sums[0],
            sums[1],
            gamma_gradient.float(),
            beta_gradient.float(),
            None,
            None,
            None,
        )


def block(
    c: Tensor,
    bias: Tensor,
    slope: Tensor,
    gamma: Tensor,
    beta: Tensor,
    scale: float,
    eps: float,
    estimator: str = "approx",
) -> tuple[Tensor, Tensor, Tensor]:
    """Shift, PReLU, 2x2 max-pool, BatchNorm with batch statistics and sign.

    Args:
        c: bfloat16 `[N, C, H, W]` in channels_last, C 32 or 64, H and W even.
        bias: of the shift, float32 `[C]`.
        slope: of the PReLU, float32 `[C]`.
        gamma: of the BatchNorm, float32 `[C]`; beta too.
        beta: of the BatchNorm.
        scale: factor of c before everything.
        eps: of the BatchNorm.
        estimator: of the sign, one of `ESTIMATORS`.

    Returns:
        bfloat16 `[N, C, H/2, W/2]` of -1 and +1, and the pooled plane's mean and unbiased
        variance, float64 `[C]`, for the running statistics.
    """
    out: tuple[Tensor, Tensor, Tensor] = _Block.apply(c, bias, slope, gamma, beta, scale, eps, estimator)
    return out


def augment(images: Tensor, index: Tensor, dy: Tensor, dx: Tensor, mirror: Tensor) -> Tensor:
    """See `cbin_nn.train.data.augment`, which calls this where the extension is available."""
    index, dy, dx, mirror = (t.contiguous() for t in (index, dy, dx, mirror))
    batch: Tensor = _extension().crop(images, index, dy, dx, mirror)
    return batch
