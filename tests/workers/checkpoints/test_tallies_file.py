"""Files of tallies: what a statistic found of its pieces comes back as it was, and nothing else is made of them."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from app.domain.errors import JobInternal
from app.domain.identifiers import new_id
from workers.checkpoints.tallies_file import read_tallies, write_tallies
from workers.statistics.tallies import Block


def test_everything_that_statistics_give_comes_back_bit_for_bit(tmp_path: Path) -> None:
    block = Block(3, 9, np.array([1, 5], dtype=np.int32), np.array([2, 4], dtype=np.int64))
    results = ["text", True, None, 7, 0.1 + 0.2, -math.inf, (1, [2.5, {"a": 1}]), np.float64(0.1), np.int64(2**40)]
    tensor = torch.tensor([[1.5, -0.0], [math.nan, 2.0]], dtype=torch.float64)
    write_tallies(
        tmp_path / "t", {"a": [*results, block, tensor, np.zeros((0, 3), dtype=np.float32)], "b": []}, [block]
    )
    found, folded = read_tallies(tmp_path / "t")
    assert (list(found), found["b"]) == (["a", "b"], [])
    assert isinstance(folded[0], Block)
    assert folded[0].counts.tolist() == [2, 4]
    assert list(found["a"][: len(results)]) == results
    assert [type(one) for one in found["a"][: len(results)]] == [type(one) for one in results]
    again, numbers, empty = found["a"][len(results) :]
    assert isinstance(again, Block)
    assert (again.first, again.behind) == (3, 9)
    assert again.counts.dtype == np.int64
    assert again.bins.tolist() == [1, 5]
    assert isinstance(numbers, torch.Tensor)
    assert numbers.numpy().tobytes() == tensor.numpy().tobytes()
    assert isinstance(empty, np.ndarray)
    assert empty.shape == (0, 3)


def test_arrays_that_are_read_can_be_changed(tmp_path: Path) -> None:
    write_tallies(tmp_path / "t", {"a": [np.arange(3)]})
    (found,) = read_tallies(tmp_path / "t")[0]["a"]
    assert isinstance(found, np.ndarray)
    found += 1
    assert found.tolist() == [1, 2, 3]


def test_what_is_no_value_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(JobInternal, match="a statistic gave set, which no file of tallies holds"):
        write_tallies(tmp_path / "t", {"a": [{1, 2}]})


@pytest.mark.parametrize("place", ["os:_Environ", "workers.catalog:load_method", "workers.statistics.tallies:Tally"])
def test_a_file_makes_no_objects_but_our_values(place: str, tmp_path: Path) -> None:
    tree = json.dumps({"folded": [], "tallies": {"a": [{"class": place, "fields": {}}]}}).encode()
    (tmp_path / "t").write_bytes(len(tree).to_bytes(8, "little") + tree)
    with pytest.raises(JobInternal, match=f"{place!r} is no class that tallies hold"):
        read_tallies(tmp_path / "t")


def test_names_of_tensors_may_be_anything(tmp_path: Path) -> None:
    name = f'"\\ué {new_id("key")}'
    write_tallies(tmp_path / "t", {name: [1]})
    assert list(read_tallies(tmp_path / "t")[0]) == [name]
