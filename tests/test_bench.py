"""No layer takes more instructions than it was recorded to take: see scripts/bench.py."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
#: A layer may take this much more than in the latest record. Less needs no new record, but deserves one.
SLACK = 1.02


def test_counts_are_not_above_the_latest_record(emulated_board: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])
    import bench

    assert emulated_board == bench.BOARD
    name, recorded = bench.latest()
    measured = bench.measure()
    assert measured.keys() == recorded.keys(), f"run `make bench`: {name} holds other networks"
    slower = [
        f"{network}, {layer}: {count:,}, recorded {recorded[network]['layers'][layer]:,}"
        for network, result in measured.items()
        for layer, count in result["layers"].items()
        if count > SLACK * recorded[network]["layers"][layer]
    ]
    assert not slower, f"above {name}: {slower}"
    for network, result in measured.items():
        for part, sizes in [("ram", result["ram"]), ("flash", result["flash"])]:
            for what, size in sizes.items():
                limit = SLACK * recorded[network][part][what]
                assert size <= limit, f"{network}: {what} takes {size:,} bytes, {limit:,.0f} at most"
