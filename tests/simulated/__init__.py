"""A debug probe and boards behind it, simulated: tests drive the real probe-rs with it, without hardware.

```
probe-rs ── TCP ── blackmagic.py ── cortexm.py ── stm32.py   an STM32 on unicorn, with its flash controller
                   the probe        debug         qemu.py    QEMU's Cortex-M7, through its gdb stub
```

Nothing in the project knows that a test is on: probe-rs has a backend for a Black Magic Probe on the network,
and the selector `1d50:6018:HOST:PORT` is all that differs. `PYTHONPATH=tests python -m simulated` starts one
by hand.
"""
