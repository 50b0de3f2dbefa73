"""Check that the arrows between the crates, and between the modules of a crate, run one way only.

The allowed arrows are those of the drawing in docs/design.md; anything else fails with the file to mend.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

from rust_modules import Crate, Module

#: crate -> the crates of this project that it may use.
CRATES = {
    "cbin-nn-kernels": set(),
    "cbin-nn-model": {"cbin-nn-kernels"},
    "cbin-nn-protocol": set(),
    "cbin-nn-deploy": {"cbin-nn-model", "cbin-nn-protocol"},
    "cbin-nn-capi": {"cbin-nn-model"},
    "cbin-nn-python": {"cbin-nn-kernels", "cbin-nn-model", "cbin-nn-deploy"},
    "cbin-nn-runner": {"cbin-nn-model", "cbin-nn-protocol"},
    "cbin-nn-stm32": {"cbin-nn-runner"},
    "cbin-nn-qemu-mps2-an500": {"cbin-nn-runner"},
    "cbin-nn-cores": {"cbin-nn-model"},
    "cbin-nn-stm32f746g-disco": {"cbin-nn-stm32"},
    "cbin-nn-nucleo-f746zg": {"cbin-nn-stm32"},
    "cbin-nn-nucleo-f446re": {"cbin-nn-stm32"},
    "cbin-nn-fuzz": {"cbin-nn-kernels", "cbin-nn-model"},
}
#: Crates that may have no dependency at all, development aside.
WITHOUT_DEPENDENCIES = {"cbin-nn-kernels"}
#: Folders of the crates whose modules must not use each other in a circle.
WITHOUT_CIRCLES = ("kernels", "model", "protocol", "deploy", "capi", "python")
#: Circles that are still to be opened, by crate: whoever opens one takes it out, and none may come.
CIRCLES = {
    "deploy": [["probe", "qemu", "rtt", "session", "transport", "worker"]],
}
#: The floors of rust/kernels, lowest first: a module uses those of its own floor and of those below.
FLOORS = ("error", "bits", "shape", "kernel", "arch", "epilogue", "layouts", "methods", "operators", "host")
#: Importing `cbin_nn` may load these modules at import time, and no other third-party package.
IMPORTED_AT_TOP = {"numpy"}
#: Modules and sub-packages outside the light import: they may import their own library at the top.
OWN_LIBRARY = {"cli.py": {"click"}, "train": {"torch"}}


def crate_errors(manifest: Path) -> list[str]:
    """Forbidden arrows between the crates of one workspace."""
    command = ["cargo", "metadata", "--format-version=1", "--no-deps", "--manifest-path", str(manifest)]
    metadata = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    errors = []
    for package in metadata["packages"]:
        name = package["name"]
        used = {d["name"] for d in package["dependencies"] if d["kind"] != "dev"}
        if name not in CRATES:
            errors.append(f"{name}: a new crate; say in {__file__} what it may use")
            continue
        ours = {u for u in used if u.startswith("cbin-nn")}
        errors += [f"{name} must not depend on {u}" for u in sorted(ours - CRATES[name])]
        if name in WITHOUT_DEPENDENCIES:
            errors += [f"{name} must have no dependencies, but has {u}" for u in sorted(used)]
    return errors


def module_errors(crate: str) -> list[str]:
    """Circles among the modules of a crate, and arrows up between the floors of the kernels."""
    modules = Crate(Path("rust") / crate / "src")
    circles = [["::".join(module) for module in circle] for circle in modules.circles()]
    known = CIRCLES.get(crate, [])
    errors = [f"rust/{crate}: {', '.join(c)} use each other in a circle" for c in circles if c not in known]
    errors += [f"rust/{crate}: no circle of {', '.join(c)} any more" for c in known if c not in circles]
    return errors + (floor_errors(modules) if crate == "kernels" else [])


def floor_errors(modules: Crate) -> list[str]:
    """Arrows of the kernels that run up."""

    def floor(module: Module) -> int:
        return FLOORS.index(module[0]) if module else len(FLOORS)

    absent = [module for module in modules.files if module and module[0] not in FLOORS]
    if absent:
        return [f"{modules.files[module]}: say in {__file__} on which floor it is" for module in absent]
    return [
        f"{modules.files[module]} must not use {'::'.join(other) or 'the crate itself'}, which is above"
        for module, used in modules.uses().items()
        for other in sorted(used)
        if floor(other) > floor(module)
    ]


def import_errors(package: Path) -> list[str]:
    """Third-party imports at the top of a module, where only NumPy may be."""
    errors = []
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).parts
        own = set().union(*(OWN_LIBRARY.get(part, set()) for part in parts))
        allowed = IMPORTED_AT_TOP | own | set(sys.stdlib_module_names)
        tree = ast.parse(path.read_text())
        for node in tree.body:
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            top = {name.split(".")[0] for name in names}
            errors += [
                f"{path}:{node.lineno}: import {n} inside the function that needs it"
                for n in sorted(top - allowed)
            ]
    return errors


if __name__ == "__main__":
    found = crate_errors(Path("Cargo.toml")) + crate_errors(Path("firmware/Cargo.toml"))
    found += crate_errors(Path("fuzz/Cargo.toml"))
    for folder in WITHOUT_CIRCLES:
        found += module_errors(folder)
    found += import_errors(Path("python/cbin_nn"))
    for error in found:
        print(error, file=sys.stderr)
    sys.exit(1 if found else 0)
