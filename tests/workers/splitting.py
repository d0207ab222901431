"""Merges in parts without a service: every part in turn, round after round, and the join."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from pydantic import JsonValue

from app.domain import needs
from app.domain.checkpoints import LocalCheckpoint, Manifest
from app.domain.needs import find_needed
from app.domain.parts import Share, only_of, share_out
from app.domain.plans import MergePlan
from app.domain.work import JoinWork, MergeWork, PartOutcome, PartWork
from app.services.parts import first_round
from tests.workers.files import FileMerge, ignore
from workers.catalog import load_recipe
from workers.pipelines.parts import join_parts, merge_part

MAX_ROUNDS = 40


@dataclass(frozen=True)
class Parts:
    """How a merge is split."""

    n_parts: int
    is_whole: bool = True  # each part has all inputs; else its own tensors alone
    n_tallying: int = 0  # parts of a round of statistics; 0: as many as merge


@dataclass(frozen=True)
class SplitMerge:
    """A merge in so many parts."""

    merge: FileMerge
    n_parts: int
    is_whole: bool = True
    n_tallying: int = 0

    def __call__(
        self, base: LocalCheckpoint | None, models: Sequence[LocalCheckpoint], output: Path
    ) -> tuple[Manifest, dict[str, JsonValue], int]:
        """Merge into the folder `output`; return manifest, report and the number of rounds."""
        recipe, plan = self.merge.plan(base, models)
        output.mkdir(parents=True)
        work = MergeWork(recipe=recipe, base_model=base, models=tuple(models), output=output)
        parts = Parts(self.n_parts, self.is_whole, self.n_tallying)
        return merge_in_parts(plan, work, parts, threads=self.merge.threads, chunk_elements=self.merge.chunk_elements)


def merge_in_parts(
    plan: MergePlan, work: MergeWork, parts: Parts, *, threads: int | None = None, chunk_elements: int | None = None
) -> tuple[Manifest, dict[str, JsonValue], int]:
    """Merge into the work's empty output folder; return manifest, report and the number of rounds."""
    code, output = load_recipe(work.recipe), work.output
    specs = first_round(share_out(plan, parts.n_parts), n_rounds=plan.n_rounds, n_tallying=parts.n_tallying)
    tallies: list[Path] = []
    for index in range(MAX_ROUNDS):
        outcomes = [
            merge_part(
                plan,
                code,
                PartWork(
                    merge=work
                    if parts.is_whole
                    else _cut(work, plan, spec.share, output.with_name(f"{output.name}-own")),
                    share=spec.share,
                    tallies=tuple(tallies),
                    round=index,
                    merges=not spec.merging,
                    is_whole=parts.is_whole,
                ),
                on_progress=ignore,
                threads=threads,
                chunk_elements=chunk_elements,
            )
            for spec in specs
        ]
        told = [_take_away(output, outcome, f"round-{index}") for outcome in outcomes if outcome.files]
        if all(outcome.is_merged for outcome in outcomes):
            manifest, report = join_parts(plan, code, JoinWork(merge=work, merged=tuple(told)), on_progress=ignore)
            return manifest, report, index + 1
        assert not any(outcome.is_merged for outcome in outcomes)
        tallies += told
        specs = [following for spec in specs for following in spec.follow(is_left=bool(told))]
    raise AssertionError(f"{MAX_ROUNDS} rounds were not enough")


def _cut(work: MergeWork, plan: MergePlan, share: Share, folder: Path) -> MergeWork:
    """Return the work of a part that has the ranges of its tensors and nothing else."""
    inputs = [*filter(None, (work.base_model,)), *work.models]
    base = None if work.base_model is None else work.base_model.manifest
    needed = find_needed(only_of(plan, share), base, [model.manifest for model in work.models])
    cut: list[LocalCheckpoint] = []
    for number, (one, names) in enumerate(zip(inputs, needed, strict=True)):
        place = folder / f"{share.index}-{number}"
        place.mkdir(parents=True, exist_ok=True)
        with mock.patch.object(needs, "GAP_BYTES", 0):
            ranges = needs.find_ranges(one.manifest, names)
        for found in ranges:
            (place / found.name).write_bytes((one.path / found.path).read_bytes()[found.begin : found.end])
        cut.append(one.model_copy(update={"path": place, "manifest": needs.within_ranges(one.manifest, ranges, ())}))
    if base is None:
        return work.model_copy(update={"models": tuple(cut)})
    return work.model_copy(update={"base_model": cut[0], "models": tuple(cut[1:])})


def _take_away(output: Path, outcome: PartOutcome, folder: str) -> Path:
    """Move the file that tells of a part out of the result's folder."""
    path = output / outcome.files[-1].path
    return path.rename(output.with_name(f"{output.name}-{folder}-{path.name}"))
