"""The mutation test of the torch reader: every argument of every operator that it knows, set to other values.

By torch's own schemas. The converted network gives torch's answers, or it is refused; never anything else.
`CBIN_NN_ARGUMENT_CASES=all` tries every value in every place, about six times as many as a plain run.
"""

from __future__ import annotations

import os
from collections import Counter

import numpy as np
import pytest

if os.environ.get("CBIN_NN_REQUIRE_ALL") != "1":
    pytest.importorskip("torch", reason="make test-frameworks installs torch in .venv-torch")

import torch_arguments as arguments
from cbin_nn.converters.aten import OPERATORS

#: Arguments that can't be set on this machine, with torch's reason.
NOT_SET = {
    ("_softmax.default", "half_to_float"): "half to float is of CUDA alone",
    ("_log_softmax.default", "half_to_float"): "half to float is of CUDA alone",
}


def test_every_argument_is_honoured_or_refused(capsys: pytest.CaptureFixture[str]) -> None:
    thin = os.environ.get("CBIN_NN_ARGUMENT_CASES") != "all"
    outcomes: Counter[str] = Counter()
    covered: set[tuple[str, str]] = set()
    right: set[str] = set()
    plain: dict[tuple[str, str], np.ndarray] = {}
    changed = tried = 0
    wrong: list[str] = []
    for case in arguments.cases(thin):
        found = arguments.torch_answers(case)
        if isinstance(found, str):
            outcomes["torch refuses the value"] += 1
            continue
        network, answers = found
        base = plain.setdefault((case.key, case.place), answers)
        tried += 1
        changed += base.shape != answers.shape or not np.allclose(base, answers, 1e-6, 1e-6, equal_nan=True)
        for route, source in arguments.sources(case, network):
            outcome = arguments.judge(source, answers, case.key)
            outcomes[f"{route}: {outcome.kind}"] += 1
            covered.add((case.key, case.argument))
            if outcome.kind == "wrong":
                wrong.append(f"{case.name} ({route}): {outcome.detail}")
            elif outcome.kind == "right":
                right.add(case.key)
    wanted = arguments.schema_arguments()
    covered &= wanted
    with capsys.disabled():
        print(
            f"\ntorch arguments: {len(covered)} of {len(wanted)} (operator, argument) pairs, "
            f"{len(OPERATORS)} operators"
        )
        print(
            f"  {tried} values, {changed} of which changed torch's answers; {len(right)} operators converted"
        )
        for what, count in sorted(outcomes.items()):
            print(f"  {count:6,}  {what}")
    assert not wrong, "\n".join(wrong)
    assert wanted - covered == set(NOT_SET), sorted((wanted - covered) ^ set(NOT_SET))
    assert set(OPERATORS) - right == set(REFUSED), sorted((set(OPERATORS) - right) ^ set(REFUSED))
    assert changed >= 160 and outcomes["export: right"] > 440 and outcomes["decomposed: right"] > 70


#: Operators of which no case converts, and why they are in the table nevertheless.
REFUSED: dict[str, str] = {}
