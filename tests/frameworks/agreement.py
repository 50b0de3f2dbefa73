"""What both frameworks' random tests share: compare a converted network with its framework, bit by bit, and
count."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from cbin_nn import _native
from cbin_nn.converters import graph as g
from cbin_nn.converters import lower
from cbin_nn.converters.evaluate import evaluate
from cbin_nn.converters.frameworks import FrameworkRun
from cbin_nn.model import Model


@dataclass
class Tally:
    """What a run of random networks covered."""

    networks: int = 0
    bits: int = 0
    near_ties: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)

    def table(self) -> str:
        """One line a kind, for the run's output."""
        lines = [f"{self.networks} networks, {self.bits:,} bits, {self.near_ties} differed in a near-tie"]
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

    def compare(self, graph: g.Graph, run: FrameworkRun, images: np.ndarray, softmax: bool = False) -> None:
        """Converts `graph`, runs it and compares every sign with the framework's, and the logits.

        An image is compared up to its first bit that differs in a near-tie, since what follows differs
        rightly.
        """
        lowered, report = lower(graph)
        model = Model(_native.Model.from_bytes(_native.build_model(lowered)), report)
        outputs, taps = model.run(images, taps=True)
        logits = model.dequantize(outputs)
        assert report.graph is not None
        truth = evaluate(report.graph, images)
        own = evaluate(report.graph, images, {o.sign: taps[o.name] > 0 for o in report.operators if o.sign})
        clean = np.ones(len(images), bool)
        approximated = False
        seen = 0
        for operator in report.operators:
            if not operator.sign:
                continue
            mine = (taps[operator.name] > 0).reshape(len(images), -1)
            near = truth.near_ties[operator.sign].reshape(len(images), -1)
            exact = own.bits[operator.sign].reshape(len(images), -1) != mine
            exact &= ~own.near_ties[operator.sign].reshape(len(images), -1)
            if operator.approximations:
                approximated = True
                assert exact.mean() < 0.002, (operator.name, float(exact.mean()))
            else:
                assert not exact.any(), (operator.name, int(exact.sum()))
            if operator.sign not in run.bits:
                continue
            seen += 1
            wrong = (run.bits[operator.sign].reshape(len(images), -1) != mine) & clean[:, None]
            if operator.approximations:
                clean &= ~wrong.any(axis=1)
                continue
            assert not (wrong & ~near).any(), (operator.name, operator.layers, int((wrong & ~near).sum()))
            self.bits += int(clean.sum()) * mine.shape[1]
            self.near_ties += int(wrong.sum())
            clean &= ~wrong.any(axis=1)
        assert seen == len(run.bits) > 0
        head = report.operators[-1]
        theirs = run.outputs.reshape(len(images), -1)
        if softmax:
            power = np.exp(logits - logits.max(axis=1, keepdims=True))
            logits = power / power.sum(axis=1, keepdims=True)
        scale = max(1.0, float(np.abs(theirs).max()))
        slack = 2e-4 if not head.approximations else 0.05
        error = np.abs(logits - theirs)[clean]
        assert error.max(initial=0) < slack * scale, (float(error.max()), scale)
        self.networks += 1
        self.kinds["approximated first layer"] += int(approximated)
        self.kinds["approximated head"] += int(bool(head.approximations))
        self.kinds["flattened plane of several pixels"] += int(
            any(isinstance(n, g.Flatten) and max(graph.shapes[n.inputs[0]][:2]) > 1 for n in graph.nodes)
        )
        self.count_operators(lowered)
