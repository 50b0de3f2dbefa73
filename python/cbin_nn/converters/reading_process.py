r"""The process that reads foreign files for `bounded`: requests on standard input, replies on standard
output.

Here the libraries of foreign formats run (HDF5's, protobuf's, zlib), on bytes that may be made to harm them.
Each file is read in a fork of its own that ends with it. So nothing that a damaged file leaves behind, a
leaked handle or a spoilt heap, reaches the next one. Without `fork` (Windows, macOS) this process reads
itself, and its parent replaces it after a file that was damaged.

What holds here, whatever a library does:

- The address space is bounded: what the process takes at rest, and what the request grants beyond. The
  system must heed `RLIMIT_AS`, as Linux does.
- So is the processor time, that a process whose parent was killed ends, too. The wall clock is the parent's.
- No plugin of HDF5 is loaded, no core is dumped, and what a library prints goes nowhere.

Both sides speak in frames: a length of eight bytes, little-endian, then the content. A request is JSON. A
reply is a head in JSON, then a pickle, then the buffers of its arrays, whose lengths the head gives.

`bounded` starts this module without the package's own `__init__`, which imports what users need and readers
do not.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import json
import os
import pickle
import signal
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

__all__ = ["READY", "main", "read_exactly", "read_frame", "write_frame"]

#: The first frame of a process that is ready to read.
READY = b"cbin-nn reads"
_LENGTH = struct.Struct("<Q")
#: What reading may import, by the bit of a fork's exit status: the next fork then has it already.
_LIBRARIES = (
    "h5py",
    "onnx",
    "cbin_nn.converters.keras",
    "cbin_nn.converters.onnx",
    "cbin_nn.converters.torch_export",
)
#: The exit status of a fork that has replied, plus those bits. Any other end is a library's doing.
_REPLIED = 128
#: Seconds of processor time beyond those of the wall clock, after which the system ends the process.
_GRACE = 5


def main(libraries: list[str], *, fork: bool) -> NoReturn:
    """Serve requests until standard input ends.

    Args:
        libraries: what to import before the first request; one that is missing is the reader's to report.
        fork: read each file in a process of its own.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for library in (*libraries, "cbin_nn.converters.sources"):
        with contextlib.suppress(ImportError):
            importlib.import_module(library)
    requests, replies = _own_streams()
    _limit("RLIMIT_CORE", 0)
    at_rest = _address_space()
    write_frame(replies, READY)
    while (request := read_frame(requests)) is not None:
        asked = json.loads(request)
        if not fork:
            _reply(asked, replies, at_rest)
            continue
        gc.freeze()  # so that a fork's collections copy no pages of what was here before
        child = os.fork()
        if not child:
            try:
                _reply(asked, replies, at_rest)
                loaded = sum(1 << bit for bit, name in enumerate(_LIBRARIES) if name in sys.modules)
                os._exit(_REPLIED + loaded)
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):  # the parent learns from this process how its fork ended
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), os.WTERMSIG(status))
        code = os.WEXITSTATUS(status)
        if code < _REPLIED:
            os._exit(code or 1)
        for bit, name in enumerate(_LIBRARIES):
            if code & 1 << bit and name not in sys.modules:
                importlib.import_module(name)
        at_rest = _address_space()
    os._exit(0)


def _own_streams() -> tuple[io.FileIO, io.FileIO]:
    """Standard input and output under other descriptors; libraries find the null device in their place."""
    streams = io.FileIO(os.dup(0), "r"), io.FileIO(os.dup(1), "w")
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)
    return streams


def _reply(request: dict[str, Any], replies: io.FileIO, at_rest: int) -> None:
    """Read one file and send the graph, or one of our errors."""
    from ..errors import CbinError
    from . import files, sources

    memory, seconds = int(request["memory"]), float(request["seconds"])
    used = os.times()
    spent = used.user + used.system

    def bound() -> None:
        _limit("RLIMIT_AS", at_rest + memory)
        _limit("RLIMIT_CPU", int(spent + seconds) + _GRACE)

    def further(path: Path) -> None:
        nonlocal memory, seconds
        size = path.stat().st_size
        write_frame(replies, json.dumps({"further": path.name}).encode())
        memory += files.memory_of(size)
        seconds += files.seconds_of(size)
        bound()

    bound()
    with contextlib.suppress(OSError, TypeError):
        os.chdir(request["folder"])
    path = Path(request["path"])
    result: Any
    content, buffers = b"", list[pickle.PickleBuffer]()
    with _further_files(further):
        try:
            with files.naming(path, "model", "save it again with its framework"):
                result = sources.read_path(path)
                content = pickle.dumps(result, protocol=5, buffer_callback=buffers.append)
        except CbinError as error:
            result, buffers = error, []
            content = pickle.dumps(error, protocol=5)
    views = [buffer.raw() for buffer in buffers]
    head = {"failed": isinstance(result, CbinError), "buffers": [view.nbytes for view in views]}
    write_frame(replies, json.dumps(head).encode())
    write_frame(replies, content)
    for view in views:
        _write(replies, view)


@contextlib.contextmanager
def _further_files(tell: Any) -> Iterator[None]:
    """Calls `tell` once for each file beside the model that a reader opens, before it is read."""
    from . import files

    told: set[Path] = set()

    def each(path: Path) -> None:
        if path not in told:
            told.add(path)
            tell(path)

    files.on_further_file, before = each, files.on_further_file
    try:
        yield
    finally:
        files.on_further_file = before


# ------------------------------------------------------------------------------------------------
# the system


def _address_space() -> int:
    """Bytes of address space that this process takes."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return 2**30


def _limit(name: str, value: int) -> None:
    """Set a soft limit of this process, never above a limit that was there; nothing where there are none."""
    try:
        import resource
    except ImportError:  # Windows
        return
    which = getattr(resource, name, None)
    if which is None:
        return
    _, hard = resource.getrlimit(which)
    soft = value if hard == resource.RLIM_INFINITY else min(value, hard)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(which, (soft, hard))


# ------------------------------------------------------------------------------------------------
# frames


def read_exactly(stream: io.FileIO, size: int) -> bytearray:
    """`size` bytes, or fewer where the stream ends."""
    content = bytearray(size)
    view, at = memoryview(content), 0
    while at < size:
        count = stream.readinto(view[at:])
        if not count:
            view.release()
            del content[at:]
            break
        at += count
    return content


def read_frame(stream: io.FileIO, limit: int = 2**40) -> bytearray | None:
    """The next frame; None where the stream ends before it does, or where it states more than `limit`."""
    head = read_exactly(stream, _LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (size,) = _LENGTH.unpack(head)
    if size > limit:
        return None
    content = read_exactly(stream, size)
    return content if len(content) == size else None


def write_frame(stream: io.FileIO, content: bytes) -> None:
    """Write one frame."""
    _write(stream, memoryview(_LENGTH.pack(len(content)) + content))


def _write(stream: io.FileIO, view: memoryview) -> None:
    while view.nbytes:
        view = view[stream.write(view) :]
