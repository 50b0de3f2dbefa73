"""A debug probe and boards behind it, simulated: what lets the tests drive the real probe-rs without hardware.

```
probe-rs ── TCP ── blackmagic.py ── cortexm.py ── stm32.py   an STM32 on unicorn, its flash controller included
                   the probe         debug        qemu.py    QEMU's Cortex-M7, through its gdb stub
```

Nothing in the project knows that a test is on: probe-rs has a backend for a Black Magic Probe on the network, and
the selector `1d50:6018:HOST:PORT` is all that differs. `python -m simulated --help` starts one by hand.
"""
