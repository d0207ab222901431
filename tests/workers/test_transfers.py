"""Bytes on their way to and from an attempt: stopped in time, counted, and kept from the sweep."""

import os
import time
from pathlib import Path

import pytest

from app.domain.jobs import Progress
from app.storage.folders import KEEP_SECONDS, Views
from workers import transfers
from workers.pulse import Pulse, Stopped, StopReason
from workers.transfers import Transfers


class Notes(Pulse):
    """A pulse that does not beat: what it is told can be looked at."""

    def __init__(self) -> None:
        self.reason = None
        self.noted: list[Progress] = []

    def note(self, progress: Progress) -> None:
        self.noted.append(progress)


@pytest.fixture
def pulse(monkeypatch: pytest.MonkeyPatch) -> Notes:
    monkeypatch.setattr(transfers, "NOTE_SECONDS", 0.0)
    return Notes()


def test_bytes_are_shown_with_their_speed_and_what_is_left(pulse: Notes) -> None:
    moving = Transfers(pulse)
    moving.enter("preparing", 0.0, 0.5)
    moving.expect(1000)
    time.sleep(0.1)
    moving.moved(250)
    shown = pulse.noted[-1]
    assert (shown.stage, shown.done, shown.total, shown.unit) == ("preparing", 250, 1000, "bytes")
    assert shown.fraction == 0.125
    assert shown.bytes_per_second is not None
    assert 0 < shown.bytes_per_second <= 2500
    assert shown.eta_seconds == pytest.approx(750 / shown.bytes_per_second)


def test_the_fraction_never_falls_when_another_input_adds_to_the_total(pulse: Notes) -> None:
    moving = Transfers(pulse)
    moving.enter("preparing", 0.0, 0.5)
    for _ in range(3):
        moving.expect(100)
        moving.moved(60)
        moving.moved(40)
    fractions = [progress.fraction for progress in pulse.noted]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 0.5


def test_the_work_begins_where_its_inputs_ended(pulse: Notes) -> None:
    moving = Transfers(pulse)
    moving.enter("preparing", 0.0, 0.5)
    assert moving.after(Progress(fraction=0.3)).fraction == 0.3  # nothing had to be moved
    moving.expect(100)
    moving.moved(100)
    assert [moving.after(Progress(fraction=fraction)).fraction for fraction in (0.0, 0.5, 1.0)] == [0.5, 0.75, 1.0]


def test_bytes_that_nobody_announced_are_counted_all_the_same(pulse: Notes) -> None:
    moving = Transfers(pulse)
    moving.enter("publishing", 1.0, 1.0)
    moving.moved(7)
    assert (pulse.noted[-1].done, pulse.noted[-1].total, pulse.noted[-1].fraction) == (7, 7, 1.0)


@pytest.mark.parametrize("reason", StopReason)
def test_whatever_stops_the_attempt_stops_the_bytes(pulse: Notes, reason: StopReason) -> None:
    moving = Transfers(pulse)
    moving.moved(1)
    pulse.reason = reason
    with pytest.raises(Stopped) as stopped:
        moving.moved()
    assert stopped.value.reason is reason


def test_a_folder_in_use_outlives_the_sweep(pulse: Notes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfers, "TOUCH_SECONDS", 0.0)
    views = Views(tmp_path / "views")
    moving = Transfers(pulse)
    used, unused = views.show([], _nowhere, watch=moving), views.root / "unused"
    unused.mkdir()
    long_ago = time.time() - KEEP_SECONDS - 60
    for folder in (used, unused):
        os.utime(folder, (long_ago, long_ago))
    moving.moved()
    assert views.sweep(unused_seconds=KEEP_SECONDS) == 1
    assert used.exists()
    assert not unused.exists()


def test_a_folder_that_is_gone_disturbs_nobody(pulse: Notes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfers, "TOUCH_SECONDS", 0.0)
    moving = Transfers(pulse)
    moving.uses(tmp_path / "gone")
    moving.moved()


def _nowhere(sha256: str) -> Path:
    raise AssertionError(sha256)
