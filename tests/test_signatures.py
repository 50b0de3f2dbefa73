"""Signatures: what is in no list is found, and neutral values are compared strictly."""

from __future__ import annotations

from typing import Any

import pytest
from cbin_nn.converters.signatures import Signature

SIGNATURE = Signature.of(
    ["kernel"], ["name"], groups=(1,), mode=("zeros", None), axes=((1, 2),), renorm=(False,), slope=(0.0,)
)


@pytest.mark.parametrize(
    ("given", "unread"),
    [
        ({"kernel": 5, "name": "a", "groups": 1}, []),
        ({"groups": 2}, [("groups", 2)]),
        ({"groups": True}, [("groups", True)]),
        ({"groups": 1.0}, []),
        ({"groups": "1"}, [("groups", "1")]),
        ({"mode": None}, []),
        ({"mode": "reflect"}, [("mode", "reflect")]),
        ({"axes": [1, 2]}, []),
        ({"axes": [1]}, [("axes", [1])]),
        ({"renorm": 0}, [("renorm", 0)]),
        ({"slope": 0}, []),
        ({"unheard_of": None}, [("unheard_of", None)]),
    ],
)
def test_arguments_are_read_neutral_inert_or_named(
    given: dict[str, Any], unread: list[tuple[str, Any]]
) -> None:
    assert SIGNATURE.unread(given) == unread


def test_names_are_all_that_is_known() -> None:
    assert SIGNATURE.names == {"kernel", "name", "groups", "mode", "axes", "renorm", "slope"}


def test_a_signature_with_more_that_is_read() -> None:
    more = SIGNATURE.and_reads("axis", "kernel")
    assert more.names == SIGNATURE.names | {"axis"}
    assert more.unread({"axis": 1, "groups": 2}) == [("groups", 2)] and SIGNATURE.unread({"axis": 1})
