"""What can't be converted, collected: one error that names everything.

Readers and lowering go on after a refusal as far as they can, so that a person sees all of it at once. Equal
reasons are told once, with the layers that they hold for (`Reshape: layers 'a', 'b' and 12 more: ...`), and
so is equal advice, at the end. The text has at most some twenty lines.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import ConversionError

__all__ = ["Problem", "together"]

#: Groups that are told; further ones are counted.
_MOST_GROUPS = 14
#: Layers of a group that are named.
_MOST_LAYERS = 3


@dataclass(frozen=True)
class Problem:
    """One thing that can't be converted."""

    #: What is wrong, without a subject; alike for all layers where it is the same.
    reason: str
    slug: str = "unsupported-layer"
    #: The source's name of the layer; empty where the whole network is meant.
    layer: str = ""
    #: The source's kind of layer or operator, for instance "Reshape"; may be empty.
    kind: str = ""
    #: What to do; may be empty.
    advice: str = ""

    @staticmethod
    def of(error: ConversionError) -> Problem:
        """The problem that an error tells."""
        return Problem(error.reason, error.slug, error.layer, error.kind, error.advice)

    @property
    def message(self) -> str:
        """The problem alone as one line."""
        return self.error().message

    def error(self) -> ConversionError:
        """This problem alone as an error."""
        return ConversionError(self.slug, self.reason, layer=self.layer, kind=self.kind, advice=self.advice)


def together(problems: Sequence[Problem]) -> ConversionError:
    """One error that tells all of `problems`, of which there is at least one.

    Returns:
        The error: one line for one problem, else a line for each group of equal ones. Its slug is theirs
        where they share it, else "unsupported-layer".
    """
    unique = list(dict.fromkeys(problems))
    if len(unique) == 1:
        return unique[0].error()
    groups: dict[tuple[str, str], list[Problem]] = {}
    for problem in unique:
        groups.setdefault((problem.reason, problem.advice), []).append(problem)
    shown, left = list(groups.values())[:_MOST_GROUPS], list(groups.values())[_MOST_GROUPS:]
    uses = Counter(group[0].advice for group in shown)
    lines = [f"{len(unique)} things can't be converted:"]
    for group in shown:
        advice = group[0].advice
        lines.append(
            f"- {_subject(group)}{group[0].reason}" + (f"; {advice}" if uses[advice] == 1 and advice else "")
        )
    if left:
        kinds = list(dict.fromkeys(problem.kind for group in left for problem in group if problem.kind))
        named = f" ({', '.join(kinds[:8])}{' ...' if len(kinds) > 8 else ''})" if kinds else ""
        lines.append(f"- and {sum(map(len, left))} more{named}")
    lines += [_sentence(advice) for advice, count in uses.items() if advice and count > 1][:4]
    slugs = {problem.slug for problem in unique}
    return ConversionError.of_lines(slugs.pop() if len(slugs) == 1 else "unsupported-layer", lines)


def _subject(group: Sequence[Problem]) -> str:
    """`Reshape: layers 'a', 'b', 'c' and 12 more: `, `layer 'a' (Reshape): `, or nothing."""
    kinds = list(dict.fromkeys(problem.kind for problem in group))
    layers = {problem.layer: problem.kind for problem in group if problem.layer}
    if not layers:
        return f"{', '.join(kinds)}: " if any(kinds) else ""
    told = [
        repr(name) + (f" ({kind})" if kind and (len(kinds) > 1 or len(layers) == 1) else "")
        for name, kind in layers.items()
    ]
    if len(told) == 1:
        return f"layer {told[0]}: "
    if len(told) > _MOST_LAYERS + 1:
        listed = f"{', '.join(told[:_MOST_LAYERS])} and {len(told) - _MOST_LAYERS} more"
    else:
        listed = f"{', '.join(told[:-1])} and {told[-1]}"
    return f"{kinds[0]}: layers {listed}: " if len(kinds) == 1 and kinds[0] else f"layers {listed}: "


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", ")")) else ".")
