"""The laws of every analysis: its files, its data's schema, its bytes, its card."""

import json
import struct
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from app.domain.catalog import AnalysisCard, load_catalog
from app.domain.checkpoints import LocalCheckpoint
from app.domain.jobs import Progress
from app.domain.work import AnalyzeOutcome, AnalyzeWork
from tests.workers.analyses.works import make_models, make_work, run, with_tasks
from workers.catalog import find_analyses
from workers.pipelines.analyze import DATA_FILE, PNG_FILE, SVG_FILE
from workers.runner import WorkOrder, perform

CARDS = load_catalog().analyses
QUICK: dict[str, dict[str, Any]] = {
    "loss_landscape": {"n_steps": 3},
    "disentanglement_error": {"n_steps": 2},
    "incremental_curve": {"values": [0.3, 1.0]},
    "negation": {"coefficients": [0.5, 1.0]},
}
HEADING = {"format_version", "kind", "version", "base_model", "models", "labels", "merged", "parameters", "tasks"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[LocalCheckpoint]:
    return make_models(tmp_path_factory.mktemp("models"), 2)


def work_of(card: AnalysisCard, models: list[LocalCheckpoint], folder: Path) -> AnalyzeWork:
    chosen = models[: 1 + min(2, card.max_models or 2)]
    work = make_work(card.name, chosen, folder)
    if card.tasks == "none":
        return work
    return with_tasks(work, folder, 2, **QUICK.get(card.name, {}))


@pytest.fixture(scope="module", params=CARDS, ids=lambda card: card.name)
def done(
    request: pytest.FixtureRequest, models: list[LocalCheckpoint], tmp_path_factory: pytest.TempPathFactory
) -> tuple[AnalysisCard, AnalyzeWork, AnalyzeOutcome]:
    card: AnalysisCard = request.param
    work = work_of(card, models, tmp_path_factory.mktemp(card.name))
    return card, work, run(work)


Done = tuple[AnalysisCard, AnalyzeWork, AnalyzeOutcome]


def test_it_writes_data_and_a_figure_twice(done: Done) -> None:
    _, work, outcome = done
    assert sorted(file.path for file in outcome.files) == [PNG_FILE, SVG_FILE, DATA_FILE]
    assert all((work.output / file.path).stat().st_size == file.size_bytes for file in outcome.files)
    png = (work.output / PNG_FILE).read_bytes()
    width, height = struct.unpack(">II", png[16:24])
    assert png.startswith(b"\x89PNG")
    assert width >= 900
    assert height >= 700


def test_its_data_is_what_its_card_says(done: Done) -> None:
    card, work, outcome = done
    report = json.loads((work.output / DATA_FILE).read_text(encoding="utf-8"))
    assert report.keys() >= HEADING
    assert (report["kind"], report["version"]) == (card.name, card.version)
    found = {name: value for name, value in report.items() if name not in HEADING}
    jsonschema.Draft202012Validator(card.data).validate(found)
    assert outcome.data.items() <= report.items()


def test_its_figure_has_no_date_no_version_and_no_font(done: Done) -> None:
    _, work, _ = done
    svg = (work.output / SVG_FILE).read_text(encoding="utf-8")
    assert "<dc:date>" not in svg
    assert "Matplotlib" not in svg
    assert "<text" not in svg  # letters are outlines
    assert b"Software" not in (work.output / PNG_FILE).read_bytes()


def test_no_field_of_its_data_hides_the_heading() -> None:
    for one in find_analyses():
        assert not set(one.found.model_fields) & HEADING, one.card.name
        assert one.found.only_in_file <= set(one.found.model_fields)


@pytest.mark.parametrize("done", [load_catalog().analysis("spectrum")], ids=["spectrum"], indirect=True)
def test_equal_work_gives_equal_bytes_whatever_the_threads(
    done: Done, models: list[LocalCheckpoint], tmp_path: Path
) -> None:
    card, _, outcome = done
    assert run(work_of(card, models, tmp_path), threads=3) == outcome


@pytest.mark.parametrize("done", [load_catalog().analysis("negation")], ids=["negation"], indirect=True)
def test_a_measured_one_too_and_its_progress_is_told_to_the_end(
    done: Done, models: list[LocalCheckpoint], tmp_path: Path
) -> None:
    card, _, outcome = done
    reports: list[Progress] = []
    assert perform(WorkOrder(work=work_of(card, models, tmp_path)), reports.append) == outcome
    assert [reports[0].stage, reports[-1].stage] == ["measuring", "drawing"]
    assert {report.total for report in reports if report.stage == "measuring"} == {11}
    assert reports[-1].fraction == 1.0
