"""How the files of a result are dealt out to parts, and what their progress adds up to."""

import pytest

from app.domain.jobs import JobState, Progress
from app.domain.parts import (
    Room,
    Share,
    add_progress,
    count_free,
    count_tallying,
    deal_out,
    only_of,
    share_out,
    sources_of,
    tallied_by,
)
from app.domain.plans import MergePlan, PlannedFile, PlannedTensor


def plan_of(*sizes: int, tied: bool = False) -> MergePlan:
    """Return a plan of a file for each size, with one tensor each; the last one may be a copy of the first's."""
    files = tuple(PlannedFile(path=f"f{index}", size_bytes=size) for index, size in enumerate(sizes))
    tensors = tuple(
        PlannedTensor(
            name=f"t{index}",
            dtype="U8",
            shape=(size,),
            file=f"f{index}",
            begin=0,
            end=size,
            source="t0" if tied and index == len(sizes) - 1 else f"t{index}",
        )
        for index, size in enumerate(sizes)
    )
    return MergePlan(
        files=files,
        tensors=tensors,
        warnings=(),
        n_passes=1,
        bytes_read=0,
        bytes_written=sum(sizes),
        peak_memory_bytes=0,
        disk_bytes=0,
        estimated_seconds=0,
    )


def files(shares: tuple[Share, ...]) -> list[str]:
    return ["".join(file[1:] for file in share.files) for share in shares]


@pytest.mark.parametrize(
    ("sizes", "n_parts", "expected"),
    [
        ((5, 5, 5, 5), 2, ["01", "23"]),
        ((5, 5, 5, 5), 4, ["0", "1", "2", "3"]),
        ((5, 5, 5, 5), 9, ["0", "1", "2", "3"]),
        ((5, 5, 5), 1, ["012"]),
        ((9, 1, 1, 1), 2, ["0", "123"]),
        ((1, 1, 1, 9), 2, ["012", "3"]),
        ((1, 1, 1, 9), 3, ["01", "2", "3"]),
        ((9, 1, 1), 3, ["0", "1", "2"]),
    ],
)
def test_neighboring_files_go_together_and_parts_are_alike(
    sizes: tuple[int, ...], n_parts: int, expected: list[str]
) -> None:
    shares = share_out(plan_of(*sizes), n_parts)
    assert files(shares) == expected
    assert [(share.index, share.n_parts) for share in shares] == [(at, len(shares)) for at in range(len(shares))]


def test_each_tensor_is_one_part_s_to_tally_though_several_may_merge_it() -> None:
    plan = plan_of(5, 5, 5, tied=True)
    shares = share_out(plan, 3)
    assert [tallied_by(plan, share, is_whole=False) for share in shares] == [{"t0"}, {"t1"}, frozenset()]
    assert [tallied_by(plan, share, is_whole=True) for share in shares] == [{"t0"}, {"t1"}, frozenset()]
    assert [sources_of(only_of(plan, share).tensors) for share in shares] == [{"t0"}, {"t1"}, {"t0"}]


def test_tensors_are_dealt_out_evenly_where_all_inputs_are_at_hand() -> None:
    plan = plan_of(9, 5, 4, 3, 3)
    shares = share_out(plan, 2)
    assert files(shares) == ["01", "234"]
    assert [tallied_by(plan, share, is_whole=True) for share in shares] == [{"t0", "t3"}, {"t1", "t2", "t4"}]


def room(machine: str = "a", *, cores: int = 2, threads: int = 0, n_slots: int = 2, n_held: int = 0) -> Room:
    return Room(machine=machine, cores=cores, threads=threads, n_slots=n_slots, n_held=n_held)


@pytest.mark.parametrize(
    ("rooms", "expected"),
    [
        ([], 0),
        ([room()], 1),  # two slots, and the cores of one merge
        ([room(n_slots=1), room(n_slots=1)], 1),  # of one machine
        ([room("a"), room("b"), room("c")], 3),
        ([room("a"), room("b", n_slots=0)], 1),  # that one serves another class
        ([room("a"), room("b", n_held=1)], 1),
        ([room("a"), room("b", n_held=2), room("b")], 1),
        ([room("a", cores=1, threads=1), room("b", cores=1, threads=1)], 2),  # each held to a core
        ([room(cores=8, threads=1, n_slots=8)], 4),  # a thread, and the core that hashes
        ([room(cores=8, threads=1, n_slots=8, n_held=3)], 1),
        ([room(cores=8, threads=3, n_slots=1)], 1),
        ([room(cores=64, n_slots=4)], 1),  # a merge takes the cores that are free
    ],
)
def test_machines_and_cores_count_not_slots(rooms: list[Room], expected: int) -> None:
    assert count_free(rooms, n_waiting=0) == expected


def test_a_part_that_tallies_needs_its_threads_alone_and_may_wait_for_others() -> None:
    assert count_tallying([room("a", n_held=1), room("b"), room("c", n_slots=0)]) == 2
    assert count_tallying([room(threads=1)]) == 2
    assert count_tallying([room("a", cores=1, threads=1, n_slots=1), room("b", cores=1, threads=1, n_slots=1)]) == 2
    assert count_tallying([]) == 0


@pytest.mark.parametrize(("n", "sizes"), [(1, [5]), (2, [2, 3]), (3, [1, 2, 2]), (5, [1, 1, 1, 1, 1])])
def test_neighboring_shares_are_dealt_out(n: int, sizes: list[int]) -> None:
    shares = share_out(plan_of(*[5] * 5), 5)
    groups = deal_out(shares, n)
    assert [len(group) for group in groups] == sizes
    assert tuple(share for group in groups for share in group) == shares


def test_merges_that_wait_go_before() -> None:
    rooms = [room("a"), room("b"), room("c")]
    assert [count_free(rooms, n_waiting=n) for n in (0, 1, 3, 9)] == [3, 2, 0, 0]


def test_progress_counts_what_is_done_in_all_parts() -> None:
    def one(done: int, **more: object) -> Progress:
        return Progress.model_validate({"stage": "merging", "done": done, "total": 50, "unit": "bytes", **more})

    progress = add_progress(
        200,
        [
            (JobState.SUCCEEDED, one(50)),
            (JobState.RUNNING, one(10, bytes_per_second=20.0)),
            (JobState.RUNNING, one(20, bytes_per_second=10.0)),
            (JobState.FAILED, one(49)),
        ],
    )
    assert (progress.stage, progress.done, progress.total, progress.fraction) == ("merging", 80, 200, 0.4)
    assert (progress.bytes_per_second, progress.eta_seconds) == (30.0, 4.0)


def test_progress_of_nothing_is_nothing() -> None:
    assert add_progress(0, []) == Progress(stage="in parts", unit="bytes")
