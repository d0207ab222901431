"""What was measured, kept as JSON beside the models, and the table of it."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from pydantic import BaseModel, Field

from benchmarks.clip.peers import Difference
from benchmarks.clip.rows import Peer, Row
from benchmarks.engine.processes import Run

GOAL_RATIO = 8.0  # the fastest peer's process against our merge
GOAL_BYTES = 600_000_000
HEADER = (
    "| method | merge, s | CPU, s | process, s | MB | peer | process, s | CPU, s | less start-up, s | MB "
    "| ratio | of CPU | less start-up | of processes | entries that differ |"
)


class Theirs(BaseModel):
    """One run of another tool, and how its result differs from ours."""

    run: Run
    difference: Difference


class Results(BaseModel):
    """All that was measured, by the names of rows."""

    ours: dict[str, list[Run]] = Field(default_factory=dict)
    theirs: dict[str, dict[str, Theirs]] = Field(default_factory=dict)
    start_ups: dict[str, Run] = Field(default_factory=dict)  # by tool

    @classmethod
    def read(cls, path: Path) -> "Results":
        """Return what was kept; nothing if nothing was."""
        return cls.model_validate_json(path.read_bytes()) if path.exists() else cls()

    def keep(self, path: Path) -> None:
        """Keep what was measured."""
        path.write_text(self.model_dump_json(indent=1), encoding="utf-8")

    def render(self, rows: Sequence[Row]) -> str:
        """Return the table, in Markdown, of the rows that were measured."""
        lines = [HEADER, "|---|" + "---:|" * 4 + "---|" + "---:|" * 9]
        for row in rows:
            if row.name not in self.ours:
                continue
            measured = [peer for peer in row.peers if peer.tool in self.theirs.get(row.name, {})]
            lines += [f"{self._render_ours(row)} {self._render_theirs(row, peer)}" for peer in measured]
            if not measured:
                lines.append(f"{self._render_ours(row)} none |" + " |" * 9)
        return "\n".join(lines)

    def _render_ours(self, row: Row) -> str:
        runs = self.ours[row.name]
        peak = max(run.anonymous_bytes for run in runs)
        verdict = " **too much**" if peak > GOAL_BYTES else ""
        process = median(run.wall_seconds for run in runs)
        merge, cpu = (_of_merges(runs, name) for name in ("seconds", "cpu_seconds"))
        return f"| {row.name} | {merge:.2f} | {cpu:.1f} | {process:.1f} | {peak / 1e6:.0f}{verdict} |"

    def _render_theirs(self, row: Row, peer: Peer) -> str:
        runs, theirs = self.ours[row.name], self.theirs[row.name][peer.tool]
        run, difference = theirs.run, theirs.difference
        merge, cpu = (_of_merges(runs, name) for name in ("seconds", "cpu_seconds"))
        process = median(one.wall_seconds for one in runs)
        inner = run.wall_seconds - self.start_ups[peer.tool].wall_seconds
        fastest = min(other.run.wall_seconds for other in self.theirs[row.name].values())
        is_missed = run.wall_seconds == fastest and run.wall_seconds / merge < GOAL_RATIO
        found = f"{difference.n_different} ({difference.largest:.0e})"
        return (
            f"{peer.tool} | {run.wall_seconds:.1f} | {run.cpu_seconds:.1f} | {inner:.1f} "
            f"| {run.anonymous_bytes / 1e6:.0f} | {run.wall_seconds / merge:.1f}{' **missed**' if is_missed else ''} "
            f"| {run.cpu_seconds / cpu:.1f} | {inner / merge:.1f} | {run.wall_seconds / process:.1f} "
            f"| {peer.differs or found} |"
        )


def _of_merges(runs: Sequence[Run], name: str) -> float:
    values: list[float] = [json.loads(run.last_line)[name] for run in runs]
    return median(values)
