"""A merge in parts: whole weight files of the result are dealt out to jobs of their own.

The layout of the result stays that of its plan, so the bytes do not depend on the number of parts.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from pydantic import JsonValue

from app.domain.adapter_sets import writes_adapter
from app.domain.catalog import MethodCard
from app.domain.checkpoints import FileEntry, Value
from app.domain.errors import FieldProblem, Invalid
from app.domain.jobs import FINAL_STATES, JobState, Progress
from app.domain.plans import MergePlan, PlannedTensor
from app.domain.recipes import Recipe
from app.domain.sums import keeps_sums

MAX_PARTS = 1000
PARTS_PER_PLACE = 2  # under `auto`: a worker that is slower, or is lost, then holds the others up less
WORTH_SECONDS = 10.0  # of a merge as its plan estimates it; splitting costs about one

Parallelism = Literal["auto"] | int


class Share(Value):
    """What one part does: some files of the result, by name."""

    index: int
    n_parts: int
    files: tuple[str, ...]


class MergedFiles(Value):
    """What a part has written, as a small file beside its weights tells the join."""

    files: tuple[FileEntry, ...]
    blake3_of: dict[str, str]  # tensor -> of its bytes
    differing: tuple[str, ...] = ()  # integer tensors that differ between the models
    report: dict[str, JsonValue]  # of the whole merge, as far as one part knows it


class Room(Value):
    """What a worker has room for."""

    machine: str  # whose cores it shares with other workers
    cores: int
    threads: int  # of a job; 0: the cores that are free
    n_slots: int  # for jobs that merge
    n_held: int  # jobs that it runs


def count_free(rooms: Sequence[Room], *, n_waiting: int) -> int:
    """Return how many merges could begin now, each with cores that no other job uses.

    A merge works with its threads, and one more core hashes what it writes. n_waiting: merges that go before.
    """
    free = (max(0, _count_places(own, n_beside=1) - sum(room.n_held for room in own)) for own in _by_machine(rooms))
    return max(0, sum(free) - n_waiting)


def count_tallying(rooms: Sequence[Room]) -> int:
    """Return how many parts that only tally the workers could run at once, each with cores of its own."""
    return sum(_count_places(own, n_beside=0) for own in _by_machine(rooms))


def _by_machine(rooms: Sequence[Room]) -> list[list[Room]]:
    machines: dict[str, list[Room]] = {}
    for room in rooms:
        machines.setdefault(room.machine, []).append(room)
    return list(machines.values())


def _count_places(own: Sequence[Room], *, n_beside: int) -> int:
    """own: the workers of one machine; n_beside: cores that a job keeps busy beside its threads."""
    cores = max(room.cores for room in own)
    of_a_job = max(min(cores, room.threads + n_beside) if room.threads else cores for room in own)
    return min(sum(room.n_slots for room in own), cores // of_a_job)


def is_large(plan: MergePlan) -> bool:
    """Tell whether splitting a merge could pay."""
    return plan.estimated_seconds >= WORTH_SECONDS


def count_parts(asked: Parallelism, recipe: Recipe, card: MethodCard, plan: MergePlan, *, n_free: int) -> int:
    """Return into how many parts a merge is split; 1: it is not.

    n_free: how many merges could begin now, as `count_free` finds it.
    Raises: Invalid when more parts are asked for than there can be.
    """
    why_whole = find_why_whole(recipe, card)
    n_files = len(plan.files)
    if asked == "auto":
        is_worth = why_whole is None and n_free > 1 and is_large(plan)
        return min(n_files, PARTS_PER_PLACE * n_free, MAX_PARTS) if is_worth else 1
    if asked > 1 and why_whole is not None:
        _refuse(f'found {asked}, expected 1 or "auto": {why_whole}; leave parallelism out')
    if asked > n_files:
        largest = max(1 << 20, plan.bytes_written // asked)
        _refuse(
            f"found {asked}, expected at most {n_files}: a part writes whole weight files, and the result has "
            f"{n_files}; ask for fewer parts, or for smaller files (output.shard_bytes, {largest} or less)"
        )
    return asked


def find_why_whole(recipe: Recipe, card: MethodCard) -> str | None:
    """Return why a merge cannot be split, or None if it can be."""
    if writes_adapter(recipe, card):
        return "the result is an adapter, which is one small file"
    if card.produces == "multitask":
        return f"{card.name} writes patches of all tensors beside the weights"
    if recipe.onto is not None:
        return "models are added to an earlier result"
    if recipe.data is not None or recipe.statistics:
        return f"{card.name} looks at the whole model when it learns"
    if keeps_sums(card, recipe):
        return f"{card.name} keeps sums of all tensors beside the weights"
    return None


def share_out(plan: MergePlan, n_parts: int) -> tuple[Share, ...]:
    """Return the parts: neighboring files, of about the same bytes; at most one part for each file."""
    n_parts = min(n_parts, len(plan.files))
    total = sum(file.size_bytes for file in plan.files)
    groups: list[list[str]] = [[]]
    before = 0
    for index, file in enumerate(plan.files):
        n_left = len(plan.files) - index
        is_due = before + file.size_bytes / 2 > len(groups) * total / n_parts
        is_needed = n_left == n_parts - len(groups)  # each part still to come needs a file
        if groups[-1] and len(groups) < n_parts and (is_due or is_needed):
            groups.append([])
        groups[-1].append(file.path)
        before += file.size_bytes
    return tuple(Share(index=index, n_parts=len(groups), files=tuple(files)) for index, files in enumerate(groups))


def deal_out(shares: Sequence[Share], n: int) -> tuple[tuple[Share, ...], ...]:
    """Return neighboring shares together, in n groups of about the same number."""
    bounds = [len(shares) * at // n for at in range(n + 1)]
    return tuple(tuple(shares[begin:end]) for begin, end in pairwise(bounds))


def add_progress(total: int, parts: Sequence[tuple[JobState, Progress]]) -> Progress:
    """Return the progress of a merge from that of its parts, by state. total: bytes of input that all will read."""
    live = [progress for state, progress in parts if state not in FINAL_STATES]
    done = sum(progress.done for state, progress in parts if state is JobState.SUCCEEDED or state not in FINAL_STATES)
    total = max(total, done)
    rate = sum(progress.bytes_per_second or 0.0 for progress in live)
    return Progress(
        stage=next((progress.stage for progress in live if progress.stage), "in parts"),
        fraction=done / total if total else 0.0,
        done=done,
        total=total,
        unit="bytes",
        bytes_per_second=rate or None,
        eta_seconds=(total - done) / rate if rate else None,
    )


def only_of(plan: MergePlan, share: Share) -> MergePlan:
    """Return the plan of a part: its files and their tensors, nothing else."""
    files = set(share.files)
    return plan.model_copy(
        update={
            "files": tuple(file for file in plan.files if file.path in files),
            "tensors": tuple(tensor for tensor in plan.tensors if tensor.file in files),
        }
    )


def sources_of(tensors: Sequence[PlannedTensor]) -> frozenset[str]:
    """Return which tensors of the merge set some tensors of the result are merged from."""
    return frozenset(tensor.source for tensor in tensors if tensor.copied_because is None)


def tallied_by(plan: MergePlan, share: Share, *, is_whole: bool) -> frozenset[str]:
    """Return the tensors of the merge set that a part looks at for the statistics of all: each is one part's.

    is_whole: all inputs are at hand, so that tensors are dealt out evenly; else a part takes those of its files.
    """
    first: dict[str, PlannedTensor] = {}
    for tensor in plan.tensors:
        if tensor.copied_because is None:
            first.setdefault(tensor.source, tensor)
    if not is_whole:
        return frozenset(name for name, tensor in first.items() if tensor.file in share.files)
    dealt = [0] * share.n_parts
    own = set()
    for name in sorted(first, key=lambda name: (-first[name].spec.n_elements, name)):
        index = dealt.index(min(dealt))
        dealt[index] += first[name].spec.n_elements
        if index == share.index:
            own.add(name)
    return frozenset(own)


def _refuse(message: str) -> None:
    raise Invalid(f"/parallelism: {message}.", errors=[FieldProblem("/parallelism", message)])
