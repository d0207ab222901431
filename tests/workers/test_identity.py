"""Names of workers: stable over restarts, never shared by two that live."""

import os
import socket
from pathlib import Path

import pytest

from workers.identity import NameTaken, find_machine, take_name


def test_a_name_is_taken_again_after_its_holder_has_gone(tmp_path: Path) -> None:
    with take_name(tmp_path) as first:
        pass
    with take_name(tmp_path) as second:
        assert second == first


def test_two_that_live_have_two_names(tmp_path: Path) -> None:
    with take_name(tmp_path) as first, take_name(tmp_path) as second:
        assert (first[-2:], second[-2:]) == ("-1", "-2")


def test_two_installations_on_a_host_have_different_names(tmp_path: Path) -> None:
    with take_name(tmp_path / "a") as first, take_name(tmp_path / "b") as second:
        assert first != second


def test_a_wanted_name_is_given_once(tmp_path: Path) -> None:
    with take_name(tmp_path, "left") as name:
        assert name.endswith("-left")
        with pytest.raises(NameTaken, match="'left' runs already"), take_name(tmp_path, "left"):
            pass


def test_workers_that_may_use_all_cores_share_a_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    boot_id, nowhere = tmp_path / "boot_id", tmp_path / "none"
    boot_id.write_text("1f2e-3d\n")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert find_machine("one", boot_id=boot_id, cpu_max=tmp_path / "cpu.max") == ("1f2e-3d", 8)
    assert find_machine("two", boot_id=boot_id, cpu_max=nowhere) == ("1f2e-3d", 8)
    assert find_machine("two", boot_id=nowhere, cpu_max=nowhere) == (socket.gethostname(), 8)


@pytest.mark.parametrize(
    ("affinity", "limit", "cores"), [(2, "max 100000", 2), (8, "350000 100000", 3), (8, "50000 100000", 1)]
)
def test_a_worker_that_is_held_to_some_cores_is_a_machine_of_its_own(
    affinity: int, limit: str, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(affinity)))
    (tmp_path / "cpu.max").write_text(f"{limit}\n")
    assert find_machine("one", cpu_max=tmp_path / "cpu.max") == ("one", cores)
