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
    "ProbeRow",
    "__version__",
    "build_model",
    "list_boards",
    "list_probes",
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
    weights_layout: str | None

@final
class Model:
    @staticmethod
    def from_bytes(data: bytes) -> Model: ...
    def to_bytes(self) -> bytes: ...
    @property
    def kernels(self) -> str: ...
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
    def memory_bytes(self) -> int: ...
    @property
    def in_place(self) -> bool: ...
    @property
    def input_bytes(self) -> int: ...
    @property
    def output_bytes(self) -> int: ...
    @property
    def file_bytes(self) -> int: ...
    def operators(self) -> list[OperatorInfo]: ...
    def arena(self) -> list[tuple[str, bool, int, int, int, int]]: ...
    def run(self, images: npt.NDArray[Any], threads: int, reference: bool) -> npt.NDArray[Any]: ...
    def weights(self) -> list[tuple[str, str, str, list[int], bytes]]: ...
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
    def unit(self) -> str | None: ...
    @property
    def simulated(self) -> bool: ...
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
class ProbeRow:
    selector: str
    name: str
    accessible: bool

@final
class BoardSession:
    def __new__(
        cls,
        name: str,
        runner: str | PathLike[str],
        data: bytes | None = None,
        *,
        probe: str | None = None,
        speed_khz: int | None = None,
        under_reset: bool = False,
        timeout_s: float | None = None,
        progress: Callable[[str, str, int, int], None] | None = None,
    ) -> BoardSession: ...
    def load(self, data: bytes, progress: Callable[[str, str, int, int], None] | None = None) -> None: ...
    def open_stored(self) -> bytes: ...
    def run(
        self,
        images: npt.NDArray[np.uint8],
        progress: Callable[[str, str, int, int], None] | None = None,
    ) -> BoardRun: ...
    def close(self) -> None: ...
    @property
    def loaded(self) -> str | None: ...
    @property
    def simulated(self) -> bool: ...
    @property
    def runner_version(self) -> str: ...

def build_model(lowered: LoweredModel, samples: bytes | None = None) -> bytes: ...
def list_boards() -> list[BoardRow]: ...
def list_probes() -> list[ProbeRow]: ...
