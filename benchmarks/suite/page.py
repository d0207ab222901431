"""Writes docs/suite.md from the results."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

from app.domain.catalog import load_catalog
from benchmarks.suite.groups import INDIVIDUAL, Group
from benchmarks.suite.recipes import COEFFICIENT, SETTINGS, SHORT_GRIDS, WEIGHT, sweep_of

HEAD = """# All methods on five real tasks

Written by `make suite-methods`; do not edit. MiniLM (22.7M parameters) is fine-tuned on each of the five tasks of
`examples/tasks` (technique `full`, its defaults, seed {seed}), the five models are merged by every method that takes
them, and each result is measured on 256 test items per task. A `scaling_coefficient`, where there is one, is chosen on
the validation splits (128 items per task) by walking uphill over a grid, and so is the number that *chosen* names; all
other parameters are the defaults, but for {settings}. By {short} a merge takes as long as all measurements
of another row: there the grid has three values.

Accuracy in %. *Normalized* is the mean over tasks of accuracy divided by that of the model fine-tuned on
the task. One seed, and a standard error of about {stderr:.1f} points on a mean: **differences of a point or two mean
nothing**. The tasks are small, the encoder too; this says that the methods work, not which is best.

"""

ALIKE = """
Methods marked *per task* keep a patch for each task (`lora_extract`: an adapter), and each task is measured with its
own.

Some rows agree in every count. `dare_linear` and `della_linear` drop entries at random and scale up what is left: the
sum of `task_arithmetic`, but for noise that mostly averages out within a layer. `awd_task_arithmetic` is task
arithmetic with slightly other weights, since these task vectors are nearly orthogonal already. `karcher` and
`multislerp` are two means on one sphere. The models differ, too little to show among 256 items of a task.
"""

Row = Mapping[str, Any]  # as rows.py keeps it


@dataclass(frozen=True)
class Table:
    """A group, and those of its rows that are measured."""

    group: Group
    rows: Sequence[Row]


def render(tables: Sequence[Table], left_out: Mapping[str, str], *, seed: int) -> str:
    """Return the page."""
    first, *others = [table for table in tables if table.rows]
    individual = _individual(first)
    tasks = list(individual["counts"])
    errors = [
        sqrt(_share(individual, task) * (1 - _share(individual, task)) / individual["counts"][task][1])
        for task in tasks
    ]
    stderr = 100 * sqrt(sum(error * error for error in errors)) / len(tasks)
    rest = "".join(f"- `{name}`: {reason}\n" for name, reason in sorted(left_out.items()))
    head = HEAD.format(seed=seed, stderr=stderr, settings=_tell_settings(), short=_join(sorted(SHORT_GRIDS)))
    more = "".join(f"\n## {table.group.title}\n\n{table.group.told}\n\n{_draw(table)}" for table in others)
    return f"{head}{_draw(first)}{ALIKE}{more}\n## Not in the tables\n\n{rest}"


def _draw(table: Table) -> str:
    individual = _individual(table)
    tasks = list(individual["counts"])
    lines = [
        f"| model | {' | '.join(tasks)} | mean | normalized | chosen |",
        f"|---|{'---:|' * len(tasks)}---:|---:|---|",
        *(_row(row, tasks, individual) for row in _ordered(table.rows)),
    ]
    return "\n".join(lines) + "\n"


def _individual(table: Table) -> Row:
    return next(row for row in table.rows if row["method"] == INDIVIDUAL)


def _tell_settings() -> str:
    told = [
        f"{name} {value:g} of `{method}`" for method, own in sorted(SETTINGS.items()) for name, value in own.items()
    ]
    return " and ".join(told)


def _join(names: Sequence[str]) -> str:
    return " or ".join(f"`{name}`" for name in names)


def _ordered(rows: Sequence[Row]) -> list[Row]:
    """Return the references first, then the methods by their mean."""
    references = [row for row in rows if "produces" not in row]
    methods = [row for row in rows if "produces" in row]
    return references + sorted(methods, key=lambda row: (-_mean(row), row["method"]))


def _row(row: Row, tasks: Sequence[str], individual: Row) -> str:
    name = row["method"]
    if "produces" in row:
        step = f" + [`{row['post_step']}`](steps/{row['post_step']}.md)" if "post_step" in row else ""
        name = f"[`{name}`](methods/{name}.md){step}" + (" *per task*" if _is_per_task(row) else "")
    values = " | ".join(f"{100 * _share(row, task):.1f}" for task in tasks)
    normalized = sum(_share(row, task) / _share(individual, task) for task in tasks) / len(tasks)
    return f"| {name} | {values} | {100 * _mean(row):.1f} | {normalized:.3f} | {_chosen(row)} |"


def _is_per_task(row: Row) -> bool:
    makes_adapters = row["produces"] == "adapter" and load_catalog().method(row["method"]).max_models == 1
    return bool(row["produces"] == "multitask" or makes_adapters)


def _chosen(row: Row) -> str:
    """Return what was chosen: a coefficient as it is, any other number with its name."""
    sweep = sweep_of(load_catalog().method(row["method"])) if "produces" in row else None
    value = None if sweep is None else sweep.find(row["parameters"])
    if sweep is None or value is None:
        return ""
    return f"{value:g}" if sweep.path == (COEFFICIENT,) else f"{_name(sweep.path)} {value:g}"


def _name(path: Sequence[str]) -> str:
    if path == (WEIGHT,):
        return "weight of each"
    return f"`{path[0]}`" if len(path) == 1 else f"`{path[0]}`'s coefficient"


def _share(row: Row, task: str) -> float:
    correct, total = row["counts"][task]
    return float(correct / total)


def _mean(row: Row) -> float:
    return sum(_share(row, task) for task in row["counts"]) / len(row["counts"])
