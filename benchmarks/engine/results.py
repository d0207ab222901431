"""What was measured, kept as JSON beside the models, and the tables of it."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from pydantic import BaseModel, Field

from benchmarks.engine.floor import Floor
from benchmarks.engine.peers import Difference
from benchmarks.engine.processes import Run
from benchmarks.engine.rows import Peer, Row
from benchmarks.telling import judge, spread

ELEMENTWISE_BYTES, THRESHOLD_BYTES = 150e6, 300e6  # of anonymous memory above the idle process, at most
FLOOR_RATIO, COLD_FLOOR_RATIO = 3.0, 1.5  # of the merge to the floor, at most
OURS = "| method | n | merge, s | CPU, s | process, s | MB above idle | passes | floor, s | times the floor |"
THEIRS = (
    "| method | peer | n | process, s | CPU, s | MB | its process / our merge | we need, s | CPU / CPU "
    "| less start-up / our merge | process / process | its process / our merge, same settings | entries that differ |"
)


class Theirs(BaseModel):
    """What another tool took for a row, and how its result differs from ours."""

    date: str
    runs: list[Run] = Field(default_factory=list)
    difference: Difference | None = None
    same: Run | None = None  # ours, under the settings that are compared, where the row has others


class Measured(BaseModel):
    """What was measured of a row."""

    date: str
    ours: list[Run] = Field(default_factory=list)
    floors: list[Floor] = Field(default_factory=list)  # one for each run of ours
    theirs: dict[str, Theirs] = Field(default_factory=dict)  # by tool


class Results(BaseModel):
    """All that was measured, by the names of rows."""

    rows: dict[str, Measured] = Field(default_factory=dict)
    start_ups: dict[str, Run] = Field(default_factory=dict)  # by tool: a merge of next to nothing

    @classmethod
    def read(cls, path: Path) -> "Results":
        """Return what was kept; nothing if nothing was."""
        return cls.model_validate_json(path.read_bytes()) if path.exists() else cls()

    def keep(self, path: Path) -> None:
        """Keep what was measured."""
        path.write_text(self.model_dump_json(indent=1), encoding="utf-8")

    def render(self, rows: Sequence[Row], *, is_cold: bool = False, is_large: bool = True) -> str:
        """Return two tables, in Markdown: of our merges, and of the other tools beside them.

        is_large: whether the goals for the floor hold, which are set for models that take seconds to read.
        """
        known = [row for row in rows if row.name in self.rows]
        highest = None if not is_large else COLD_FLOOR_RATIO if is_cold else FLOOR_RATIO
        ours = [_render_ours(row, self.rows[row.name], highest, is_cold=is_cold) for row in known]
        theirs = [line for row in known for line in self._render_theirs(row)]
        return "\n".join([*_head(OURS), *ours, *(["", *_head(THEIRS), *theirs] if theirs else [])])

    def tell(self, rows: Sequence[Row]) -> str:
        """Return when what is in the tables was measured, and how long the tools take to start."""
        known = [self.rows[row.name] for row in rows if row.name in self.rows]
        ours = sorted({one.date for one in known})
        theirs = sorted({found.date for one in known for found in one.theirs.values()})
        starts = [f"{tool} starts in {taken.wall_seconds:.1f} s" for tool, taken in self.start_ups.items()]
        return "; ".join([f"ours {', '.join(ours)}", *([f"theirs {', '.join(theirs)}"] if theirs else []), *starts])

    def _render_theirs(self, row: Row) -> Iterator[str]:
        measured = self.rows[row.name]
        merge, cpu = (median(told(measured.ours, name)) for name in ("seconds", "cpu_seconds"))
        process = median(run.wall_seconds for run in measured.ours)
        for peer in row.peers:
            if not (found := measured.theirs.get(peer.tool)):
                continue
            wall = [run.wall_seconds for run in found.runs]
            took = median(wall)
            same = None if found.same is None else took / told([found.same], "seconds")[0]
            yield _line(
                row.name,
                peer.tool,
                str(len(wall)),
                spread(wall),
                f"{median(run.cpu_seconds for run in found.runs):.1f}",
                f"{max(run.anonymous_bytes for run in found.runs) / 1e6:.0f}",
                *_judge(took, merge, peer.goal, measured.floors),
                f"{median(run.cpu_seconds for run in found.runs) / cpu:.1f}",
                f"{(took - self.start_ups[peer.tool].wall_seconds) / merge:.1f}",
                f"{took / process:.1f}",
                "" if same is None else f"{same:.1f}",
                _tell_difference(peer, found.difference),
            )


def told(runs: Sequence[Run], name: str) -> list[Any]:
    """Return a value of what each of our merges said of itself."""
    return [json.loads(run.last_line)[name] for run in runs]


def _render_ours(row: Row, measured: Measured, highest: float | None, *, is_cold: bool) -> str:
    runs = measured.ours
    seconds, passes = told(runs, "seconds"), told(runs, "n_passes")
    above = [run.anonymous_bytes - idle for run, idle in zip(runs, told(runs, "idle_bytes"), strict=True)]
    floors = [floor.total(n) for floor, n in zip(measured.floors, passes, strict=False)]
    ratio = median(one / floor for one, floor in zip(seconds, floors, strict=False)) if floors else None
    goal = None if is_cold and passes[0] > 1 else highest
    allowed = THRESHOLD_BYTES if row.finds_thresholds else ELEMENTWISE_BYTES
    return _line(
        row.name,
        str(len(runs)),
        spread(seconds),
        f"{median(told(runs, 'cpu_seconds')):.1f}",
        f"{median(run.wall_seconds for run in runs):.1f}",
        judge(max(above) / 1e6, allowed / 1e6, at_most=True, digits=0),
        str(passes[0]),
        spread(floors) if floors else "",
        "" if ratio is None else judge(ratio, goal, at_most=True),
    )


def _judge(theirs: float, ours: float, goal: float | None, floors: Sequence[Floor]) -> tuple[str, str]:
    """Return the ratio with its goal, and the seconds that we need to reach it.

    A goal is out of reach, not missed, where one SHA-256 of the result takes longer: nothing can be faster.
    """
    ratio = judge(theirs / ours, goal)
    if goal is None:
        return ratio, ""
    needed = theirs / goal
    if floors and needed < median(floor.hash for floor in floors):
        ratio = ratio.replace("missed", "out of reach")
    return ratio, f"{needed:.2f}"


def _tell_difference(peer: Peer, difference: Difference | None) -> str:
    settings = "" if peer.same is None else "same settings"
    parts = (None if difference is None else str(difference), settings, peer.differs)
    return "; ".join(part for part in parts if part)


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _head(names: str) -> list[str]:
    n_texts: Callable[[str], bool] = lambda name: name in ("method", "peer", "entries that differ")  # noqa: E731
    columns = [name.strip() for name in names.strip("| ").split("|")]
    return [names, "|" + "|".join("---" if n_texts(name) else "---:" for name in columns) + "|"]
