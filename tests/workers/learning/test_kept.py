"""Statistics that are kept outlive the merge that measured them; the ones not asked for longest make room."""

from pathlib import Path

import pytest
import torch

from app.domain.errors import JobInternal
from workers.learning.kept import MAX_KEPT, Kept, KeptStatistics
from workers.learning.statistics_files import StatisticsOfModels, write_statistics

PATH = "statistics/of-a-model.safetensors"


def measure(scratch: Path, value: float) -> Kept:
    written = write_statistics(scratch, PATH, {"w": torch.tensor([value])})
    return Kept(StatisticsOfModels([written, written], new_in=scratch, told={"value": value}), {0: 3})


def test_what_was_written_into_an_artifact_is_found_for_the_next_one(tmp_path: Path) -> None:
    kept = KeptStatistics(tmp_path / "kept")
    measured = measure(tmp_path / "first", 0.5)
    kept.add("a", measured)
    outputs = [tmp_path / "output-1", tmp_path / "output-2"]
    for output in outputs:
        output.mkdir()
    entries = measured.statistics.write(outputs[0])

    found = kept.find("a", tmp_path / "second")

    assert found is not None
    assert found.n_examples == {0: 3}
    assert [one.read("w").tolist() for one in found.statistics.of_model] == [[0.5], [0.5]]
    assert found.statistics.report() == measured.statistics.report()
    assert found.statistics.write(outputs[1]) == entries
    assert kept.find("a", tmp_path / "third") is not None  # moved there, it is here all the same
    assert kept.find("b", tmp_path / "third") is None


def test_the_one_not_asked_for_longest_goes_with_its_files(tmp_path: Path) -> None:
    kept = KeptStatistics(tmp_path / "kept")
    for number in range(MAX_KEPT):
        kept.add(str(number), measure(tmp_path / f"scratch-{number}", float(number)))
    kept.find("0", tmp_path / "asked")

    kept.add("more", measure(tmp_path / "more", 9.0))

    assert kept.find("0", tmp_path / "again") is not None
    assert kept.find("1", tmp_path / "gone") is None
    assert len(list((tmp_path / "kept").rglob("*.safetensors"))) == MAX_KEPT


def test_statistics_of_an_earlier_result_are_not_kept(tmp_path: Path) -> None:
    given = StatisticsOfModels([write_statistics(tmp_path, PATH, {"w": torch.ones(1)})])

    with pytest.raises(JobInternal, match="belongs to an earlier result"):
        given.link_to(tmp_path / "kept")
