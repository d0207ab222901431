"""Names of workers: stable over restarts, never shared by two that live."""

from pathlib import Path

import pytest

from workers.identity import NameTaken, take_name


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
