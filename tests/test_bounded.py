"""Foreign files are read in a process of their own: what a library does there, the caller survives.

A module `h5py` of the tests' own stands for a library that loops, crashes, prints or takes memory; the
reading process imports it since it has the caller's path.
"""

from __future__ import annotations

import dataclasses
import io
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cbin_nn
import h5py
import numpy as np
import onnx
import pytest
from cbin_nn.converters import bounded, files, lower_file, read_source, sources
from cbin_nn.converters.graph import Graph
from cbin_nn.errors import ConversionError, MissingExtra

FIXTURES = Path(__file__).resolve().parent / "fixtures"
FRAMEWORKS = FIXTURES / "frameworks"
PYTHON = str(Path(cbin_nn.__file__).resolve().parent.parent)
posix = pytest.mark.skipif(sys.platform == "win32", reason="signals and forks")
linux = pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc, or bounds memory")

Library = Callable[[str], None]


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Library]:
    """Puts a statement in the place of what h5py does with a file."""

    def put(statement: str) -> None:
        (tmp_path / "lib").mkdir(exist_ok=True)
        body = f"import os, sys, time\n\n\ndef File(*args):\n    {statement}\n"
        (tmp_path / "lib" / "h5py.py").write_text(body)
        monkeypatch.syspath_prepend(tmp_path / "lib")
        bounded.close()

    yield put
    bounded.close()


def refused(path: Path, slug: str = "damaged-file") -> str:
    with pytest.raises(ConversionError) as caught:
        cbin_nn.convert(path)
    assert caught.value.slug == slug
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


def kept() -> int:
    """The process that is kept."""
    assert bounded._kept is not None
    return bounded._kept._process.pid


def same(left: Any, right: Any) -> bool:
    if isinstance(left, np.ndarray):
        equal = left.dtype == right.dtype and np.array_equal(left, right)
        return equal and left.flags.writeable == right.flags.writeable
    if dataclasses.is_dataclass(left):
        return type(left) is type(right) and same(vars(left), vars(right))
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


@pytest.mark.parametrize("suffix", ["h5", "keras", "pt2", "onnx"])
def test_the_graph_is_that_of_a_reader_in_this_process(suffix: str) -> None:
    paths = sorted([*FIXTURES.glob(f"*.{suffix}"), *FRAMEWORKS.glob(f"*.{suffix}")])
    for path in paths:
        assert same(read_source(path), sources.read_path(path)), path
    assert len(paths) >= 4


def test_one_process_reads_all_files() -> None:
    cbin_nn.convert(FIXTURES / "tiny.h5")
    first = kept()
    for path in (FIXTURES / "tiny.keras", FIXTURES / "smallcifar.h5", FRAMEWORKS / "torch_2.pt2"):
        cbin_nn.convert(path)
    refused(FIXTURES / "tiny_images.npy", "unsupported-file")
    assert kept() == first


def test_a_circle_in_a_file_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """HDF5's library follows a circle in this file for ever."""
    cbin_nn.convert(FIXTURES / "tiny.h5")
    monkeypatch.setattr(bounded, "seconds_of", lambda size: 3.0)
    begun = time.monotonic()
    assert "more than 3 s" in refused(FIXTURES / "damaged" / "endless.h5")
    assert time.monotonic() - begun < 10
    assert cbin_nn.convert(FIXTURES / "tiny.h5").classes == 10


@posix
def test_a_crash_is_an_error(library: Library) -> None:
    library("os.kill(os.getpid(), 11)")
    assert "SIGSEGV" in refused(FIXTURES / "tiny.h5")
    library("os._exit(0)")
    assert "status 1" in refused(FIXTURES / "tiny.h5")
    library("os.close(max(map(int, os.listdir('/proc/self/fd')))); sys.exit(3)")
    refused(FIXTURES / "tiny.h5")
    assert cbin_nn.convert(FRAMEWORKS / "torch_2.pt2").classes == 7


@linux
def test_memory_is_bounded(library: Library) -> None:
    library("return bytearray(3 << 30)")
    assert "takes more memory" in refused(FIXTURES / "tiny.h5")
    assert files.memory_of(100_000) < 1.1 * 2**30
    assert files.memory_of(500 * 2**20) > 8 * 2**30
    assert files.seconds_of(100_000) < 16
    assert files.seconds_of(500 * 2**20) > 120


def test_what_a_library_prints_goes_nowhere(library: Library, capfd: pytest.CaptureFixture[str]) -> None:
    library(
        "os.write(1, b'x' * 100); os.write(2, b'HDF5-DIAG'); print(sys.stdin.read()); raise OSError('no')"
    )
    assert "OSError: no" in refused(FIXTURES / "tiny.h5")
    assert capfd.readouterr() == ("", "")


def test_our_errors_come_as_they_are(library: Library) -> None:
    library("raise ImportError")
    (Path(sys.path[0]) / "h5py.py").write_text("raise ImportError('none here')")
    with pytest.raises(MissingExtra, match=r"cbin-nn\[keras\]") as caught:
        cbin_nn.convert(FIXTURES / "tiny.h5")
    assert caught.value.slug == "missing-extra"


def test_no_plugin_is_loaded() -> None:
    environment = bounded._environment()
    assert environment["HDF5_PLUGIN_PATH"] == "" and environment["HDF5_PLUGIN_PRELOAD"] == "::"


def test_replies_are_data() -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (os.system, ("true",))

    for content in (pickle.dumps(Evil()), pickle.dumps(Path("x")), pickle.dumps(lower_file)):
        with pytest.raises(pickle.UnpicklingError, match="a reply holds"):
            bounded._Plain(io.BytesIO(content)).load()


def test_threads_take_turns() -> None:
    results: list[Graph] = []

    def read() -> None:
        results.extend(read_source(FIXTURES / name) for name in ("tiny.h5", "tiny.keras"))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8 and all(graph.name == "tiny" for graph in results)


# -- starting and ending


def run(tmp_path: Path, text: str, *options: str) -> subprocess.CompletedProcess[str]:
    """A script of the user's, without the guard that multiprocessing needs."""
    script = tmp_path / "script.py"
    script.write_text(text)
    environment = {**os.environ, "PYTHONPATH": PYTHON}
    return subprocess.run(
        [sys.executable, *options, str(script), str(FIXTURES / "tiny.h5")],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=tmp_path,
        timeout=120,
    )


def test_a_plain_script(tmp_path: Path) -> None:
    """It runs once, and nothing is left open at its end."""
    done = run(
        tmp_path,
        "import sys, cbin_nn\nprint('begun')\nprint(cbin_nn.convert(sys.argv[1]).name)\n"
        "print(cbin_nn.convert(sys.argv[1]).name)\n",
        "-W",
        "error",
    )
    assert (done.stdout.split(), done.stderr) == (["begun", "tiny", "tiny"], "")


def test_relative_paths_after_a_change_of_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cbin_nn.convert(FIXTURES / "tiny.h5")
    monkeypatch.chdir(FIXTURES)
    assert cbin_nn.convert("tiny.h5").name == "tiny"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConversionError, match=r"^tiny\.h5: no such file"):
        cbin_nn.convert("tiny.h5")


@linux
def test_the_process_ends_with_its_parent(tmp_path: Path) -> None:
    text = (
        "import os, sys, cbin_nn\nfrom cbin_nn.converters import bounded\ncbin_nn.convert(sys.argv[1])\n"
        "print(bounded._kept._process.pid, flush=True)\nos.kill(os.getpid(), 9)\n"
    )
    process = Path(f"/proc/{run(tmp_path, text).stdout.strip()}")
    for _ in range(100):
        if not process.exists() or "Z" in (process / "stat").read_text().split()[2]:
            return
        time.sleep(0.1)
    pytest.fail("it lives on")


@posix
def test_an_interrupt_ends_the_reading(library: Library) -> None:
    library("time.sleep(60)")
    # A test run that was started in the background ignores the signal from birth.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(2, lambda: signal.raise_signal(signal.SIGINT))
    timer.start()
    begun = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            cbin_nn.convert(FIXTURES / "tiny.h5")
    finally:
        timer.join()
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - begun < 30
    assert bounded._kept is None
    assert cbin_nn.convert(FRAMEWORKS / "torch_2.pt2").classes == 7


@posix
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_after_a_fork_each_side_has_its_own() -> None:
    cbin_nn.convert(FIXTURES / "tiny.h5")
    before = kept()
    child = os.fork()
    if not child:
        try:
            good = cbin_nn.convert(FIXTURES / "tiny.h5").classes == 10 and kept() != before
            bounded.close()
            os._exit(0 if good else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    cbin_nn.convert(FIXTURES / "tiny.h5")
    assert kept() == before


def test_a_process_that_is_gone_is_replaced() -> None:
    cbin_nn.convert(FIXTURES / "tiny.h5")
    assert bounded._kept is not None
    before = kept()
    bounded._kept.kill()
    bounded._kept._process.wait()
    assert cbin_nn.convert(FIXTURES / "tiny.h5").classes == 10
    assert kept() != before


def test_without_forks_a_damaged_file_ends_the_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As on Windows and macOS: what a damaged file leaves behind reaches no other one."""
    bounded.close()
    monkeypatch.delattr(os, "fork", raising=False)
    assert cbin_nn.convert(FIXTURES / "tiny.h5").classes == 10
    first = kept()
    assert cbin_nn.convert(FRAMEWORKS / "torch_2.pt2").classes == 7
    assert kept() == first
    content = bytearray((FIXTURES / "tiny.h5").read_bytes())
    content[1000:2000] = bytes(1000)
    (tmp_path / "damaged.h5").write_bytes(content)
    refused(tmp_path / "damaged.h5")
    assert bounded._kept is None
    monkeypatch.setattr(bounded, "seconds_of", lambda size: 3.0)
    assert "more than 3 s" in refused(FIXTURES / "damaged" / "endless.h5")
    assert cbin_nn.convert(FIXTURES / "tiny.keras").classes == 10
    bounded.close()


@pytest.mark.parametrize("program", ["", "/nowhere/python", "true"])
def test_no_process_can_be_started(program: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An interpreter that is missing, or is another program: one error says what to do, and it works."""
    bounded.close()
    if program == "true":
        program = str(tmp_path / "true")
        Path(program).write_text("#!/bin/sh\necho 'no Python here' >&2\n")
        Path(program).chmod(0o755)
    monkeypatch.setattr(sys, "executable", program)
    message = refused(FIXTURES / "tiny.h5", "no-reading-process")
    assert "CBIN_NN_READER=in-process" in message
    assert not program.endswith("true") or "no Python here" in message
    monkeypatch.setenv("CBIN_NN_READER", "in-process")
    assert cbin_nn.convert(FIXTURES / "tiny.h5").classes == 10
    monkeypatch.setenv("CBIN_NN_READER", "elsewhere")
    assert "elsewhere" in refused(FIXTURES / "tiny.h5", "bad-argument")


def test_a_frozen_program_does_not_start_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    bounded.close()
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    refused(FIXTURES / "tiny.h5", "no-reading-process")


# -- files


@posix
def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "unsupported-file")
    refused(Path("/dev/zero"), "unsupported-file")


def test_a_second_file_grants_time_and_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights beside an ONNX model count as the model's own size does."""
    model = onnx.load(FRAMEWORKS / "torch_2_dynamo.onnx")
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    granted = []

    def extend(self: Any, seconds: float) -> None:
        granted.append(seconds)

    monkeypatch.setattr(bounded._Deadline, "extend", extend)
    assert cbin_nn.convert(tmp_path / "m.onnx").classes == 7
    assert granted == [files.seconds_of((tmp_path / "m.data").stat().st_size)]


def test_live_models_are_read_here() -> None:
    """What a framework has just written is no foreign file: `read_keras` starts no process."""
    bounded.close()
    sources.read_path(FIXTURES / "tiny.h5")
    assert bounded._kept is None
    assert isinstance(h5py.File, type)
