"""Files of statistics: what is written is read, and what does not fit a merge is refused by name."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from app.domain.checkpoints import CheckpointKind, LocalCheckpoint, Manifest
from app.domain.errors import IncompatibleCheckpoints, InvalidParameters
from workers.catalog import load_method
from workers.contract import MergeContext
from workers.learning.statistics_files import StatisticsFile, StatisticsOfModels, write_statistics

PATH = "statistics/of-a-model.safetensors"


def test_what_is_written_is_read_in_runs(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(6.0).view(2, 3), "a": torch.tensor(2.0), "none": torch.empty(0, 3)}
    written = write_statistics(tmp_path, PATH, tensors)
    assert {name: spec.shape for name, spec in written.tensors.items()} == {"a": (), "b": (2, 3), "none": (0, 3)}
    assert written.read("b", 2, 3).tolist() == [2.0, 3.0, 4.0]
    assert written.norm == pytest.approx((0 + 1 + 4 + 9 + 16 + 25 + 4) ** 0.5)
    output = tmp_path / "output"
    output.mkdir()
    (entry,) = StatisticsOfModels([written, written], new_in=tmp_path).write(output)
    assert (output / PATH).stat().st_size == entry.size_bytes
    assert not (tmp_path / PATH).exists()


@pytest.mark.parametrize(
    ("method", "found"), [("fisher", r"holds \[4\] for 'w', expected \[2, 3\]"), ("regmean", r"expected \[3, 3\]")]
)
def test_statistics_of_other_shapes_are_refused(tmp_path: Path, method: str, found: str) -> None:
    code = load_method(method)
    statistics = StatisticsOfModels([write_statistics(tmp_path, PATH, {"w": torch.zeros(4)})])
    context = MergeContext("w", (2, 3), 0, 0, (1.0,), learned=statistics)
    finetuned = torch.ones(1, 6) if method == "fisher" else torch.ones(1, 2, 3)
    with pytest.raises(IncompatibleCheckpoints, match=found):
        code.merge(None, finetuned, code.parameters(), context)


@pytest.mark.parametrize("method", ["fisher", "regmean", "regmean_plus_plus"])
def test_weights_that_sum_to_nothing_are_refused(method: str) -> None:
    code = load_method(method)
    with pytest.raises(InvalidParameters, match="sum to 0"):
        code.merge(None, torch.ones(2, 6), code.parameters(), MergeContext("w", (6,), 0, 0, (0.0, 0.0)))


def test_statistics_that_are_not_float32_are_refused(tmp_path: Path) -> None:
    (tmp_path / "statistics").mkdir()
    save_file({"w": torch.zeros(2, dtype=torch.float16)}, tmp_path / PATH)
    empty = Manifest(kind=CheckpointKind.DENSE, files=(), tensors=(), weights_digest="")
    with pytest.raises(IncompatibleCheckpoints, match=r"tensor 'w' of statistics/of-a-model.safetensors is F16"):
        StatisticsFile(LocalCheckpoint(id="ckpt_given", path=tmp_path, manifest=empty), PATH)
