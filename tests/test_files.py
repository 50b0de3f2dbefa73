"""`cbin_nn.files`: whole files or none, and never over what nobody meant."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cbin_nn import files
from cbin_nn.errors import OutputError
from cbin_nn.files import write_atomically


def test_a_new_file_gets_what_the_umask_allows(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        write_atomically(tmp_path / "new", b"x")
    finally:
        os.umask(mask)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o640


def test_an_overwritten_file_keeps_its_mode_and_its_links(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    target.chmod(0o600)
    link.symlink_to(target)
    with pytest.raises(OutputError, match="exists"):
        write_atomically(link, b"new")
    write_atomically(link, b"new", overwrite=True)
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert target.stat().st_mode & 0o777 == 0o600


def test_without_hard_links_nothing_is_replaced_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(source: object, target: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(files.os, "link", no_links)
    write_atomically(tmp_path / "a", b"1")
    assert (tmp_path / "a").read_bytes() == b"1"
    with pytest.raises(OutputError, match="exists"):
        write_atomically(tmp_path / "a", b"2")
    assert (tmp_path / "a").read_bytes() == b"1"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("path", ["", "/dev/null", "a\0b", "x" * 300, "."])
@pytest.mark.parametrize("overwrite", [False, True])
def test_paths_that_are_no_files(
    path: str, overwrite: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError):
        write_atomically(path, b"x", overwrite=overwrite)
    assert not list(tmp_path.iterdir())
