"""Progress: fractions that never pass 1, speeds and what is left, not too often."""

import pytest

from app.domain.jobs import Progress
from workers.pipelines.progress import ProgressMeter


def test_a_stage_is_reported_at_once_and_units_now_and_then() -> None:
    reports: list[Progress] = []
    meter = ProgressMeter(reports.append, total=10)
    meter.enter("reading")
    for _ in range(10):
        meter.advance(1)
    assert [(report.stage, report.done) for report in reports] == [("reading", 0)]
    meter.enter("done")
    assert (reports[-1].done, reports[-1].fraction) == (10, 1.0)
    assert reports[-1].bytes_per_second is not None
    assert reports[-1].eta_seconds == 0.0


def test_more_than_planned_does_not_exceed_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.pipelines.progress.INTERVAL_SECONDS", 0.0)
    reports: list[Progress] = []
    meter = ProgressMeter(reports.append, total=4, unit="steps")
    meter.advance(6)
    assert (reports[-1].fraction, reports[-1].done, reports[-1].total) == (1.0, 6, 6)
    assert reports[-1].bytes_per_second is None


def test_a_share_counts_as_far_as_its_work_is_and_never_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.pipelines.progress.INTERVAL_SECONDS", 0.0)
    reports: list[Progress] = []
    share = ProgressMeter(reports.append, total=20).share(10)
    for fraction in (0.25, 0.1, 0.5, 0.55, 1.0, 1.0):
        share.tick(fraction)
    assert [report.done for report in reports] == [2, 5, 10]


def test_nothing_to_do_has_no_fraction() -> None:
    reports: list[Progress] = []
    ProgressMeter(reports.append, total=0).enter("reading")
    assert (reports[0].fraction, reports[0].eta_seconds) == (0.0, None)


def test_the_speed_of_other_work_is_measured_from_its_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.pipelines.progress.INTERVAL_SECONDS", 0.0)
    clock = iter([0.0, 0.0, 1.0, 1.0, 11.0, 11.0, 11.0, 11.0])
    monkeypatch.setattr("workers.pipelines.progress.time.monotonic", lambda: next(clock))
    reports: list[Progress] = []
    meter = ProgressMeter(reports.append, total=100)
    meter.advance(100)  # read in a moment
    meter.turn_to("merging", left=40)
    meter.advance(10)  # in ten seconds
    assert [(report.stage, report.done, report.total) for report in reports[1:]] == [
        ("merging", 100, 140), ("merging", 110, 140),
    ]  # fmt: skip
    assert reports[1].eta_seconds is None
    assert reports[2].eta_seconds == 30.0
