"""Writes docs/suite.md from the results."""

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Any

from benchmarks.suite.recipes import COEFFICIENT, SETTINGS, SHORT_GRIDS

HEAD = """# All methods on five real tasks

Written by `make suite-methods`; do not edit. MiniLM (22.7M parameters) is fine-tuned on each of the five tasks of
`examples/tasks` (technique `full`, its defaults, seed {seed}), the five models are merged by every method that takes
them, and each result is measured on 256 test items per task. A `scaling_coefficient`, where there is one, is chosen on
the validation splits (128 items per task) by walking uphill over a grid; all other parameters are the defaults,
but for {settings}. By {short} a merge takes as long as all measurements
of another row: there the grid has three values.

Accuracy in %. *Normalized* is the mean over tasks of accuracy divided by that of the model fine-tuned on
the task. One seed, and a standard error of about {stderr:.1f} points on a mean: **differences of a point or two mean
nothing**. The tasks are small, the encoder too; this says that the methods work, not which is best.

"""

ALIKE = """
Some rows agree in every count. `dare_linear` and `della_linear` drop entries at random and scale up what is left: the
sum of `task_arithmetic`, but for noise that mostly averages out within a layer. `awd_task_arithmetic` is task
arithmetic with slightly other weights, since these task vectors are nearly orthogonal already. `karcher` and
`multislerp` are two means on one sphere. The models differ, too little to show among 256 items of a task.
"""


def render(rows: Sequence[Mapping[str, Any]], left_out: Mapping[str, str], *, seed: int) -> str:
    """Return the page."""
    individual = next(row for row in rows if row["method"] == "individual")
    tasks = list(individual["counts"])
    errors = [
        sqrt(_share(individual, task) * (1 - _share(individual, task)) / individual["counts"][task][1])
        for task in tasks
    ]
    stderr = 100 * sqrt(sum(error * error for error in errors)) / len(tasks)
    lines = [
        f"| model | {' | '.join(tasks)} | mean | normalized | chosen |",
        f"|---|{'---:|' * len(tasks)}---:|---:|---|",
        *(_row(row, tasks, individual) for row in _ordered(rows)),
    ]
    kinds = "\nMethods marked *per task* keep a patch for each task, and each task is measured with its own.\n" + ALIKE
    rest = "".join(f"- `{name}`: {reason}\n" for name, reason in sorted(left_out.items()))
    head = HEAD.format(seed=seed, stderr=stderr, settings=_tell_settings(), short=_join(sorted(SHORT_GRIDS)))
    return head + "\n".join(lines) + "\n" + kinds + f"\nNot in the table:\n\n{rest}"


def _tell_settings() -> str:
    told = [
        f"{name} {value:g} of `{method}`" for method, own in sorted(SETTINGS.items()) for name, value in own.items()
    ]
    return " and ".join(told)


def _join(names: Sequence[str]) -> str:
    return " or ".join(f"`{name}`" for name in names)


def _ordered(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the references first, then the methods by their mean."""
    references = [row for row in rows if "produces" not in row]
    methods = [row for row in rows if "produces" in row]
    return references + sorted(methods, key=lambda row: (-_mean(row), row["method"]))


def _row(row: Mapping[str, Any], tasks: Sequence[str], individual: Mapping[str, Any]) -> str:
    name = row["method"]
    if "produces" in row:
        name = f"[`{name}`](methods/{name}.md)" + (" *per task*" if row["produces"] == "multitask" else "")
    values = " | ".join(f"{100 * _share(row, task):.1f}" for task in tasks)
    normalized = sum(_share(row, task) / _share(individual, task) for task in tasks) / len(tasks)
    chosen = f"{row['parameters'][COEFFICIENT]:g}" if COEFFICIENT in row.get("parameters", {}) else ""
    return f"| {name} | {values} | {100 * _mean(row):.1f} | {normalized:.3f} | {chosen} |"


def _share(row: Mapping[str, Any], task: str) -> float:
    correct, total = row["counts"][task]
    return float(correct / total)


def _mean(row: Mapping[str, Any]) -> float:
    return sum(_share(row, task) for task in row["counts"]) / len(row["counts"])
