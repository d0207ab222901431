"""A merge in parts: what one part does, and the join that completes what all of them have written.

A part writes whole weight files of the result, as the plan lays them out. Beside them it writes one small file that
tells the join of them: MergedFiles. While a statistic of the whole merge set is missing, it writes tallies instead
(rounds.py), and is asked again when those of all parts are there.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path

from pydantic import JsonValue

from app.domain.checkpoints import FileEntry, Manifest
from app.domain.jobs import Progress
from app.domain.parts import MergedFiles, only_of, sources_of, tallied_by
from app.domain.plans import MergePlan
from app.domain.work import JoinWork, PartOutcome, PartWork
from workers.checkpoints.companions import write_file
from workers.checkpoints.hashing import hash_file
from workers.checkpoints.tallies_file import Tallies, read_tallies, write_tallies
from workers.contract import RecipeCode
from workers.pipelines import program
from workers.pipelines.beside import FilesBeside
from workers.pipelines.merge import Told, check_room, merged_bytes, open_merge, total_bytes
from workers.pipelines.merge_files import OnWritten, WrittenWeights, complete, ignore, write_weights
from workers.pipelines.merge_steps import Merger
from workers.pipelines.rounds import Folded, PassTallied, ReplayedSource, join_tallies
from workers.statistics.views import PartOfSource

TALLIES = "tallies-"  # what the name of a file of tallies begins with; the number of its pass follows
NOTHING_BESIDE = FilesBeside(patches=None, sums=None)


def merge_part(  # noqa: PLR0913 a part, and how to run it
    plan: MergePlan,
    code: RecipeCode,
    work: PartWork,
    *,
    on_progress: Callable[[Progress], None],
    device: str = "cpu",
    threads: int | None = None,
    chunk_elements: int | None = None,
    on_written: OnWritten = ignore,
) -> PartOutcome:
    """Write this part's weight files, or its tallies of the next pass, into the work's output folder; or nothing.

    Raises: as merge.merge_checkpoints.
    """
    merge, own = work.merge, only_of(plan, work.share)
    if work.merges:
        check_room(sum(file.size_bytes for file in own.files), merge.output)
    with ExitStack() as stack:
        opened = open_merge(
            stack,
            plan,
            code,
            recipe=merge.recipe,
            base=merge.base_model,
            models=merge.models,
            on_progress=on_progress,
            device=device,
            threads=threads,
            chunk_elements=chunk_elements,
        )
        tallied = tallied_by(plan, work.share, is_whole=work.is_whole)
        n_tallied_bytes = merged_bytes(opened.inputs, tallied)
        opened.meter.expect(n_tallied_bytes)
        told = Told(opened.meter)
        known = _Passes(work.tallies)
        replayed = ReplayedSource(opened.source, tallied, known, is_whole=work.is_whole, folded=known.folded)
        try:
            ready = program.prepare(
                merge.recipe,
                code,
                replayed,
                transport=opened.transport,
                on_request=told.begin,
                own=PartOfSource(opened.source, sources_of(own.tensors), opened.source.weights),
            )
        except PassTallied as over:
            entry = _keep_tallies(work, over)
            return PartOutcome(files=(entry,), is_merged=False, bytes_read=n_tallied_bytes)
        if not work.merges:
            return PartOutcome(files=(), is_merged=False, bytes_read=0)
        n_bytes = total_bytes(own, opened.inputs)
        opened.meter.expect(n_bytes)
        opened.meter.enter("merging")
        merger = Merger(ready, opened.inputs, opened.source, opened.meter)
        written = write_weights(own, merger, merge.output, NOTHING_BESIDE, on_written)
    merged = MergedFiles(
        files=written.entries,
        blake3_of=dict(written.blake3_of),
        differing=tuple(written.differing),
        report=told.report(plan, merge.recipe, ready),
    )
    name = f"part-{work.share.index + 1:05d}-of-{work.share.n_parts:05d}.json"
    entry = write_file(merge.output, name, merged.model_dump_json().encode())
    return PartOutcome(files=(*written.entries, entry), is_merged=True, bytes_read=n_bytes)


def join_parts(
    plan: MergePlan, code: RecipeCode, work: JoinWork, *, on_progress: Callable[[Progress], None]
) -> tuple[Manifest, dict[str, JsonValue]]:
    """Write what lies beside the weights of all parts; return the manifest and the report of the whole merge."""
    on_progress(Progress(stage="joining", fraction=1.0, done=plan.bytes_read, total=plan.bytes_read, unit="bytes"))
    merge = work.merge
    parts = [MergedFiles.model_validate_json(path.read_bytes()) for path in work.merged]
    written = WrittenWeights(
        entries=tuple(entry for part in parts for entry in part.files),
        blake3_of={name: digest for part in parts for name, digest in part.blake3_of.items()},
        differing=[name for part in parts for name in part.differing],
    )
    inputs = (merge.base_model or merge.models[0], merge.models)
    manifest, warnings = complete(plan, code.method, merge.recipe, inputs, written, [], merge.output)
    return manifest, {**parts[0].report, "n_parts": len(parts), "warnings": list(warnings)}


class _Passes(Sequence[Tallies]):
    """The tallies of each pass, of all parts, in the order of the passes; read when they are asked for."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files: dict[str, list[Path]] = {}
        for path in files:
            self._files.setdefault(path.name.rpartition(TALLIES)[2].split("-")[0], []).append(path)
        self._names = sorted(self._files)
        self._read = cache(read_tallies)

    @property
    def folded(self) -> list[Folded]:
        """What has been made of all passes but the last one: every part says the same."""
        if not self._names:
            return []
        _, folded = self._read(self._files[self._names[-1]][0])
        return [one for one in folded if isinstance(one, Folded)]

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Tallies:  # type: ignore[override]  # nobody slices
        return join_tallies([self._read(path)[0] for path in self._files[self._names[index]]])


def _keep_tallies(work: PartWork, over: PassTallied) -> FileEntry:
    name = f"{TALLIES}{over.index + 1:03d}-{work.share.index + 1:05d}-of-{work.share.n_parts:05d}.bin"
    path = work.merge.output / name
    write_tallies(path, over.tallies, over.folded)
    return FileEntry(path=name, size_bytes=path.stat().st_size, sha256=hash_file(path, _ignore))


def _ignore(_n_bytes: int) -> None:
    """Tell nobody: the file is small."""
