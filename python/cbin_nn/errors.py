"""Every error that cbin_nn raises on purpose, in one list.

Each exception carries a stable `slug` (for programs) beside its message (for people). The message
names what was wrong, where (layer, argument, file, board) and what to do next. All of them derive
from `CbinError`, and from the built-in exception that a Python user would expect.
"""

from __future__ import annotations

__all__ = [
    "BoardError",
    "CbinError",
    "ConversionError",
    "DataError",
    "InvalidArgument",
    "MissingExtra",
    "ModelFileError",
    "OutputError",
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
    """A source model can't be converted; the message names the layer and what to do."""


class DataError(CbinError, ValueError):
    """A data set is absent or damaged; the message names the file or folder and what to do."""


class OutputError(CbinError, OSError):
    """A file can't be written; nothing was changed."""


class BoardError(CbinError, RuntimeError):
    """A board or its emulator failed; the message names the board and the step that failed."""


class MissingExtra(CbinError, ImportError):
    """An optional dependency is absent; the message gives the `pip install` line."""
