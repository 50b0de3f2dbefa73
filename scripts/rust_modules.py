"""Which module of a crate uses which: read from its `use` declarations and paths.

A name that a module re-exports counts as one of the module that defines it; a `mod` declaration is no use.
Unit tests (behind `#[cfg(test)]`), comments and strings are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

#: A module's path in its crate; the root is ().
Module = tuple[str, ...]

_COMMENT = re.compile(r'//[^\n]*|/\*.*?\*/|r?"(?:\\.|[^"\\])*"', re.DOTALL)
_USE = re.compile(r"(?:pub(?:\([a-z]+\))?\s+)?use\s+([^;]+);")
_PATH = re.compile(r"\b(?:crate|super|self)(?:::\w+)+")


class Crate:
    """The modules of a crate's `src` folder."""

    def __init__(self, source: Path):
        self.files: dict[Module, Path] = {}
        for path in sorted(source.rglob("*.rs")):
            parts = path.relative_to(source).with_suffix("").parts
            self.files[() if parts == ("lib",) else parts[:-1] if parts[-1] == "mod" else parts] = path
        self.texts = {module: _code(path.read_text()) for module, path in self.files.items()}
        self.names = {module: dict(self._imports(module)) for module in self.files}

    def uses(self) -> dict[Module, set[Module]]:
        """For each module the others whose items it uses."""
        found: dict[Module, set[Module]] = {module: set() for module in self.files}
        for module, text in self.texts.items():
            paths = [path for path, _ in _declared(text)]
            paths += [tuple(path.split("::")) for path in _PATH.findall(_USE.sub("", text))]
            for path in paths:
                found[module] |= set(self._resolve(module, path)) - {module}
        return found

    def circles(self) -> list[list[Module]]:
        """The sets of modules that use each other, directly or by others."""
        uses = self.uses()
        reached = {module: _reachable(module, uses) for module in uses}
        circles = {
            tuple(sorted(other for other in reached[module] if module in reached[other]))
            for module in uses
            if module in reached[module]
        }
        return [list(circle) for circle in sorted(circles)]

    def _imports(self, module: Module) -> Iterator[tuple[str, list[tuple[str, ...]]]]:
        """The names that a module's `use` declarations bring, each with all paths that it may stand for."""
        names: dict[str, list[tuple[str, ...]]] = {}
        for path, name in _declared(self.texts[module]):
            names.setdefault(name, []).append(path)
        yield from names.items()

    def _resolve(self, module: Module, path: tuple[str, ...], depth: int = 0) -> Iterator[Module]:
        """The modules that define what `path` names in `module`; none for another crate's."""
        at, rest = module, list(path)
        if rest[0] == "crate":
            at, rest = (), rest[1:]
        elif rest[0] in ("super", "self"):
            while rest and rest[0] in ("super", "self"):
                at, rest = (at[:-1] if rest[0] == "super" else at), rest[1:]
        elif (*at, rest[0]) not in self.files:
            return
        while rest and (*at, rest[0]) in self.files:
            at, rest = (*at, rest[0]), rest[1:]
        if rest and rest[0] in self.names[at] and depth < 8:
            for target in self.names[at][rest[0]]:
                yield from self._resolve(at, (*target, *rest[1:]), depth + 1)
        else:
            yield at


def _reachable(start: Module, uses: dict[Module, set[Module]]) -> set[Module]:
    found: set[Module] = set()
    waiting = list(uses[start])
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            waiting += uses[module]
    return found


def _code(text: str) -> str:
    """A file without comments, strings and unit tests."""
    return _COMMENT.sub("", text).split("#[cfg(test)]")[0]


def _declared(text: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every path of the `use` declarations, and the name that it has in the file."""
    for tree in _USE.findall(text):
        yield from _leaves((), re.sub(r"\s+", " ", tree).strip())


def _leaves(prefix: tuple[str, ...], tree: str) -> Iterator[tuple[tuple[str, ...], str]]:
    head, brace, inner = tree.partition("{")
    if not brace:
        path, _, name = tree.partition(" as ")
        parts = (*prefix, *path.strip().split("::"))
        if parts[-1] == "self" and len(parts) > 1:
            parts = parts[:-1]
        yield parts, name.strip() or parts[-1]
        return
    prefix = (*prefix, *(part for part in head.strip().split("::") if part))
    depth, start = 0, 0
    inner = inner.strip().removesuffix("}") + ","
    for at, letter in enumerate(inner):
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            if inner[start:at].strip():
                yield from _leaves(prefix, inner[start:at].strip())
            start = at + 1
