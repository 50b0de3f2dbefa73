"""Writing files so that nobody ever sees half of one."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from .errors import OutputError

__all__ = ["check_target", "write_atomically"]


def check_target(path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Check that a file may be written to `path`, before the work whose result it is to hold.

    Returns:
        The path, links followed.

    Raises:
        OutputError: the file exists and `overwrite` is False, or `path` is empty, a folder or a device.
    """
    if not os.fspath(path):
        raise OutputError("output-not-writable", "the output path is empty: give the name of a file")
    try:
        target = Path(os.path.realpath(path))
        mode = target.stat().st_mode
    except FileNotFoundError:
        return target
    except (OSError, ValueError) as error:
        raise _not_writable(path, error) from error
    if stat.S_ISDIR(mode):
        raise OutputError("output-is-folder", f"{path} is a folder: give the name of a file in it")
    if not stat.S_ISREG(mode):
        raise OutputError("output-not-writable", f"{path} is no ordinary file: give the name of one")
    if not overwrite:
        raise OutputError(
            "output-exists",
            f"{path} exists: choose another name, or overwrite it (--force, overwrite=True)",
        )
    return target


def write_atomically(path: str | os.PathLike[str], data: bytes, *, overwrite: bool = False) -> Path:
    """Write `data` to a temporary file beside `path` and move it into place.

    Args:
        path: the file to write; where it is a link, the file that it leads to. A file that is
            overwritten keeps its permissions.
        data: its whole content.
        overwrite: replace a file that exists.

    Returns:
        The path.

    Raises:
        OutputError: the file exists and `overwrite` is False, or it can't be written; nothing was changed.
    """
    target = check_target(path, overwrite=overwrite)
    temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(8)}")
    try:
        with open(temporary, "xb") as file:  # noqa: PTH123 - made with what the umask allows
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if overwrite:
            if target.exists():
                temporary.chmod(stat.S_IMODE(target.stat().st_mode))
            temporary.replace(target)
        else:
            _claim(temporary, target)
    except OSError as error:
        if isinstance(error, FileExistsError):
            # Somebody made it a moment ago.
            check_target(path)
        raise _not_writable(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)
    return Path(path)


def _claim(temporary: Path, target: Path) -> None:
    """Give `temporary` the name `target`, which nobody may have yet."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise
    except OSError:  # no hard links here (FAT, some network drives): claim the name, then replace it
        target.touch(exist_ok=False)
        temporary.replace(target)


def _not_writable(path: str | os.PathLike[str], error: Exception) -> OutputError:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return OutputError("output-not-writable", f"{os.fspath(path)!r} can't be written: {reason}")
