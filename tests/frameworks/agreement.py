"""What both frameworks' random tests share: have a converted network judged by its framework, and count."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import cbin_nn
import numpy as np
from cbin_nn.converters import graph as g
from cbin_nn.converters import lower
from cbin_nn.model import assemble
from cbin_nn.verification import VerifyReport


@dataclass
class Tally:
    """What a run of random networks covered."""

    networks: int = 0
    bits: int = 0
    near_ties: int = 0
    #: Tensors of the frameworks that were compared with their readings, and the numbers in them.
    tensors: int = 0
    values: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)

    def table(self) -> str:
        """One line a kind, for the run's output."""
        lines = [
            f"{self.networks} networks, {self.bits:,} bits, {self.near_ties} differed from end to end; "
            f"reader: {self.tensors} tensors, {self.values:,} values, none differed"
        ]
        lines += [f"  {count:6,}  {kind}" for kind, count in sorted(self.kinds.items())]
        lines += [f"  refused {count:4}  {slug}" for slug, count in sorted(self.refused.items())]
        return "\n".join(lines)

    def require(self, kinds: list[str], least: int) -> None:
        """Every kind occurred at least so often."""
        rare = {kind: self.kinds[kind] for kind in kinds if self.kinds[kind] < least}
        assert not rare, f"covered too seldom (below {least}): {rare}\n{self.table()}"

    def count_operators(self, lowered: Any) -> None:
        """Rule kinds and pools of a converted network."""
        for operator in lowered.operators:
            self.kinds[f"operator {operator.kind}"] += 1
            rules = getattr(operator, "rules", None)
            pool = getattr(operator, "pool", None)
            if rules is None:
                continue
            constant = rules.lo > rules.hi
            low, high = rules.lo > -(2**31), rules.hi < 2**31 - 1
            self.kinds["rule rising"] += int((~constant & low & ~high).sum())
            self.kinds["rule falling"] += int((~constant & ~low & high).sum())
            self.kinds["rule inside"] += int((~constant & low & high & ~rules.flip).sum())
            self.kinds["rule outside"] += int((~constant & low & high & rules.flip).sum())
            self.kinds["rule constant"] += int(constant.sum())
            self.kinds[f"rules by {rules.grid}"] += 1
            if pool is not None:
                self.kinds["pool fused"] += 1
                self.kinds["pool veto"] += int(pool.veto is not None)
                self.kinds["pool AND"] += int(pool.invert is not None and pool.invert.any())
            if getattr(operator, "channel_adds", None) is not None:
                self.kinds["offset a channel"] += 1

    def compare(
        self, graph: g.Graph, source: Any, images: np.ndarray, input_shape: Any = None
    ) -> VerifyReport:
        """Converts `graph`, and has the model judged by the framework of `source`, which holds the same
        network."""
        lowered, report = lower(graph)
        check = cbin_nn.verify(
            assemble(lowered, report), source, images, engine="framework", input_shape=input_shape
        )
        assert check.exact, f"\n{check}"
        assert report.graph is not None
        signs = {node.name for node in report.graph.nodes if isinstance(node, g.Sign)}
        judged = {region.tensor for region in check.reader}
        assert signs <= judged and report.graph.output in judged, (signs - judged, judged)
        assert len(check.conversion) == sum(bool(operator.tensor) for operator in report.operators)
        # From end to end, an image differs from its first near-tie on (or its first approximated layer).
        approximated = any(operator.approximations for operator in report.operators)
        for layer in check.layers:
            self.bits += layer.bits
            self.near_ties += layer.differing
        for region in check.reader:
            self.tensors += 1
            self.values += region.values
        first = next((layer for layer in check.layers if layer.differing), None)
        assert approximated or first is None or not first.unexplained, f"\n{check}"
        head = report.operators[-1]
        self.networks += 1
        self.kinds["approximated first layer"] += int(any(o.approximations for o in report.operators[:-1]))
        self.kinds["approximated head"] += int(bool(head.approximations))
        self.kinds["flattened plane of several pixels"] += int(
            any(isinstance(n, g.Flatten) and max(graph.shapes[n.inputs[0]][:2]) > 1 for n in graph.nodes)
        )
        self.count_operators(lowered)
        return check
