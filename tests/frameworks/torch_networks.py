"""Random binarized torch modules, written as people write them. Seeded: the same seed gives the same
module."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor, nn


class SignFunction(torch.autograd.Function):
    """`torch.sign` with a straight-through gradient."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return torch.sign(x)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient


def where_sign(x: Tensor) -> Tensor:
    return torch.where(x >= 0, 1.0, -1.0)


def strict_sign(x: Tensor) -> Tensor:
    return torch.where(x > 0, 1.0, -1.0)


def float_sign(x: Tensor) -> Tensor:
    """0 and 1, stretched to -1 and +1."""
    return 2 * (x >= 0).float() - 1


def detach_sign(x: Tensor) -> Tensor:
    """ReActNet's piecewise polynomial surrogate."""
    out = torch.sign(x)
    mask1, mask2, mask3 = x < -1, x < 0, x < 1
    out1 = (-1) * mask1.type(torch.float32) + (x * x + 2 * x) * (1 - mask1.type(torch.float32))
    out2 = out1 * mask2.type(torch.float32) + (-x * x + 2 * x) * (1 - mask2.type(torch.float32))
    out3 = out2 * mask3.type(torch.float32) + 1 * (1 - mask3.type(torch.float32))
    return out.detach() - out3.detach() + out3


def clamp_detach_sign(x: Tensor) -> Tensor:
    soft = torch.clamp(x, -1.0, 1.0)
    hard = torch.where(x >= 0, 1.0, -1.0)
    return soft + (hard - soft).detach()


SIGNS: dict[str, Callable[[Tensor], Tensor]] = {
    "torch.sign": torch.sign,
    "autograd.Function": SignFunction.apply,
    "where >= 0": where_sign,
    "where > 0": strict_sign,
    "2 * (x >= 0) - 1": float_sign,
    "detach, polynomial": detach_sign,
    "detach, clamp": clamp_detach_sign,
}


def plain_weight(w: Tensor) -> Tensor:
    return torch.where(w >= 0, 1.0, -1.0)


def scaled_weight(w: Tensor) -> Tensor:
    """Mean absolute weight of a filter times the sign, with a detach trick (ReActNet)."""
    axes = tuple(range(1, w.dim()))
    scale = torch.mean(torch.abs(w), dim=axes, keepdim=True).detach()
    binary = scale * torch.sign(w)
    soft = torch.clamp(w, -1.0, 1.0)
    return binary.detach() - soft.detach() + soft


WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "sign": torch.sign,
    "where": plain_weight,
    "mean |w| * sign": scaled_weight,
}


class Sign(nn.Module):
    def __init__(self, kind: str, channels: int | None) -> None:
        super().__init__()
        self.kind = kind
        self.bias = None if channels is None else nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return SIGNS[self.kind](x if self.bias is None else x + self.bias)


class BinaryConv(nn.Conv2d):
    weight_kind = "sign"

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, WEIGHTS[self.weight_kind](self.weight), self.bias)


class BinaryLinear(nn.Linear):
    weight_kind = "sign"

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, WEIGHTS[self.weight_kind](self.weight), self.bias)


class ShiftedPReLU(nn.Module):
    """RPReLU: a shift before and one after."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.before = nn.Parameter(torch.randn(1, channels, 1, 1))
        self.prelu = nn.PReLU(channels)
        self.after = nn.Parameter(torch.randn(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.prelu(x + self.before) + self.after


class Normalize(nn.Module):
    def __init__(self, mean: list[float], deviation: list[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("deviation", torch.tensor(deviation).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x / 255 - self.mean) / self.deviation


class Centre(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 127.5 - 1


class Network(nn.Sequential):
    """A module with the kinds that it was made of, for the tally."""

    kinds: list[str]
    input_shape: tuple[int, int, int]


def random_network(seed: int, *, depthwise: bool = False) -> Network:
    """A module in evaluation mode, its statistics drawn so that all kinds of rules occur; with depthwise
    convolutions behind the first layer where asked."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    kinds: list[str] = []
    channels, side = rng.choice([1, 3, 3]), rng.choice([9, 11, 12])
    input_shape = (channels, side, side)
    layers: list[nn.Module] = []
    meaning = rng.choice(["raw", "centred", "normalised", "normalised"])
    if meaning == "centred":
        layers.append(Centre())
    elif meaning == "normalised":
        layers.append(Normalize([0.4914, 0.4822, 0.4465][:channels], [0.247, 0.2435, 0.2616][:channels]))
    kinds.append(f"input {meaning}, {channels} channels")
    spread = 1.0 if meaning != "raw" else 255.0

    def batch_norm(kind: type[nn.Module], size: int, scale: float) -> nn.Module:
        norm = kind(size, eps=rng.choice([1e-5, 1e-3]))
        with torch.no_grad():
            norm.weight.normal_()
            norm.bias.normal_(0, 0.5)
            norm.running_mean.normal_(0, scale)
            norm.running_var.uniform_(0.3 * scale**2, 2 * scale**2)
        kinds.append("gamma < 0")
        return norm

    def sign(size: int | None) -> nn.Module:
        kind = rng.choice(list(SIGNS))
        shifted = size is not None and rng.random() < 0.3
        kinds.append(f"sign {kind}" + (" with a bias" if shifted else ""))
        module = Sign(kind, size if shifted else None)
        if module.bias is not None:
            nn.init.normal_(module.bias)
        return module

    def chain(size: int, plane: int, scale: float) -> tuple[list[nn.Module], int]:
        found: list[nn.Module] = []
        items = ["bn", "prelu", "pool"] if plane >= 4 else ["bn", "prelu"]
        rng.shuffle(items)
        items = items[: rng.randint(1, len(items))]
        if "bn" not in items:
            items.append("bn")  # so that no exact 0 is under the sign
        order = []
        for item in items:
            if item == "bn":
                found.append(batch_norm(nn.BatchNorm2d, size, scale))
            elif item == "prelu":
                form = rng.choice(["PReLU", "PReLU of one", "RPReLU", "LeakyReLU", "Hardtanh"])
                if form == "RPReLU":
                    module: nn.Module = ShiftedPReLU(size)
                    nn.init.normal_(module.prelu.weight, 0.1, 0.4)
                elif form.startswith("PReLU"):
                    module = nn.PReLU(size if form == "PReLU" else 1)
                    nn.init.normal_(module.weight, 0.1, 0.4)
                else:
                    module = nn.LeakyReLU(0.2) if form == "LeakyReLU" else nn.Hardtanh(-9 * scale, 9 * scale)
                kinds.append(form)
                found.append(module)
            else:
                size_, stride, padding = rng.choice([(2, 2, 0), (3, 2, 1), (2, 1, 0), (3, 3, 0)])
                ceil = rng.random() < 0.3
                found.append(nn.MaxPool2d(size_, stride, padding, ceil_mode=ceil))
                kinds.append("pool, ceil_mode" if ceil else "pool")
                sides = torch.nn.functional.max_pool2d(
                    torch.zeros(1, 1, plane, plane), size_, stride, padding, ceil_mode=ceil
                )
                plane = sides.shape[-1]
            order.append(item)
        if "pool" in order:
            kinds.append(
                "pool before BatchNorm" if order.index("pool") < order.index("bn") else "pool after it"
            )
        if rng.random() < 0.2:
            found.append(nn.Hardtanh())
            kinds.append("Hardtanh before sign")
        if rng.random() < 0.2:
            found.append(nn.Dropout(0.3))
        return found, plane

    blocks = rng.choice([1, 2, 2])
    for block in range(blocks + depthwise):
        groups = channels if depthwise and block == 1 else 1
        out = channels if groups > 1 else rng.choice([5, 16, 24, 33])
        kernel = rng.choice([1, 2, 3, 3])
        stride = rng.choice([1, 1, 2]) if side >= 6 else 1
        dilation = rng.choice([1, 1, 2]) if stride == 1 and side > 2 * kernel else 1
        padding = rng.choice([0, 1]) if side > kernel else 1
        if dilation * (kernel - 1) + 1 > side + 2 * padding:
            dilation = 1
        real = block == 0 and rng.random() < 0.3
        bias = rng.random() < 0.3
        kind = nn.Conv2d if real else BinaryConv
        conv = kind(channels, out, kernel, stride, padding, dilation, groups, bias=bias)
        scale = spread * (channels // groups * kernel * kernel) ** 0.5
        if real:
            kinds.append("first layer real")
            nn.init.normal_(conv.weight, 0, 0.3)
            scale *= 0.3
        else:
            conv.weight_kind = rng.choice(list(WEIGHTS))
            kinds.append(f"weight {conv.weight_kind}")
            if conv.weight_kind == "mean |w| * sign":
                scale *= 0.1
                nn.init.normal_(conv.weight, 0, 0.12)
        kinds.append(f"stride {stride}, padding {padding}, dilation {dilation}")
        layers.append(conv)
        side = (side + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        found, side = chain(out, side, scale)
        layers += [*found, sign(out)]
        channels, spread = out, 1.0
    layers.append(nn.Flatten())
    features = channels * side * side
    if rng.random() < 0.4:
        hidden = BinaryLinear(features, 20, bias=rng.random() < 0.5)
        layers += [hidden, batch_norm(nn.BatchNorm1d, 20, features**0.5), sign(None)]
        features = 20
        kinds.append("hidden dense layer")
    if rng.random() < 0.3:
        layers.append(nn.Linear(features, 7))
        kinds.append("head real")
    else:
        head = BinaryLinear(features, 7, bias=rng.random() < 0.5)
        head.weight_kind = rng.choice(list(WEIGHTS))
        layers.append(head)
        if rng.random() < 0.6:
            layers.append(batch_norm(nn.BatchNorm1d, 7, features**0.5))
            if rng.random() < 0.3:
                layers.append(nn.PReLU(7))
    network = Network(*layers)
    network.kinds, network.input_shape = kinds, input_shape
    return network.eval()
