"""What a reader knows of the arguments of a layer, an operator or a call: a closed world.

Each reader has a table of signatures, one for each kind of layer or operator. An argument is in one of three
lists, and what is in none of them is refused, since an argument that is passed over may change what the
network computes:

- `reads`: the handler uses the value, or refuses it.
- `neutral`: the reader takes the listed values alone, with which the argument changes nothing.
- `inert`: no value changes what the network computes at inference, such as an initializer's.

The tables are data, so that a test can set every argument of every entry
(`tests/frameworks/test_*_arguments.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Signature"]


@dataclass(frozen=True)
class Signature:
    """The arguments of one kind of layer, operator or call."""

    #: Names whose values the handler uses or refuses.
    reads: frozenset[str] = frozenset()
    #: Name -> the values with which the argument changes nothing.
    neutral: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    #: Names without any effect at inference.
    inert: frozenset[str] = frozenset()

    @staticmethod
    def of(reads: Iterable[str] = (), inert: Iterable[str] = (), **neutral: tuple[Any, ...]) -> Signature:
        """A signature, with the neutral values as keywords."""
        return Signature(frozenset(reads), neutral, frozenset(inert))

    def and_reads(self, *names: str) -> Signature:
        """This signature with more names that the handler reads."""
        return Signature(self.reads | set(names), self.neutral, self.inert)

    @property
    def names(self) -> frozenset[str]:
        """Every argument that is known."""
        return self.reads | self.inert | frozenset(self.neutral)

    def unread(self, given: Mapping[str, Any]) -> list[tuple[str, Any]]:
        """The given arguments that the reader does not honour, with their values; empty where all is well."""
        return [
            (name, value)
            for name, value in given.items()
            if name not in self.reads
            and name not in self.inert
            and not any(_same(value, allowed) for allowed in self.neutral.get(name, ()))
        ]


def _same(value: Any, allowed: Any) -> bool:
    """Equality in which 1 and True differ, and lists and tuples do not."""
    if isinstance(value, (list, tuple)) and isinstance(allowed, (list, tuple)):
        return len(value) == len(allowed) and all(map(_same, value, allowed))
    if isinstance(value, bool) or isinstance(allowed, bool):
        return value is allowed
    return type(value) in (type(allowed), int, float) and bool(value == allowed)
