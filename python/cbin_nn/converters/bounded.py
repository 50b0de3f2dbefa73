r"""Foreign files are read in another process, within bounds of time and memory that hold whatever a library
does.

HDF5's library follows a circle in a damaged file for ever, and a crash in it, or in protobuf's, would end the
user's session. Python can't interrupt either. So a long-lived process (`reading_process`) reads files, and
sends the graph or the error.

- It starts with the first file, and serves all later ones, one at a time, of every thread.
- It is killed and replaced when a file takes too long, when a library crashes, and when the user interrupts.
- It ends with this process: its input ends then. After a fork, the new process starts one of its own.
- What it sends is data: only the graph's own classes and NumPy arrays are built from it.

`files.seconds_of` and `files.memory_of` state the bounds, which grow with the file. The memory is bounded on
Linux alone.

Where no process can be started, that is an error that names the way out: the environment variable
`CBIN_NN_READER=in-process` reads in this process, without bounds, for files that one trusts.

Live models that their own framework has just saved are no foreign files, and are read in this process.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import CbinError, ConversionError
from .files import MAX_FILE, memory_of, naming, seconds_of
from .graph import Graph
from .reading_process import READY, read_exactly, read_frame, write_frame

__all__ = ["IN_PROCESS", "READER", "close", "read_file"]

#: The environment variable that chooses where files are read, and the value for this process.
READER = "CBIN_NN_READER"
IN_PROCESS = "in-process"
#: Set for the reading process, so that a program that is no interpreter does not start itself without end.
_INSIDE = "CBIN_NN_READING_PROCESS"

#: Seconds until the process must be ready: its imports, on a machine under load.
_STARTUP = 120.0
#: Larger than a reply's head ever is: a length for each array.
_MAX_HEAD = 2**26

_PACKAGE = Path(__file__).resolve().parent.parent
#: Packages as bare folders, that what users need is not imported; see `reading_process`.
_START = """
import sys
package, libraries, fork = sys.argv[1:4]
sys.path[:] = sys.argv[4:]
import types
for name in ("cbin_nn", "cbin_nn.converters"):
    module = sys.modules[name] = types.ModuleType(name)
    module.__path__ = [package + name[len("cbin_nn"):].replace(".", "/")]
from cbin_nn.converters.reading_process import main
main(libraries.split(), fork=fork == "fork")
"""


def read_file(path: Path, read: Callable[[Path], Graph]) -> Graph:
    """The source graph of a file or folder, read in the reading process.

    Args:
        path: the file.
        read: what reads it, for `CBIN_NN_READER=in-process` alone.

    Raises:
        ConversionError: it can't be read, holds what can't be converted, takes too long or too much memory,
            or crashes its library; or no process can be started.
        MissingExtra: a reader's dependency is not installed.
    """
    advice = "save it again with its framework"
    with naming(path, "model", advice):
        chosen = os.environ.get(READER, "")
        if chosen == IN_PROCESS:
            return read(path)
        if chosen:
            raise ConversionError(
                "bad-argument", f"{READER} is {chosen!r}; set it to {IN_PROCESS!r} or unset it"
            )
        saved_model = (path / "saved_model.pb").is_file()
        size = _size(path)
        if size > MAX_FILE:
            raise ConversionError("damaged-file", f"{size} bytes is too large for a model")
        # TensorFlow reads its checkpoint. It takes long to import and stays large, so it is not kept.
        result = _ask_once(path, size) if saved_model else _ask(path, size)
        if isinstance(result, CbinError):
            raise result
        return result


def close() -> None:
    """End the reading process; the next file starts another."""
    global _kept
    with _lock:
        process, _kept = _kept, None
        if process is not None:
            process.close()


def _size(path: Path) -> int:
    """Bytes of a file, or of the files of a SavedModel."""
    if not path.is_dir():
        return path.stat().st_size
    files = [*path.iterdir(), *(path / "variables").glob("*")]
    return sum(file.stat().st_size for file in files if file.is_file())


# ------------------------------------------------------------------------------------------------
# the process


class _Ended(Exception):
    """The process is gone, and had not begun to read."""


class _Process:
    """One reading process, ready to read.

    Raises:
        ConversionError: none can be started.
    """

    def __init__(self, libraries: Sequence[str] = (), *, fork: bool = True) -> None:
        if os.environ.get(_INSIDE) or getattr(sys, "frozen", False) or not sys.executable:
            raise _no_process("there is no Python interpreter to start")
        # Apple's libraries do not work after a fork.
        self.forks = fork and hasattr(os, "fork") and sys.platform != "darwin"
        paths = [os.path.abspath(entry) for entry in sys.path if isinstance(entry, str)]  # noqa: PTH100
        options: dict[str, Any] = (
            {"creationflags": 0x200 | 0x08000000}  # CREATE_NEW_PROCESS_GROUP, CREATE_NO_WINDOW
            if sys.platform == "win32"
            else {"start_new_session": True}  # one group to kill, and no Ctrl-C of the terminal
        )
        command = [sys.executable, "-c", _START, str(_PACKAGE), " ".join(libraries)]
        command += ["fork" if self.forks else "stay", *paths]
        with tempfile.TemporaryFile() as errors:
            try:
                self._process = subprocess.Popen(
                    command,
                    bufsize=0,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    env=_environment(),
                    **options,
                )
            except (OSError, ValueError) as error:
                raise _no_process(f"{type(error).__name__}: {error}") from error
            requests: Any = self._process.stdin  # unbuffered: no lock that a fork could inherit
            replies: Any = self._process.stdout
            self._requests, self._replies = requests, replies
            try:
                with _Deadline(self, _STARTUP):
                    greeting = read_frame(replies, len(READY))
                if greeting is None or bytes(greeting) != READY:
                    self.close()
                    errors.seek(0)
                    said = errors.read()[-2000:].decode(errors="replace").split("\n")
                    reason = next((line for line in reversed(said) if line.strip()), "it did not get ready")
                    raise _no_process(f"{sys.executable}: {reason.strip()[:200]}")
            except BaseException:
                self.close()
                raise

    def read(self, path: Path, size: int) -> Graph | CbinError:
        """The graph of a file of `size` bytes, or the error that reading it gave.

        The process can't be used again after any exception.

        Raises:
            _Ended: the process was gone before.
            ConversionError: reading took too long, or ended the process.
        """
        seconds = seconds_of(size)
        memory = memory_of(size)
        try:
            here = str(Path.cwd())
        except OSError:
            here = None  # a path from the root can still be read
        request = {"path": str(path), "folder": here, "seconds": seconds, "memory": memory}
        try:
            write_frame(self._requests, json.dumps(request).encode())
        except OSError as error:
            raise _Ended from error
        with _Deadline(self, seconds) as deadline:
            while (frame := read_frame(self._replies, _MAX_HEAD)) is not None:
                head = json.loads(frame)
                further = head.get("further")
                if further is None:
                    reply = self._reply(head, memory)
                    if reply is not None:
                        return reply
                    break
                more = (path.parent / Path(further).name).stat().st_size
                memory += memory_of(more)
                deadline.extend(seconds_of(more))
        raise self._failure(deadline)

    def _reply(self, head: dict[str, Any], memory: int) -> Graph | CbinError | None:
        """What a head announces; None where the process ends before it is whole."""
        content = read_frame(self._replies, memory)
        sizes = [int(size) for size in head["buffers"]]
        if content is None or min(sizes, default=0) < 0 or sum(sizes) > memory:
            return None
        buffers = [read_exactly(self._replies, size) for size in sizes]
        if [len(buffer) for buffer in buffers] != sizes:
            return None
        result = _Plain(io.BytesIO(content), buffers=buffers).load()
        if not isinstance(result, CbinError if head["failed"] else Graph):
            return None
        return result

    def _failure(self, deadline: _Deadline) -> ConversionError:
        """Why there is no reply."""
        self.close()
        if deadline.passed:
            return ConversionError(
                "damaged-file",
                f"reading it took more than {deadline.seconds:.0f} s, and was given up; a library may follow "
                "a circle in a damaged file: save it again with its framework",
            )
        code = self._process.returncode
        try:
            ended = f"by {signal.Signals(-code).name}" if code < 0 else f"with status {code}"
        except ValueError:
            ended = f"by signal {-code}"
        return ConversionError(
            "damaged-file",
            f"the library that reads this format ended {ended}, as a crash or a lack of memory makes it; "
            "save the file again with its framework",
        )

    def kill(self) -> None:
        """End the process and its fork, whatever they do."""
        if self._process.returncode is not None:
            return
        with contextlib.suppress(OSError):
            if sys.platform == "win32":
                self._process.kill()
            else:
                os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """`kill`, and leave nothing behind."""
        self.kill()
        for stream in (self._requests, self._replies):
            with contextlib.suppress(OSError):
                stream.close()
        self._process.wait()

    def forget(self) -> None:
        """Leave the process to the one that this one was forked from."""
        for stream in (self._requests, self._replies):
            with contextlib.suppress(OSError):
                stream.close()
        self._process.returncode = 0


class _Deadline:
    """Kills a process when its time is over, so that a read from it ends."""

    def __init__(self, process: _Process, seconds: float) -> None:
        self.seconds = seconds
        self.passed = False
        self._process = process
        self._begun = time.monotonic()
        self._timer = self._started()

    def extend(self, seconds: float) -> None:
        """Grant more time."""
        self._timer.cancel()
        self.seconds += seconds
        self._timer = self._started()

    def _started(self) -> threading.Timer:
        timer = threading.Timer(self._begun + self.seconds - time.monotonic(), self._end)
        timer.daemon = True
        timer.start()
        return timer

    def _end(self) -> None:
        self.passed = True
        self._process.kill()

    def __enter__(self) -> _Deadline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        self._timer.join()


def _environment() -> dict[str, str]:
    """The user's, with what keeps the process small and its libraries to themselves."""
    threads = {f"{name}_NUM_THREADS": "1" for name in ("MKL", "NUMEXPR", "OMP", "OPENBLAS", "VECLIB_MAXIMUM")}
    plugins = {"HDF5_PLUGIN_PATH": "", "HDF5_PLUGIN_PRELOAD": "::"}  # "::" is HDF5's word for none
    return {
        **{name: value for name, value in os.environ.items() if name != "PYTHONINSPECT"},
        **threads,
        **plugins,
        "CUDA_VISIBLE_DEVICES": "",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        _INSIDE: "1",
    }


def _no_process(reason: str) -> ConversionError:
    return ConversionError(
        "no-reading-process",
        f"model files are read in a process of their own, and none can be started ({reason}); set the "
        f"environment variable {READER}={IN_PROCESS} to read files that you trust in this one, without "
        "bounds of time and memory",
    )


# ------------------------------------------------------------------------------------------------
# the one that is kept

_lock = threading.Lock()
_kept: _Process | None = None


def _ask(path: Path, size: int) -> Graph | CbinError:
    """Read with the process that is kept, which is started or replaced where it must be."""
    global _kept
    with _lock:
        for fresh in (False, True):
            if _kept is None:
                _kept, fresh = _Process(), True
            process, done = _kept, False
            try:
                result = process.read(path, size)
                done = process.forks or isinstance(result, Graph)
                return result
            except _Ended:
                if fresh:
                    raise _no_process("it ended at once") from None
            finally:
                if not done:
                    process.close()
                    _kept = None
    raise AssertionError("unreachable")


def _ask_once(path: Path, size: int) -> Graph | CbinError:
    process = _Process(("tensorflow",), fork=False)
    try:
        return process.read(path, size)
    finally:
        process.close()


def _after_fork() -> None:
    global _lock, _kept
    process, _kept, _lock = _kept, None, threading.Lock()
    if process is not None:
        process.forget()


atexit.register(close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


# ------------------------------------------------------------------------------------------------
# replies


class _Plain(pickle.Unpickler):
    """Builds graphs, errors and arrays, and nothing else that a pickle may name."""

    def find_class(self, module: str, name: str) -> Any:
        """A record of the readers', an error, or what NumPy makes arrays of."""
        package, _, rest = module.partition(".")
        if (module, name) in _VALUES or (package == "numpy" and (rest.rpartition(".")[2], name) in _ARRAYS):
            return super().find_class(module, name)
        if package == "cbin_nn" and module in sys.modules:
            found = super().find_class(module, name)
            if isinstance(found, type) and (is_dataclass(found) or issubclass(found, CbinError)):
                return found
        raise pickle.UnpicklingError(f"a reply holds {module}.{name}")


_VALUES = {
    ("fractions", "Fraction"),
    *(("builtins", name) for name in ("complex", "frozenset", "range", "set", "slice")),
}
#: (module below numpy, name).
_ARRAYS = {
    ("", "dtype"),
    ("", "ndarray"),
    ("multiarray", "_reconstruct"),
    ("multiarray", "scalar"),
    ("numeric", "_frombuffer"),
}
