"""Files appear whole, and nobody else's is replaced."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cache_dit.errors import ConfigError
from cache_dit.files import write_whole


def test_a_file_is_made_with_its_folder_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.csv"
    write_whole(path, "name,psnr\n1.png,3\n", mark="name,psnr")
    write_whole(path, b"name,psnr\n", mark="name,psnr")
    assert path.read_text() == "name,psnr\n"
    assert [child.name for child in path.parent.iterdir()] == ["a.csv"]


def test_a_foreign_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    with pytest.raises(ConfigError, match=r"notes\.txt exists"):
        write_whole(path, "name,psnr\n", mark="name,psnr")
    assert path.read_text() == "mine"
    write_whole(path, "yours")
    assert path.read_text() == "yours"


def test_the_old_file_survives_a_write_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_whole(path, "{}")

    def full(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        write_whole(path, "[]")
    assert path.read_text() == "{}"
    assert [child.name for child in tmp_path.iterdir()] == ["a.json"]


def test_threads_that_write_one_file_leave_one_of_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, swap, both = tmp_path / "a.txt", os.replace, threading.Barrier(2)

    def together(part: Path, whole: Path) -> None:
        both.wait(30)
        swap(part, whole)

    monkeypatch.setattr(os, "replace", together)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda content: write_whole(path, content), ("mine", "theirs")))
    assert path.read_text() in ("mine", "theirs")
    assert [child.name for child in tmp_path.iterdir()] == ["a.txt"]


def test_permissions_follow_the_umask_and_links_stay(tmp_path: Path) -> None:
    real, link = tmp_path / "real.txt", tmp_path / "link.txt"
    real.write_text("old")
    link.symlink_to(real)
    write_whole(link, "new")
    assert link.is_symlink()
    assert real.read_text() == "new"
    plain = tmp_path / "plain.txt"
    plain.write_text("")
    assert real.stat().st_mode == plain.stat().st_mode
