"""Where the linker puts what a run touches on chips with tightly coupled memories. No chip is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cbin_nn
import pytest
from cbin_nn import deploy
from cbin_nn.errors import BoardError
from conftest import FIXTURES, require
from elftools.elf.elffile import ELFFile

#: STM32F746: the instruction TCM, the data TCM and the flash, as (first address, end).
ITCM = (0x0000_0000, 0x0000_4000)
DTCM = (0x2000_0000, 0x2001_0000)
FLASH = (0x0800_0000, 0x0810_0000)

#: The inner loops: `scripts/profile_board.py` shows that most of a run's instructions are in them.
LOOPS = ["byte_mask4hits", "byte_pairs4hits", "pixel_sums4hits", "vertical10add_blocks", "popcount9differing"]


@pytest.fixture(params=["stm32f746g-disco", "nucleo-f746zg"])
def image(request: pytest.FixtureRequest) -> Any:
    """The runner's ELF: (names of symbols to (address, kind), sections by name, load address of .itcm)."""
    try:
        path: Path | None = deploy.runner_path(request.param)
    except BoardError:
        path = None
    require("the runner image", path is not None, "make firmware")
    assert path is not None
    with path.open("rb") as stream:
        elf = ELFFile(stream)
        table = elf.get_section_by_name(".symtab")
        symbols = {s.name: (s["st_value"], s["st_info"]["type"]) for s in table.iter_symbols() if s.name}
        sections = {s.name: (s["sh_addr"], s["sh_addr"] + s["sh_size"]) for s in elf.iter_sections()}
        loads = [s["p_paddr"] for s in elf.iter_segments() if s["p_type"] == "PT_LOAD" and s["p_filesz"]]
        return symbols, sections, loads


def inside(span: tuple[int, int], region: tuple[int, int]) -> bool:
    return region[0] <= span[0] and span[1] <= region[1]


def test_inner_loops_run_from_the_instruction_tcm(image: Any) -> None:
    symbols, sections, loads = image
    assert inside(sections[".itcm"], ITCM)
    # Kept in flash, from where the start-up copies it.
    stored = symbols["__cbin_nn_itcm_load"][0]
    assert inside((stored, stored + sections[".itcm"][1] - sections[".itcm"][0]), FLASH)
    assert stored in loads
    # Thunks are the way there from flash, which is too far for a branch.
    hot = {
        name: at
        for name, (at, kind) in symbols.items()
        if "cbin_nn_kernels4arch" in name and kind == "STT_FUNC" and "Thunk" not in name
    }
    for loop in LOOPS:
        assert any(loop in name for name in hot), f"{loop} is no function of its own any more"
    elsewhere = [name for name, at in hot.items() if not inside((at & ~1, at & ~1), sections[".itcm"])]
    assert not elsewhere


def test_stack_and_arena_are_in_the_data_tcm(image: Any) -> None:
    symbols, sections, _ = image
    stack = symbols["_stack_end"][0], symbols["_stack_start"][0]
    assert inside(stack, DTCM) and stack[1] > stack[0]
    # Nothing lies below, so that an overflow faults.
    assert stack[0] == DTCM[0]
    for section in (".transport", ".bss", ".data"):
        assert inside(sections[section], DTCM), section
    # The workspace begins with the arena, then image, output and counts; a large model's goes on in SRAM.
    model = cbin_nn.convert(FIXTURES / "smallcifar.h5")
    workspace = symbols["__cbin_nn_workspace"][0]
    needed = model.arena_bytes + 32 * 32 * 3 + 10 * 4 + 8 * len(model.layers)
    assert inside((workspace, workspace + needed), DTCM)
