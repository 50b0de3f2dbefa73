"""Types of the private native module. `make lint` checks them against the module itself (stubtest)."""

from collections.abc import Callable
from os import PathLike
from typing import Any, final

import numpy as np
import numpy.typing as npt

from .operators import LoweredModel

__all__ = [
    "BoardRow",
    "BoardRun",
    "BoardSession",
    "Model",
    "OperatorInfo",
    "__version__",
    "build_model",
    "list_boards",
    "run_on_board",
]

__version__: str

@final
class OperatorInfo:
    name: str
    kind: str
    inputs: list[str]
    output: str
    output_shape: tuple[int, int, int]
    output_dtype: str
    output_bytes: int
    scratch_bytes: int
    constant_bytes: int
    macs: int
    fused_pool: bool

@final
class Model:
    @staticmethod
    def from_bytes(data: bytes) -> Model: ...
    def to_bytes(self) -> bytes: ...
    @property
    def name(self) -> str: ...
    @property
    def input_shape(self) -> tuple[int, int, int]: ...
    @property
    def input_dtype(self) -> str: ...
    @property
    def output_shape(self) -> tuple[int, int, int]: ...
    @property
    def output_dtype(self) -> str: ...
    @property
    def output_scale(self) -> float: ...
    @property
    def float_output(self) -> bool: ...
    @property
    def arena_bytes(self) -> int: ...
    @property
    def input_bytes(self) -> int: ...
    @property
    def output_bytes(self) -> int: ...
    @property
    def file_bytes(self) -> int: ...
    def operators(self) -> list[OperatorInfo]: ...
    def arena(self) -> list[tuple[str, bool, int, int, int, int]]: ...
    def run(self, images: npt.NDArray[Any], threads: int, reference: bool) -> npt.NDArray[Any]: ...
    def run_taps(self, image: npt.NDArray[np.uint8]) -> list[bytes]: ...

@final
class BoardRow:
    name: str
    description: str
    core: str
    clock_hz: int | None
    needs: str
    simulated: bool

@final
class BoardRun:
    @property
    def outputs(self) -> bytes: ...
    @property
    def counts(self) -> list[int]: ...
    @property
    def totals(self) -> list[int]: ...
    @property
    def unit(self) -> str: ...
    @property
    def counter_resolution(self) -> int: ...
    @property
    def runner_version(self) -> str: ...
    @property
    def arena_bytes(self) -> int: ...
    @property
    def stack_bytes(self) -> int: ...
    @property
    def transport_bytes(self) -> int: ...
    @property
    def other_bytes(self) -> int: ...
    @property
    def code_bytes(self) -> int: ...
    @property
    def workspace_bytes(self) -> int: ...

@final
class BoardSession:
    def __new__(cls, name: str, runner: str | PathLike[str]) -> BoardSession: ...
    def load(self, data: bytes) -> None: ...
    def run(self, images: npt.NDArray[np.uint8]) -> bytes: ...

def build_model(lowered: LoweredModel) -> bytes: ...
def list_boards() -> list[BoardRow]: ...
def run_on_board(
    name: str,
    runner: str | PathLike[str],
    data: bytes,
    images: npt.NDArray[np.uint8],
    progress: Callable[[int, int], None] | None,
    timeout_s: float | None,
) -> BoardRun: ...
