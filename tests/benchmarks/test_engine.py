"""What the engine's benchmark says: the floor of a merge, how far two results are apart, and which goals are missed."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.clip.rows import ROWS as CLIP_ROWS
from benchmarks.engine import floor
from benchmarks.engine.floor import Floor, measure_floor
from benchmarks.engine.generate import generate
from benchmarks.engine.merge_once import Order, merge_once
from benchmarks.engine.peers import Difference, compare
from benchmarks.engine.processes import Run
from benchmarks.engine.results import Measured, Results, Theirs
from benchmarks.engine.rows import FUSION_BENCH, MERGEKIT, ROWS, Peer, Row
from benchmarks.engine.shapes import SHAPES
from benchmarks.telling import describe_machine, spread, write_between

MB = 1_000_000


def test_the_floor_reads_what_it_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the models that are named are read, every byte of them, twice; what was written is gone."""
    for name in ("base", "model-1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(bytes(3 * floor.BUFFER_BYTES + 17))
    monkeypatch.setattr(floor, "RANGE_BYTES", 2 * floor.BUFFER_BYTES)
    files = floor.weight_files(tmp_path)
    assert floor.read_files(files) == 2 * (3 * floor.BUFFER_BYTES + 17)
    settled: list[Path] = []
    found = measure_floor([tmp_path / "model-1"], [5, 2 * floor.BUFFER_BYTES + 3], tmp_path, settled.append)
    assert settled == [tmp_path / "model-1"]
    assert not (tmp_path / "floor").exists()
    assert min(found.read, found.read_again, found.write, found.hash) > 0
    assert found.write_and_hash >= max(found.write, found.hash)
    floor.forget(tmp_path)
    assert floor.read_files(files) == 2 * (3 * floor.BUFFER_BYTES + 17)


def test_the_floor_counts_a_first_pass_and_those_that_follow() -> None:
    """Cold inputs are read from the disk once; what is written and hashed at once counts as long as both took."""
    cold = Floor(read=4.0, read_again=0.5, write_and_hash=1.5, write=0.9, hash=1.4)
    assert cold.total(1) == 5.5
    assert cold.total(3) == 6.5


def test_a_merge_says_what_it_read_and_how_often(tmp_path: Path) -> None:
    """Passes are those that were made, not those that a method may need; a base that is not used is not read."""
    generate(SHAPES["tiny"], tmp_path / "models", n_models=2)
    ties = merge_once(tmp_path / "models", Order("ties", {}), tmp_path / "ties", threads=1)
    assert (ties["n_passes"], ties["read"]) == (3, ["base", "model-1", "model-2"])
    mean = merge_once(tmp_path / "models", Order("average", {}), tmp_path / "average", threads=1)
    assert (mean["n_passes"], mean["read"]) == (1, ["model-1", "model-2"])
    dare = merge_once(tmp_path / "models", Order("dare_ties", {}), tmp_path / "dare", threads=1)
    assert dare["n_passes"] == 1


def test_results_are_compared_whatever_their_files(tmp_path: Path) -> None:
    """Tensors are found by name; one unit in the last place of bfloat16 is rounding, more is a difference."""
    ours = torch.tensor([1.0, 1.0, -1.0, 0.5], dtype=torch.bfloat16)
    theirs = torch.tensor([1.0, 1.0078125, -1.015625, 0.5], dtype=torch.bfloat16)
    _save(tmp_path / "ours" / "model.safetensors", {"a": ours, "b": torch.ones(3)})
    _save(tmp_path / "theirs" / "model-1.safetensors", {"a": theirs})
    _save(tmp_path / "theirs" / "model-2.safetensors", {"b": torch.tensor([1.0, 1 + 1e-7, 1 + 1e-6]), "c": ours})
    assert compare(tmp_path / "ours", tmp_path / "theirs") == Difference(7, 2, 0.015625)
    with pytest.raises(RuntimeError, match=r"lacks \['c'\]"):
        compare(tmp_path / "theirs", tmp_path / "ours")


def test_small_entries_of_bfloat16_may_differ_by_what_typical_ones_do(tmp_path: Path) -> None:
    """An entry next to zero carries the rounding errors of the larger numbers that it is the difference of."""
    _save(tmp_path / "ours" / "model.safetensors", {"a": torch.tensor([1.0, 0.0, 0.0], dtype=torch.bfloat16)})
    _save(tmp_path / "theirs" / "model.safetensors", {"a": torch.tensor([1.0, 0.004, 0.01], dtype=torch.bfloat16)})
    assert compare(tmp_path / "ours", tmp_path / "theirs").n_different == 1
    assert str(Difference(1_000_000, 50, 0.25)) == "50 (2e-01)"
    assert str(Difference(1_000, 50, 0.25)) == "5.00 % (2e-01)"


def test_tables_name_what_is_missed() -> None:
    """A goal that is met is told, one that is missed is marked: ratio, floor and memory, of each tool its own."""
    row = Row("ties", peers=(Peer(MERGEKIT, "ties", goal=30, same={}), Peer(FUSION_BENCH, "Ties", goal=10)))
    floors = [Floor(0.5, 0.5, 1.0, 0.6, 1.0)] * 3
    measured = Measured(date="2026-11-30", ours=[_ours(s, 400 * MB) for s in (5.0, 6.0, 8.0)], floors=floors)
    difference = Difference(1000, 1, 0.5)
    for tool, seconds in ((MERGEKIT, 90.0), (FUSION_BENCH, 66.0)):
        found = Theirs(date="2026-11-29", runs=[Run(seconds, 80.0, 10**9, "")], difference=difference)
        measured.theirs[tool] = found
    measured.theirs[MERGEKIT].same = _ours(4.5, 0)
    results = Results(rows={row.name: measured}, start_ups={tool: Run(6, 6, 0, "") for tool in measured.theirs})
    ours, *_, mergekit, fusion_bench = results.render([row, Row("average")]).splitlines()[2:]
    assert ours == ("| ties | 3 | 6.00 (5.00–8.00) | 9.0 | 8.0 | 300 (≤ 300) | 3 | 2.50 (2.50–2.50) | 2.4 (≤ 3) |")
    assert mergekit == (
        "| ties | mergekit | 1 | 90.00 | 80.0 | 1000 | 15.0 (≥ 30) **missed** | 3.00 | 8.9 | 14.0 | 11.2 | 20.0 "
        "| 0.10 % (5e-01); same settings |"
    )
    assert " 11.0 (≥ 10) | 6.60 |" in fusion_bench
    assert results.tell([row]).startswith("ours 2026-11-30; theirs 2026-11-29; mergekit starts in 6.0 s")


def test_a_goal_is_out_of_reach_where_hashing_alone_takes_longer() -> None:
    """What nothing can reach is told apart from what we miss."""
    row = Row("karcher", peers=(Peer(MERGEKIT, "karcher", goal=80),))
    measured = Measured(date="", ours=[_ours(4.0, 0)], floors=[Floor(0.5, 0.5, 1.5, 0.6, 1.4)])
    measured.theirs[MERGEKIT] = Theirs(date="", runs=[Run(24.0, 24.0, 0, "")])
    results = Results(rows={"karcher": measured}, start_ups={MERGEKIT: Run(6, 6, 0, "")})
    assert "| 6.0 (≥ 80) **out of reach** | 0.30 |" in results.render([row])
    measured.theirs[MERGEKIT] = Theirs(date="", runs=[Run(240.0, 24.0, 0, "")])
    assert "| 60.0 (≥ 80) **missed** | 3.00 |" in results.render([row])


def test_tables_go_between_their_marks(tmp_path: Path) -> None:
    """A page keeps what stands before and behind the marks; without them nothing is written."""
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- 1.1b -->\nold\n<!-- end -->\nafter\n<!-- clip -->\n<!-- end -->\n")
    write_between(page, "1.1b", "new")
    write_between(page, "clip", "other")
    assert page.read_text() == ("before\n<!-- 1.1b -->\nnew\n<!-- end -->\nafter\n<!-- clip -->\nother\n<!-- end -->\n")
    with pytest.raises(ValueError, match="no <!-- 3b --> with an <!-- end -->"):
        write_between(page, "3b", "new")


def test_numbers_are_told_with_their_spread_and_versions() -> None:
    """One value has no spread; the machine is named with what ran on it."""
    assert (spread([2.0]), spread([1.0, 3.0, 2.0])) == ("2.00", "2.00 (1.00–3.00)")
    assert f"torch {torch.__version__}" in describe_machine("mergekit==0.1.5")
    assert describe_machine("mergekit==0.1.5").endswith(", mergekit 0.1.5")


def test_memory_and_floors_have_goals_of_their_own() -> None:
    """An element-wise merge has half the memory of one that finds thresholds; cold, only one pass has a goal."""
    floors = [Floor(1.0, 1.0, 1.0, 1.0, 1.0)]
    one = Measured(date="", ours=[_ours(4.0, 251 * MB, n_passes=1)], floors=floors)
    two = Measured(date="", ours=[_ours(20.0, 251 * MB, n_passes=2)], floors=floors)
    results = Results(rows={"average": one, "ties": two})
    average, ties = results.render([Row("average"), Row("ties")], is_cold=True).splitlines()[2:]
    assert "| 151 (≤ 150) **missed** | 1 |" in average
    assert average.endswith("| 2.0 (≤ 1.5) **missed** |")
    assert "| 151 (≤ 300) | 2 |" in ties
    assert ties.endswith("| 6.7 |")
    assert "6.7 (≤ 3) **missed**" in results.render([Row("ties")])
    assert results.render([Row("ties")], is_large=False).endswith("| 6.7 |")


def test_what_was_measured_is_kept(tmp_path: Path) -> None:
    """Rows that were measured in one run are in the tables of the next."""
    results = Results(rows={"average": Measured(date="2026-11-30", ours=[_ours(4.0, MB)], floors=[])})
    results.keep(tmp_path / "measured.json")
    assert Results.read(tmp_path / "measured.json") == results
    assert Results.read(tmp_path / "none.json") == Results()


@pytest.mark.parametrize("known", [ROWS, CLIP_ROWS], ids=["engine", "clip"])
def test_rows_have_names_of_their_own(known: tuple[Row, ...]) -> None:
    """Results are kept by a row's name, and a row has each tool once."""
    assert len({row.name for row in known}) == len(known)
    assert all(len({peer.tool for peer in row.peers}) == len(row.peers) for row in known)


def _ours(seconds: float, n_bytes: int, *, n_passes: int = 3) -> Run:
    """Return a run as merge_once tells of it; an idle process has 100 MB."""
    told = {"seconds": seconds, "cpu_seconds": 1.5 * seconds, "n_passes": n_passes, "idle_bytes": 100 * MB}
    return Run(seconds + 2, 2 * seconds, n_bytes, json.dumps(told))


def _save(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
