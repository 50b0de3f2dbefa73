"""Reading files that may be hostile: one error of one line that names the file, archives within bounds, and
the bounds of time and memory that `bounded` enforces."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import CbinError, ConversionError

__all__ = ["MAX_FILE", "Archive", "memory_of", "naming", "on_further_file", "seconds_of"]

#: Larger than any model that this serves.
MAX_FILE = 2**31
#: Bytes that all members of one archive may unpack to.
_MAX_UNPACKED = 2**31
_MAX_MEMBERS = 100_000
#: Seconds that reading a file may take, and bytes of it that grant one second more: slow disks and networks.
_SECONDS = 15
_BYTES_A_SECOND = 2**22
#: Bytes of memory that reading a file may take, and how many more each byte of the file grants: a compressed
#: array, its float32 values and intermediate float64 ones.
_MEMORY = 2**30
_MEMORY_A_BYTE = 16


def seconds_of(size: int) -> float:
    """Seconds that reading a file of `size` bytes may take: 15, and one for each 4 MiB."""
    return _SECONDS + size / _BYTES_A_SECOND


def memory_of(size: int) -> int:
    """Bytes of memory that reading a file of `size` bytes may take: 1 GiB, and 16 for each byte."""
    return _MEMORY + _MEMORY_A_BYTE * size


#: Readers call this with a file beside the model before they read it, since it counts, too.
on_further_file: Callable[[Path], None] = lambda path: None  # noqa: E731


class Archive:
    """A zip archive whose members are read within limits: a stated size is checked before and while
    unpacking.

    Raises:
        ConversionError: too many members, or a name twice.
    """

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        names = archive.namelist()
        self.names = set(names)
        self._left = _MAX_UNPACKED
        if len(names) > _MAX_MEMBERS or len(names) != len(self.names):
            raise ConversionError("damaged-file", "the archive has too many members, or one of them twice")

    def read(self, name: str, limit: int) -> bytes:
        """The bytes of a member.

        Raises:
            ConversionError: it is absent, larger than `limit`, or not of the size that it states.
        """
        if name not in self.names:
            raise ConversionError("damaged-file", f"the archive has no member {name!r}")
        info = self._archive.getinfo(name)
        if info.file_size > min(limit, self._left):
            raise ConversionError("damaged-file", f"member {name!r} has {info.file_size} bytes, too many")
        with self._archive.open(info) as member:
            content = member.read(info.file_size + 1)
        if len(content) != info.file_size:
            raise ConversionError("damaged-file", f"member {name!r} has another size than it states")
        self._left -= len(content)
        return content


@contextmanager
def naming(path: Path, kind: str, advice: str) -> Iterator[None]:
    """Turns whatever a hostile file provokes into one ConversionError of one line with the file's name.

    Args:
        path: the file.
        kind: what it should have been, for instance "Keras".
        advice: what to do.
    """
    try:
        yield
    except ConversionError as error:
        named = error.inside(str(path))
        if named is error:
            raise
        raise named from error
    except CbinError:
        raise
    except FileNotFoundError as error:
        raise ConversionError("no-such-file", f"{path}: no such file") from error
    except MemoryError as error:
        raise ConversionError(
            "damaged-file",
            f"{path}: reading it takes more memory than a {kind} file of its size can need; {advice}",
        ) from error
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ConversionError(
            "damaged-file", f"{path}: not a readable {kind} file ({reason}); {advice}"
        ) from error
