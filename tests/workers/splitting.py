"""Merges in parts without a service: every part in turn, round after round, and the join."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from app.domain.checkpoints import LocalCheckpoint, Manifest
from app.domain.parts import share_out
from app.domain.work import JoinWork, MergeWork, PartOutcome, PartWork
from tests.workers.files import FileMerge, ignore
from workers.catalog import load_recipe
from workers.pipelines.parts import join_parts, merge_part

MAX_ROUNDS = 12


@dataclass(frozen=True)
class SplitMerge:
    """A merge in so many parts."""

    merge: FileMerge
    n_parts: int

    def __call__(
        self, base: LocalCheckpoint | None, models: Sequence[LocalCheckpoint], output: Path
    ) -> tuple[Manifest, dict[str, JsonValue], int]:
        """Merge into the folder `output`; return manifest, report and the number of rounds."""
        recipe, plan = self.merge.plan(base, models)
        code = load_recipe(recipe)
        output.mkdir(parents=True)
        work = MergeWork(recipe=recipe, base_model=base, models=tuple(models), output=output)
        tallies: list[Path] = []
        for index in range(MAX_ROUNDS):
            outcomes = [
                merge_part(
                    plan,
                    code,
                    PartWork(merge=work, share=share, tallies=tuple(tallies), round=index),
                    on_progress=ignore,
                    threads=self.merge.threads,
                    chunk_elements=self.merge.chunk_elements,
                )
                for share in share_out(plan, self.n_parts)
            ]
            told = [_take_away(output, outcome, f"round-{index}") for outcome in outcomes]
            if all(outcome.is_merged for outcome in outcomes):
                manifest, report = join_parts(plan, code, JoinWork(merge=work, merged=tuple(told)), on_progress=ignore)
                return manifest, report, index + 1
            assert not any(outcome.is_merged for outcome in outcomes)
            tallies += told
        raise AssertionError(f"{MAX_ROUNDS} rounds were not enough")


def _take_away(output: Path, outcome: PartOutcome, folder: str) -> Path:
    """Move the file that tells of a part out of the result's folder."""
    path = output / outcome.files[-1].path
    return path.rename(output.with_name(f"{output.name}-{folder}-{path.name}"))
