"""Every error that cbin_nn raises on purpose, in one list.

Each exception carries a stable `slug` (for programs) beside its message (for people). The message
names what was wrong, where (layer, argument, file, board) and what to do next. All of them derive
from `CbinError`, and from the built-in exception that a Python user would expect.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "AmbiguousProbe",
    "BoardError",
    "BoardLockedUp",
    "BoardNotReady",
    "BoardTimeout",
    "CbinError",
    "ConversionError",
    "DataError",
    "FlashError",
    "InvalidArgument",
    "MissingExtra",
    "ModelFileError",
    "ModelTooLarge",
    "NoModelOnBoard",
    "OperatorNotBuilt",
    "OutputError",
    "ProbeError",
    "ProbeLost",
    "ProbeNotFound",
    "ProbePermission",
    "ProbeStuck",
    "ReadProtected",
    "RunnerMismatch",
    "WrongChip",
]


class CbinError(Exception):
    """Base of every error of this package.

    Args:
        slug: stable identifier in kebab-case, for instance ``"unsupported-layer"``.
        message: one line for a person.
    """

    def __init__(self, slug: str, message: str) -> None:
        super().__init__(slug, message)
        self.slug = slug
        self.message = message

    def __str__(self) -> str:
        return self.message


class InvalidArgument(CbinError, ValueError):
    """An argument has the wrong dtype, shape, range or value; the message names the argument."""


class ModelFileError(CbinError, ValueError):
    """A `.cbn` file is truncated, damaged, foreign or inconsistent; the message names the field."""


class ConversionError(CbinError, ValueError):
    """A source model can't be converted; the message names the layer and what to do.

    Args:
        slug: see `CbinError`.
        reason: what is wrong, without the layer.
        layer: the source's name of the layer; empty where the whole network or file is meant.
        kind: the source's kind of layer or operator, for instance "Reshape"; may be empty.
        advice: what to do; may be empty, or part of the reason.
    """

    def __init__(self, slug: str, reason: str, *, layer: str = "", kind: str = "", advice: str = "") -> None:
        where = f"layer {layer!r}" + (f" ({kind})" if kind else "") if layer else kind
        what = f"{reason}; {advice}" if advice else reason
        # Parts of it may come from a file: one line, whatever they hold.
        super().__init__(slug, " ".join((f"{where}: {what}" if where else what).split()))
        self.reason, self.layer, self.kind, self.advice = reason, layer, kind, advice

    @classmethod
    def of_lines(cls, slug: str, lines: Sequence[str]) -> ConversionError:
        """An error that tells several things, one a line.

        Args:
            slug: see `CbinError`.
            lines: what the message says; each becomes one line, whatever it holds.
        """
        error = cls(slug, "; ".join(lines))
        return error._saying("\n".join(" ".join(line.split()) for line in lines))

    def inside(self, name: str) -> ConversionError:
        """The same error of a file or class, whose name then begins the message."""
        if self.message.startswith(f"{name}: "):
            return self
        error = ConversionError(self.slug, self.reason, layer=self.layer, kind=self.kind, advice=self.advice)
        return error._saying(f"{name}: {self.message}")

    def _saying(self, message: str) -> ConversionError:
        self.message = message
        self.args = (self.slug, message)
        return self


class DataError(CbinError, ValueError):
    """A data set is absent or damaged; the message names the file or folder and what to do."""


class OutputError(CbinError, OSError):
    """A file can't be written; nothing was changed."""


class BoardError(CbinError, RuntimeError):
    """A board or its emulator failed; the message names the board and the step that failed."""


class BoardTimeout(BoardError):
    """The board runs and does not answer in time."""


class BoardLockedUp(BoardError):
    """The board's core is in lock-up."""


class BoardNotReady(BoardError):
    """Something that the board's start-up waits for, its clock for instance, did not get ready."""


class RunnerMismatch(BoardError):
    """The runner on the board speaks another version of the protocol, or is another board's."""


class ModelTooLarge(BoardError):
    """The model does not fit the board's flash or RAM; nothing was written to the board."""


class OperatorNotBuilt(BoardError):
    """The board's runner was trimmed to other operators than the model's; the message names the layer."""


class NoModelOnBoard(BoardError):
    """The board holds no model, or one that is damaged or was not written to its end."""


class FlashError(BoardError):
    """The board's flash could not be written, or does not hold what was written."""


class ReadProtected(BoardError):
    """The chip does not let its flash be read; nothing was written."""


class WrongChip(BoardError):
    """Another chip than the board's is connected; nothing was written."""


class ProbeError(BoardError):
    """A debug probe failed. The classes below it say how."""


class ProbeNotFound(ProbeError):
    """No debug probe is there, or not the one that was named."""


class AmbiguousProbe(ProbeError):
    """Several debug probes are there, and none was named."""


class ProbePermission(ProbeError):
    """The debug probe is there, and this user may not use it."""


class ProbeLost(ProbeError):
    """The debug probe was unplugged, or its connection was closed."""


class ProbeStuck(ProbeError):
    """The debug probe is connected and does not answer."""


class MissingExtra(CbinError, ImportError):
    """An optional dependency is absent; the message gives the `pip install` line."""


#: Classes of boards' errors by slug; any other slug is a plain `BoardError`.
_BOARD_ERRORS: dict[str, type[CbinError]] = {
    "arena-too-small": ModelTooLarge,
    "attach-failed": ProbeError,
    "bad-probe": InvalidArgument,
    "board-mismatch": RunnerMismatch,
    "board-timeout": BoardTimeout,
    "flash-failed": FlashError,
    "locked-up": BoardLockedUp,
    "model-too-large": ModelTooLarge,
    "no-model": NoModelOnBoard,
    "no-probe": ProbeNotFound,
    "not-ready": BoardNotReady,
    "operator-not-built": OperatorNotBuilt,
    "probe-failed": ProbeError,
    "probe-lost": ProbeLost,
    "probe-not-found": ProbeNotFound,
    "probe-panicked": ProbeError,
    "probe-permission": ProbePermission,
    "probe-stuck": ProbeStuck,
    "protocol-mismatch": RunnerMismatch,
    "read-protected": ReadProtected,
    "several-probes": AmbiguousProbe,
    "wrong-chip": WrongChip,
}


def board_error(slug: str, message: str) -> CbinError:
    """The exception for an error of a board: the class that goes with the slug."""
    return _BOARD_ERRORS.get(slug, BoardError)(slug, message)
