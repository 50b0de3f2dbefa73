"""Writing files so that nobody ever sees half of one."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from .errors import OutputError

__all__ = ["write_atomically"]


def write_atomically(path: str | os.PathLike[str], data: bytes, *, overwrite: bool = False) -> Path:
    """Write `data` to a temporary file beside `path` and move it into place.

    Args:
        path: the file to write.
        data: its whole content.
        overwrite: replace a file that exists.

    Returns:
        The path.

    Raises:
        OutputError: the file exists and `overwrite` is False, or the folder can't be written;
            nothing was changed.
    """
    target = Path(path)
    if target.is_dir():
        raise OutputError("output-is-folder", f"{target} is a folder: give the name of a file in it")
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # `mkstemp` makes files for their owner alone; give this one what the user's umask allows.
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        if overwrite:
            Path(temporary).replace(target)
        else:
            # A hard link fails where the name is taken, also by a file that appeared a moment ago.
            os.link(temporary, target)
            Path(temporary).unlink()
        temporary = None
    except FileExistsError:
        raise OutputError(
            "output-exists",
            f"{target} exists: choose another name, or overwrite it (--force, overwrite=True)",
        ) from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError("output-not-writable", f"{target} can't be written: {reason}") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
    return target
