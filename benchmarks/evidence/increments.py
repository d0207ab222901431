"""Breadcrumbs: parameters chosen on two tasks, frozen, and tasks added one by one.

Source: Davari & Belilovsky 2023, arXiv:2312.06795, section 4.3, figure 4.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any

from matplotlib.figure import Figure
from pydantic import JsonValue

from benchmarks.evidence import accuracy
from benchmarks.evidence.accuracy import plain
from benchmarks.evidence.brief import N_TEXTS
from benchmarks.evidence.laboratory import Laboratory, choose
from benchmarks.evidence.merging import Merges
from benchmarks.evidence.processes import Part
from workers.figures import lines, style

NAME = "breadcrumbs"
TITLE = "Breadcrumbs: tasks added one by one"

N_FIRST = 2
N_VALIDATION = 128  # texts of each task
# 0.5 and 0.8 of Breadcrumbs and 1.5 of TIES were tried (2026-11-30): never chosen
GRIDS: Mapping[str, Mapping[str, Sequence[float]]] = {
    "breadcrumbs": {"density": (0.15, 0.85), "scaling_coefficient": (1.2, 1.8, 2.5, 3.5)},
    "ties": {"density": (0.1, 0.3), "scaling_coefficient": (1.0, 2.0, 2.5)},
    "task_arithmetic": {"scaling_coefficient": (0.5, 0.8, 1.2, 1.8)},
}
LABELS = {"breadcrumbs": "Breadcrumbs", "ties": "TIES", "task_arithmetic": "task arithmetic"}


def parts() -> Sequence[Part]:
    """Return what can be measured at once."""
    return [partial(_curve, method=method) for method in GRIDS]


def find(laboratory: Laboratory) -> dict[str, Any]:
    """Tune on the first tasks, freeze, add; and tune again at every step. Return everything as JSON."""
    merges = laboratory.experts_in_brief
    return {
        "tasks": [task.spec.name for task in laboratory.suite.tasks],
        "individual": plain(merges.individual("test")),
        "curves": [_curve(laboratory, method) for method in GRIDS],
    }


def _curve(laboratory: Laboratory, method: str) -> dict[str, Any]:
    merges = laboratory.experts_in_brief
    names, grid = list(GRIDS[method]), GRIDS[method].values()
    candidates = [dict(zip(names, values, strict=True)) for values in product(*grid)]
    first = choose(merges, method, candidates, merges.all[:N_FIRST]).parameters
    again = [one for one in candidates if all(one[name] == first[name] for name in names[:-1])]
    points: list[dict[str, Any]] = []
    for size in range(N_FIRST, len(merges.all) + 1):
        models = merges.all[:size]
        tuned = choose(merges, method, again, models).parameters if size > N_FIRST else first
        points.append(
            {
                "n_tasks": size,
                "frozen": plain(merges.merge(method, first, "test", models)),
                "tuned": plain(merges.merge(method, tuned, "test", models)),
                "coefficient": tuned["scaling_coefficient"],
            }
        )
    return {
        "method": method,
        "grid": {name: list(values) for name, values in GRIDS[method].items()},
        "frozen_parameters": first,
        "margin": _margin(merges, method, again),
        "points": points,
    }


def _margin(merges: Merges, method: str, candidates: Sequence[Mapping[str, JsonValue]]) -> int:
    """Return by how many validation texts of the first tasks the chosen coefficient is ahead of the next one."""
    counts = [merges.merge(method, one, "validation", merges.all[:N_FIRST]) for one in candidates]
    correct = sorted(sum(pair[0] for pair in one.values()) for one in counts)
    return correct[-1] - correct[-2]


# --- telling --------------------------------------------------------------------------------------------------------


def draw(found: Mapping[str, Any]) -> dict[str, Figure]:
    """Return normalized accuracy over the number of tasks: chosen on the first of them, and the coefficient anew."""
    figure, both = style.new_figure(2, width=14.0, height=5.4)
    both[1].sharey(both[0])
    sizes = [float(point["n_tasks"]) for point in found["curves"][0]["points"]]
    titles = {"frozen": f"Parameters frozen after {N_FIRST} tasks", "tuned": "Coefficient tuned again at each"}
    for axes, (kind, title) in zip(both, titles.items(), strict=True):
        lines.draw_lines(
            axes, sizes, {LABELS[curve["method"]]: _normalized(found, curve, kind) for curve in found["curves"]}
        )
        axes.set_xticks(sizes, [f"{size:.0f}" for size in sizes])
        axes.set(xlabel="merged tasks", ylabel="accuracy / individual")
        axes.set_title(title)
    return {NAME: figure}


def _normalized(found: Mapping[str, Any], curve: Mapping[str, Any], kind: str) -> list[float]:
    """Return normalized accuracy over the number of tasks. kind: frozen or tuned."""
    return [accuracy.normalized(point[kind], found["individual"]) for point in curve["points"]]


def tell(found: Mapping[str, Any]) -> str:
    """Return the section's text."""
    sizes = [point["n_tasks"] for point in found["curves"][0]["points"]]
    rows = "\n".join(row for curve in found["curves"] for row in _rows(found, curve))
    first = ", ".join(found["tasks"][:N_FIRST])
    half = 100 * accuracy.half_width(found["curves"][0]["points"][-1]["frozen"])
    return f"""Parameters are chosen on the validation splits of the first two tasks ({first}): density
and coefficient of Breadcrumbs and TIES, the coefficient of task arithmetic. Tasks are added in one order, that of
their names; frozen parameters stay as they are, or the coefficient is tuned again on all tasks so far. Normalized
accuracy on the first {N_TEXTS} test texts of the merged tasks:

| method | {" | ".join(f"{size} tasks" for size in sizes)} |
|---|{"---:|" * len(sizes)}
{rows}

\\* the end of the grid: {_tell_grids(found)}.
Beyond it, 0.5 and 0.8 of Breadcrumbs were tried in earlier runs and never chosen.

{_verdict(found, half)}
"""


def _tell_grids(found: Mapping[str, Any]) -> str:
    """Return the coefficients that each method was given."""
    grids = {
        LABELS[curve["method"]]: ", ".join(f"{one:g}" for one in curve["grid"]["scaling_coefficient"])
        for curve in found["curves"]
    }
    return "; ".join(f"{label} {grid}" for label, grid in grids.items())


def _verdict(found: Mapping[str, Any], half: float) -> str:
    """Return what freezing costs, and whether it costs Breadcrumbs less than the others, as the paper says."""
    sizes = [point["n_tasks"] for point in found["curves"][0]["points"]]
    told = "; ".join(f"{LABELS[curve['method']]} {_say(_gains(curve))}" for curve in found["curves"])
    most = {curve["method"]: max(0.0, -min(_gains(curve))) for curve in found["curves"]}
    own, others = most["breadcrumbs"], [cost for method, cost in most.items() if method != "breadcrumbs"]
    if own >= min(others):
        says = "Not so here"
    else:
        says = "So it is here" if min(others) - own > half else "So it looks here, but within half an interval"
    costs = ", ".join(f"{LABELS[method]} {cost:.1f}" for method, cost in most.items())
    last = ", ".join(
        f"{LABELS[curve['method']]} {_normalized(found, curve, 'frozen')[-1]:.3f}" for curve in found["curves"]
    )
    margins = ", ".join(f"{LABELS[curve['method']]} {curve['margin']}" for curve in found["curves"])
    return f"""**Finding**: frozen parameters score, in points against the coefficient that is tuned again, with
{_list(sizes[1:])} tasks: {told}. Half an interval of one mean is {half:.1f}.
The paper says that Breadcrumbs' parameters, once chosen, hold while tasks are added, and that those of other methods
have to be tuned again. {says}: the most that freezing costs is {costs} points;
frozen, with all {sizes[-1]} tasks, they score {last}.
But what is frozen rests on few texts: of the {N_FIRST * N_VALIDATION} validation texts of the first {N_FIRST} tasks the
chosen coefficient has this many more right than the next best one (of equal ones the first is taken): {margins}."""


def _list(sizes: Sequence[int]) -> str:
    return ", ".join(map(str, sizes[:-1])) + f" and {sizes[-1]}"


def _gains(curve: Mapping[str, Any]) -> list[float]:
    """Return frozen minus tuned again in points, beyond the first tasks."""
    return [100 * (accuracy.mean(one["frozen"]) - accuracy.mean(one["tuned"])) for one in curve["points"][1:]]


def _say(gains: Sequence[float]) -> str:
    return ", ".join(f"{gain:+.1f}" for gain in gains)


def _rows(found: Mapping[str, Any], curve: Mapping[str, Any]) -> list[str]:
    label = LABELS[curve["method"]]
    ends = {name: (min(values), max(values)) for name, values in curve["grid"].items()}
    setting = ", ".join(
        f"{name.replace('_', ' ')} {value:g}{_star(value, ends[name]) if name == 'scaling_coefficient' else ''}"
        for name, value in curve["frozen_parameters"].items()
    )
    frozen = " | ".join(f"{value:.3f}" for value in _normalized(found, curve, "frozen"))
    tuned = " | ".join(
        f"{value:.3f} ({point['coefficient']:g}{_star(point['coefficient'], ends['scaling_coefficient'])})"
        for value, point in zip(_normalized(found, curve, "tuned"), curve["points"], strict=True)
    )
    return [f"| {label}, frozen ({setting}) | {frozen} |", f"| {label}, coefficient tuned again | {tuned} |"]


def _star(value: float, ends: tuple[float, float]) -> str:
    """Mark a value at an end of its grid."""
    return r"\*" if value in ends else ""
