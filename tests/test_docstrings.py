"""Every public name says what it takes, what it returns and how it fails.

ruff (D1) already sees that every public name has a docstring at all; here its content is looked at: each
argument of a function with several is named, arrays have a shape and a dtype, and what raises says so.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import cbin_nn
import pytest
from conftest import ROOT

PACKAGE = ROOT / "python" / "cbin_nn"


def source(name: str) -> Path:
    """The file of a dotted name in the package: of a module, a package, or a class in one."""
    path = PACKAGE.joinpath(*name.split("."))
    found = (path.with_suffix(".py"), path / "__init__.py", path.parent.with_suffix(".py"))
    return next(file for file in found if file.exists())


#: The modules that the reference documents are the public ones.
MODULES = sorted(
    {
        source(match)
        for page in (ROOT / "docs" / "reference").glob("*.md")
        for match in re.findall(r"^::: cbin_nn\.([\w.]+)", page.read_text(), flags=re.MULTILINE)
    }
)
#: Annotations of an argument that is an array.
ARRAY = re.compile(r"NDArray|ArrayLike|\bArray\b|Ints|Bools|Float32|Tensor")
#: What names a shape ("[N, H, W, C]", "(C,)", "one a channel") and an element type.
SHAPE = re.compile(r"[\[(][A-Za-z0-9_./', *+-]+[\])]|scalar|one (?:number )?an? |shape|contiguous")
DTYPE = re.compile(
    r"u?int\d+|u8|i8|i16|i32|float\d*|bits|packed|integers?|bool|words|-1 and \+1|numbers?|dtype"
)

Function = ast.FunctionDef | ast.AsyncFunctionDef


def public_functions(tree: ast.Module) -> Iterator[tuple[str, Function]]:
    """Exported functions, and public methods of exported classes, with their qualified names."""
    exported = {
        name
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        for name in ast.literal_eval(node.value)
    }

    def overload(node: Function) -> bool:
        """A signature for type checkers alone; the function itself follows."""
        return any(ast.unparse(decorator) == "overload" for decorator in node.decorator_list)

    for node in tree.body:
        if isinstance(node, Function) and node.name in exported and not overload(node):
            yield node.name, node
        if isinstance(node, ast.ClassDef) and node.name in exported:
            for method in node.body:
                if isinstance(method, Function) and not method.name.startswith("_") and not overload(method):
                    yield f"{node.name}.{method.name}", method


def faults(function: Function) -> Iterator[str]:
    """What the docstring of one function leaves out."""
    text = ast.get_docstring(function) or ""
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    arguments = [a for a in arguments if a.arg not in ("self", "cls")]
    if len(arguments) > 1 and "As `" not in text and "See `" not in text:
        for argument in arguments:
            if not re.search(rf"^ *{argument.arg}(?:, \w+)*:|`{argument.arg}`", text, flags=re.MULTILINE):
                yield f"argument {argument.arg!r} is not described"
    arrays = [a for a in arguments if a.annotation and ARRAY.search(ast.unparse(a.annotation))]
    if arrays and not (SHAPE.search(text) and DTYPE.search(text)):
        yield f"array {arrays[0].arg!r}: shape or dtype is missing"
    raised = {
        ast.unparse(node.exc.func).rsplit(".")[-1]
        for node in ast.walk(function)
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)
    }
    raised = {name for name in raised if name.endswith(("Error", "Argument", "Extra"))}
    for name in sorted(raised - {"AssertionError", "NotImplementedError"}):
        if not re.search(rf"\b{name}\b|Raises|Errors|refus", text):
            yield f"{name} is not named under Raises"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_every_public_name_says_what_it_takes(path: Path) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{function.lineno} {name}: {fault}"
        for name, function in public_functions(ast.parse(path.read_text()))
        for fault in faults(function)
    ]
    assert not found, "\n".join(found)


def test_the_reference_documents_every_public_module() -> None:
    exported = {name for name in cbin_nn.__all__ if inspect.ismodule(getattr(cbin_nn, name))}
    assert exported <= {path.stem for path in MODULES}


def test_the_check_sees_what_is_missing() -> None:
    code = '''
__all__ = ["f"]
def f(images: npt.ArrayLike, count: int) -> None:
    """Does something."""
    raise ValueError("no")
'''
    ((_, function),) = public_functions(ast.parse(code))
    assert len(list(faults(function))) == 4
