"""Start a board behind a simulated probe by hand, until Ctrl-C: `PYTHONPATH=tests python -m simulated`."""

from __future__ import annotations

import argparse
import contextlib
import threading

from .blackmagic import BlackMagicProbe
from .cortexm import CortexM
from .qemu import Qemu
from .stm32 import F446, F746, Stm32

CHIPS = {
    "qemu-mps2-an500": Qemu,
    "stm32f746g-disco": lambda: Stm32(F746),
    "nucleo-f746zg": lambda: Stm32(F746),
    "nucleo-f446re": lambda: Stm32(F446),
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--board", choices=CHIPS, default="stm32f746g-disco")
    parser.add_argument("--port", type=int, default=0, help="TCP port (default: any)")
    arguments = parser.parse_args()
    with BlackMagicProbe(CortexM(CHIPS[arguments.board]()), arguments.port) as probe:
        print(f"cbin-nn bench MODEL.cbn --board {arguments.board} --probe {probe.selector}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
