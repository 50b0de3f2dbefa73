"""Convert mutants of model files: each converts, or is refused by an error of ours, in bounded time and
memory.

    python scripts/mutate_containers.py [--count 10000] [--first 0] [--kinds h5,keras,pt2,onnx] [--jobs 1]

A finding is a mutant on which `cbin_nn.convert` raised anything else, printed or warned, took more than 20 s
or 2 GB, or gave a model that does not load. Findings are kept in build/mutants/, each with what happened.
Mend the fault and move the file to tests/fixtures/damaged/, where `make test` replays it. The exit status is
1 then.

The mutants of a kind are numbered from 0 and are the same on every machine, with the same fixtures: `--first`
and `--count` name a range.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "python")]

#: Seconds and bytes that one conversion may take, reading and lowering together.
SECONDS = 20
MEMORY = 2**31
#: Seconds without a word after which a worker is taken to hang.
SILENCE = 60


def outcome(path: Path) -> dict[str, Any]:
    """What converting a file comes to: {"outcome": ..., "finding": text or None}."""
    import cbin_nn
    from cbin_nn.errors import CbinError

    begun = time.monotonic()
    finding = None
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            model = cbin_nn.convert(path)
            result = "converted"
            cbin_nn.Model.from_bytes(model.to_bytes())
        except CbinError as error:
            result = error.slug
            if "reading it took more than" in error.message:
                result = "took too long to read"
            elif "takes more memory" in error.message:
                result = "took too much memory to read"
            elif "the library that reads this format ended" in error.message:
                result = "crashed its library"
            if len(str(error).splitlines()) > 25 or str(path) not in str(error).split("\n")[0]:
                finding = f"an error of too many lines, or without the file's name: {error}"
        except BaseException as error:
            result, finding = type(error).__name__, traceback.format_exc()
            if isinstance(error, KeyboardInterrupt):
                raise
    seconds = time.monotonic() - begun
    if warned and finding is None:
        finding = f"a warning: {warned[0].message} ({warned[0].filename}:{warned[0].lineno})"
    if seconds > SECONDS and finding is None:
        finding = f"it took {seconds:.1f} s"
    return {"outcome": result, "seconds": seconds, "finding": finding}


def work(kind: str, first: int, last: int) -> None:
    """Convert the mutants [first, last) of a kind; a line of JSON each on standard output."""
    import faulthandler
    import resource

    import container_mutants
    from cbin_nn.converters import bounded

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"mutant.{kind}"
        for seed in range(first, last):
            made = container_mutants.mutant(kind, seed)
            path.write_bytes(made.content)
            faulthandler.dump_traceback_later(SECONDS + 15)
            result = outcome(path)
            faulthandler.cancel_dump_traceback_later()
            print(json.dumps({"seed": seed, "how": made.how, "source": made.source, **result}), flush=True)
    bounded.close()
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(json.dumps({"converter": peaks[0], "reader": peaks[1]}), flush=True)


class Tally:
    """What a kind's mutants came to."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.ways: dict[str, collections.Counter[bool]] = collections.defaultdict(collections.Counter)
        self.findings: list[int] = []
        self.slowest = (0.0, -1)
        self.peaks = {"converter": 0, "reader": 0}
        self.begun = time.monotonic()

    def add(self, result: dict[str, Any]) -> None:
        """Count one line of a worker."""
        if "outcome" not in result:
            for who in self.peaks:
                self.peaks[who] = max(self.peaks[who], result[who])
            return
        self.outcomes[result["outcome"]] += 1
        self.ways[result["how"].split(" (")[0]][result["outcome"] == "converted"] += 1
        self.slowest = max(self.slowest, (result["seconds"], result["seed"]))
        if result["finding"]:
            self._keep(result)

    def _keep(self, result: dict[str, Any]) -> None:
        import container_mutants

        seed = result["seed"]
        self.findings.append(seed)
        folder = ROOT / "build" / "mutants"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.kind}-{seed}.{self.kind}").write_bytes(
            container_mutants.mutant(self.kind, seed).content
        )
        (folder / f"{self.kind}-{seed}.txt").write_text(json.dumps(result, indent=1).replace("\\n", "\n"))
        last = result["finding"].strip().splitlines()[-1]
        print(
            f"  finding: {self.kind} {seed} ({result['how']} of {result['source']}): {last[:300]}", flush=True
        )

    def __str__(self) -> str:
        count = sum(self.outcomes.values())
        lines = [f"{self.kind}: {count} mutants in {time.monotonic() - self.begun:.0f} s"]
        lines += [f"  {number:6} {what}" for what, number in self.outcomes.most_common()]
        ways = (f"{way} {sum(n.values())} ({n[True]})" for way, n in sorted(self.ways.items()))
        lines.append(f"  by way (converted): {', '.join(ways)}")
        lines.append(f"  slowest: {self.slowest[0]:.1f} s (mutant {self.slowest[1]})")
        sizes = ", ".join(f"{who} {peak / 1024:.0f} MiB" for who, peak in self.peaks.items())
        lines.append(f"  largest memory: {sizes}")
        lines.append(f"  findings: {len(self.findings)} {self.findings[:20] or ''}")
        return "\n".join(lines)


def survey(kind: str, first: int, last: int, tally: Tally) -> None:
    """Run workers over [first, last), a new one after each that died or hung."""
    at = first
    while at < last:
        command = [sys.executable, __file__, "--worker", kind, str(at), str(last)]
        with tempfile.TemporaryFile() as errors:
            worker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
            lines: queue.Queue[str] = queue.Queue()
            assert worker.stdout is not None
            reader = threading.Thread(target=_forward, args=(worker.stdout, lines), daemon=True)
            reader.start()
            whole = False
            try:
                while line := lines.get(timeout=SILENCE):
                    result = json.loads(line)
                    tally.add(result)
                    whole = "outcome" not in result
                    at = result.get("seed", last - 1) + 1
                reason = "it died"
            except queue.Empty:
                reason = "it hung"
            finally:
                worker.kill()
                worker.wait()
            errors.seek(0)
            said = errors.read().decode(errors="replace")[-6000:]
        if whole and not said:
            return
        if whole:
            at = last - 1
        import container_mutants

        made = container_mutants.mutant(kind, at)
        found = f"{said}\n{'it printed' if whole else reason} (status {worker.returncode})"
        tally.add(
            {
                "seed": at,
                "how": made.how,
                "source": made.source,
                "outcome": reason,
                "seconds": 0.0,
                "finding": found,
            }
        )
        at += 1


def _forward(stream: Any, lines: queue.Queue[str]) -> None:
    for line in stream:
        lines.put(line)
    lines.put("")


def main() -> int:
    """Mutants of each kind, by worker processes."""
    if sys.argv[1:2] == ["--worker"]:
        work(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
        return 0
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=10_000, help="mutants of each kind")
    parser.add_argument("--first", type=int, default=0, help="number of the first one")
    parser.add_argument("--kinds", default="h5,keras,pt2,onnx")
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    os.environ["PYTHONHASHSEED"] = "0"
    findings = 0
    for kind in options.kinds.split(","):
        tally = Tally(kind)
        last = options.first + options.count
        share = -(-options.count // options.jobs)
        threads = [
            threading.Thread(target=survey, args=(kind, at, min(at + share, last), tally))
            for at in range(options.first, last, share)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(tally, flush=True)
        findings += len(tally.findings)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
