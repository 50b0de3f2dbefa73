r"""Passes over the source graph, framework-free: each returns a graph of the same function.

- `drop_unused`: what the output does not need goes.
- `merge_linear`: scalar affine steps in a row become one, and those that do nothing go.
- `move_scale`: a positive scale on bits (Brevitas' `BipolarQuant`, `0.5 * sign(x)`) moves behind pools and
  flattening, past the next layer, where it joins that layer's chain.
- `drop_clip`: a clip around zero (hardtanh) right before a sign does not change the sign.

What these leave is folded exactly into rules (`cbin_nn.folding`), so no other affine chain needs merging
here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import numpy as np

from . import graph as g

__all__ = ["canonicalize", "drop_clip", "drop_unused", "merge_linear", "move_scale", "split_ternary"]


def canonicalize(graph: g.Graph) -> g.Graph:
    """All passes in order."""
    for apply in _PASSES:
        graph = apply(graph)
    return graph


def _readers(graph: g.Graph) -> Counter[str]:
    counts = Counter(name for node in graph.nodes for name in node.inputs)
    counts[graph.output] += 1
    return counts


def _scalars(node: g.Node) -> tuple[Fraction, Fraction] | None:
    """(scale, offset) of a scalar `Linear`, else None."""
    if not isinstance(node, g.Linear):
        return None
    factor, offset, divisor = node.factor, node.offset, node.divisor
    if isinstance(factor, Fraction) and isinstance(offset, Fraction) and isinstance(divisor, Fraction):
        return factor / divisor, offset
    return None


def merge_linear(graph: g.Graph) -> g.Graph:
    """Scalar `Linear` nodes in a row become one."""
    readers = _readers(graph)
    alias: dict[str, str] = {}
    nodes: list[g.Node] = []
    made: dict[str, g.Node] = {}
    origins = dict(graph.origins)
    for node in graph.nodes:
        node = replace(node, inputs=tuple(alias.get(name, name) for name in node.inputs))
        scalars = _scalars(node)
        if scalars is not None:
            before = made[node.inputs[0]]
            inner = _scalars(before)
            if inner is not None and readers[before.name] == 1:
                nodes.remove(before)
                scalars = (scalars[0] * inner[0], inner[1] * scalars[0] + scalars[1])
                node = replace(node, inputs=before.inputs)
            if scalars == (Fraction(1), Fraction(0)):
                alias[node.name] = node.inputs[0]
                if node.name in origins:  # the same numbers, which the source may name here alone
                    origins.setdefault(node.inputs[0], origins[node.name])
                readers[node.inputs[0]] += readers[node.name] - 1
                continue
            node = g.Linear(node.name, node.layer, node.inputs, *scalars)
        nodes.append(node)
        made[node.name] = node
    return graph.rebuilt(nodes, alias.get(graph.output, graph.output), origins=origins)


def move_scale(graph: g.Graph) -> g.Graph:
    """A positive scalar scale on bits moves past the next binary layer."""
    alias: dict[str, str] = {}
    #: Tensors that stand for `scale` times the bits of the tensor that they alias.
    scaled: dict[str, Fraction] = {}
    bits: set[str] = set()
    nodes: list[g.Node] = []
    origins = dict(graph.origins)

    def unscaled(name: str, scale: Fraction) -> None:
        """The graph's tensor is now the source's divided by `scale`."""
        if name in origins:
            origins[name] = replace(origins[name], scale=origins[name].scale * float(scale))

    def plain(name: str) -> str:
        """The tensor itself, its scale applied, for a reader that can't take it apart."""
        scale = scaled.get(name)
        target = alias.get(name, name)
        if scale is None:
            return target
        made = f"{target}/scaled"
        if all(node.name != made for node in nodes):
            layer = next(node.layer for node in nodes if node.name == target)
            nodes.append(g.Linear(made, layer, (target,), scale))
        return made

    for node in graph.nodes:
        source = node.inputs[0] if node.inputs else ""
        scale = scaled.get(source)
        target = alias.get(source, source)
        scalars = _scalars(node)
        if scalars is not None and target in bits and scalars[0] > 0 and not scalars[1]:
            alias[node.name] = target
            scaled[node.name] = scalars[0] * (scale or 1)
            continue
        if isinstance(node, g.Sign):
            nodes.append(replace(node, inputs=(target,)))
            bits.add(node.name)
            continue
        if isinstance(node, (g.MaxPool2D, g.Flatten, g.Identity)) and target in bits:
            nodes.append(replace(node, inputs=(target,)))
            bits.add(node.name)
            if scale is not None:
                scaled[node.name] = scale
                unscaled(node.name, scale)
            continue
        padded = isinstance(node, g.Conv2D) and node.pad_value != 0 and any(node.window.padding)
        if isinstance(node, (g.Conv2D, g.Dense)) and scale is not None and not padded:
            nodes.append(replace(node, inputs=(target,)))
            after = g.Linear(f"{node.name}/input_scale", node.layer, (node.name,), scale)
            nodes.append(after)
            alias[node.name] = after.name
            if node.name in origins:
                origins[after.name] = origins[node.name]
                unscaled(node.name, scale)
            continue
        nodes.append(replace(node, inputs=tuple(plain(name) for name in node.inputs)))
    if graph.output in scaled:
        alias[graph.output] = plain(graph.output)
    return graph.rebuilt(nodes, alias.get(graph.output, graph.output), origins=origins)


def drop_clip(graph: g.Graph) -> g.Graph:
    """`sign(clip(x, low, high))` with low < 0 < high is `sign(x)`."""
    readers = _readers(graph)
    nodes: list[g.Node] = []
    alias: dict[str, str] = {}
    notes = []
    clips = {node.name: node for node in graph.nodes if isinstance(node, g.Clip)}
    signed = {
        node.inputs[0] for node in graph.nodes if isinstance(node, g.Sign) and readers[node.inputs[0]] == 1
    }
    for node in graph.nodes:
        clip = clips.get(node.name)
        if clip is not None and clip.name in signed:
            below = clip.low is None or clip.low < 0
            above = clip.high is None or clip.high > 0
            if below and above:
                alias[clip.name] = alias.get(clip.inputs[0], clip.inputs[0])
                notes.append(f"layer {clip.layer!r} dropped: a clip around zero does not change a sign")
                continue
        nodes.append(replace(node, inputs=tuple(alias.get(name, name) for name in node.inputs)))
    return graph.rebuilt(nodes, alias.get(graph.output, graph.output), notes)


def drop_unused(graph: g.Graph) -> g.Graph:
    """Nodes that the output does not need go, unless a reader met problems: then all edges are kept."""
    if graph.problems:
        return graph
    needed = {graph.output}
    for node in reversed(graph.nodes):
        if node.name in needed:
            needed.update(node.inputs)
    nodes = [node for node in graph.nodes if node.name in needed or isinstance(node, g.Input)]
    return graph.rebuilt(nodes, graph.output)


_PASSES: tuple[Callable[[g.Graph], g.Graph], ...] = (drop_unused, merge_linear, move_scale, drop_clip)


def split_ternary(graph: g.Graph, sign: str) -> g.Graph | None:
    """A three-valued sign before the last dense layer as two bits: sign(x) is the mean of `x > 0` and `x >=
    0`,
    each as -1 or +1.

    The layer before the sign gets every filter twice, the dense layer every feature, and half its sum: exact.

    Returns:
        The graph, or None where `sign` does not lead straight to the last layer, or its layer is shared.
    """
    nodes = {node.name: node for node in graph.nodes}
    readers = _readers(graph)
    path: list[g.Node] = [nodes[sign]]
    while not isinstance(path[0], (g.Conv2D, g.Dense)):
        if len(path[0].inputs) != 1 or isinstance(path[0], g.Input):
            return None
        path.insert(0, nodes[path[0].inputs[0]])
    while not isinstance(path[-1], g.Dense) or path[-1] is path[0]:
        after = [node for node in graph.nodes if path[-1].name in node.inputs]
        if len(after) != 1 or not isinstance(after[0], (g.Flatten, g.Identity, g.MaxPool2D, g.Dense)):
            return None
        path.append(after[0])
    head = path[-1]
    later = graph.nodes[graph.nodes.index(head) + 1 :]
    if any(isinstance(node, (g.Sign, g.Conv2D, g.Dense)) for node in later):
        return None
    if any(readers[node.name] != 1 for node in path[:-1]):
        return None
    channels = graph.shapes[path[0].name][-1]
    changed = {node.name: _twice(node, channels) for node in path[:-1]}
    second = tuple(range(channels, 2 * channels))
    changed[sign] = g.Sign(sign, nodes[sign].layer, nodes[sign].inputs, 1, second)
    assert isinstance(head, g.Dense)
    rows = head.kernel.reshape(-1, channels, head.kernel.shape[1])
    kernel = np.concatenate([rows, rows], axis=1).reshape(-1, head.kernel.shape[1])
    changed[head.name] = replace(head, kernel=kernel)
    half = g.Linear(f"{head.name}/mean_of_two", head.layer, (head.name,), Fraction(1, 2))
    result: list[g.Node] = []
    for node in graph.nodes:
        new = changed.get(node.name, node)
        if head.name in new.inputs:
            new = replace(new, inputs=(half.name,))
        result.append(new)
        if node is head:
            result.append(half)
    origins = dict(graph.origins)
    at = path.index(nodes[sign])
    for i, node in enumerate(path[:-1]):
        if node.name in origins:
            origins[node.name] = replace(origins[node.name], twice=channels, ternary=i >= at)
    if head.name in origins:
        origins[half.name] = origins[head.name]
        origins[head.name] = replace(origins[head.name], scale=origins[head.name].scale / 2)
    return graph.rebuilt(result, half.name if graph.output == head.name else graph.output, origins=origins)


def _twice(node: g.Node, channels: int) -> g.Node:
    """A node with every channel twice: all of them, then all again."""
    fields = {}
    for name, value in vars(node).items():
        if isinstance(value, np.ndarray):
            # A flattened plane has its channels innermost.
            rows = value.reshape(*value.shape[:-1], -1, channels)
            fields[name] = np.concatenate([rows, rows], axis=-1).reshape(*value.shape[:-1], -1)
    return replace(node, **fields)  # type: ignore[arg-type]
