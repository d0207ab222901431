"""Breadcrumbs: parameters chosen on two tasks, frozen, and tasks added one by one.

Source: Davari & Belilovsky 2023, arXiv:2312.06795, section 4.3, figure 4.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from matplotlib.figure import Figure

from benchmarks.evidence import accuracy
from benchmarks.evidence.accuracy import plain
from benchmarks.evidence.laboratory import Laboratory, choose
from benchmarks.evidence.merging import Merges
from workers.figures import lines, style

NAME = "breadcrumbs"
TITLE = "Breadcrumbs: tasks added one by one"

N_FIRST = 2
COEFFICIENTS = (0.5, 0.8, 1.2, 1.8)
GRIDS: Mapping[str, Mapping[str, Sequence[float]]] = {
    "breadcrumbs": {"density": (0.15, 0.5, 0.85), "scaling_coefficient": COEFFICIENTS},
    "ties": {"density": (0.1, 0.2, 0.4), "scaling_coefficient": (1.0, 1.5, 2.0)},
    "task_arithmetic": {"scaling_coefficient": COEFFICIENTS},
}
LABELS = {"breadcrumbs": "Breadcrumbs", "ties": "TIES", "task_arithmetic": "task arithmetic"}


def find(laboratory: Laboratory) -> dict[str, Any]:
    """Tune on the first tasks, freeze, add; and tune again at every step. Return everything as JSON."""
    merges = laboratory.experts
    return {
        "tasks": [task.spec.name for task in laboratory.suite.tasks],
        "individual": plain(merges.individual("test")),
        "curves": [_curve(merges, method) for method in GRIDS],
    }


def _curve(merges: Merges, method: str) -> dict[str, Any]:
    print(f"adding tasks to {method}", flush=True)
    names, grid = list(GRIDS[method]), GRIDS[method].values()
    candidates = [dict(zip(names, values, strict=True)) for values in product(*grid)]
    first = choose(merges, method, candidates, merges.all[:N_FIRST]).parameters
    points: list[dict[str, Any]] = []
    for size in range(N_FIRST, len(merges.all) + 1):
        models = merges.all[:size]
        again = [one for one in candidates if all(one[name] == first[name] for name in names[:-1])]
        tuned = first if size == N_FIRST else choose(merges, method, again, models).parameters
        points.append(
            {
                "n_tasks": size,
                "frozen": plain(merges.merge(method, first, "test", models)),
                "retuned": plain(merges.merge(method, tuned, "test", models)),
                "retuned_parameters": tuned,
            }
        )
    return {"method": method, "frozen_parameters": first, "n_tried": len(candidates), "points": points}


# --- telling --------------------------------------------------------------------------------------------------------


def draw(found: Mapping[str, Any]) -> dict[str, Figure]:
    """Return normalized accuracy over the number of tasks, frozen and tuned again."""
    figure, axes = style.new_figure(2, width=14.0, height=5.4)
    sizes = [float(point["n_tasks"]) for point in found["curves"][0]["points"]]
    for panel, kind, title in zip(axes, ("frozen", "retuned"), ("Frozen after two tasks", "Tuned again"), strict=True):
        curves = {LABELS[curve["method"]]: _normalized(found, curve, kind) for curve in found["curves"]}
        lines.draw_lines(panel, sizes, curves)
        panel.set_xticks(sizes, [f"{size:.0f}" for size in sizes])
        panel.set(xlabel="merged tasks", ylabel="accuracy / individual")
        panel.set_title(title)
    low = min(panel.get_ylim()[0] for panel in axes)
    high = max(panel.get_ylim()[1] for panel in axes)
    for panel in axes:
        panel.set_ylim(low, high)
    return {NAME: figure}


def _normalized(found: Mapping[str, Any], curve: Mapping[str, Any], kind: str) -> list[float]:
    return [accuracy.normalized(point[kind], found["individual"]) for point in curve["points"]]


def tell(found: Mapping[str, Any]) -> str:
    """Return the section's text."""
    sizes = [point["n_tasks"] for point in found["curves"][0]["points"]]
    rows = "\n".join(_row(found, curve, kind) for curve in found["curves"] for kind in ("frozen", "retuned"))
    last = {curve["method"]: curve["points"][-1] for curve in found["curves"]}
    costs = ", ".join(
        f"{LABELS[name]} {100 * (accuracy.mean(point['frozen']) - accuracy.mean(point['retuned'])):+.1f}"
        for name, point in last.items()
    )
    first = ", ".join(found["tasks"][:N_FIRST])
    return f"""Parameters are chosen on the validation splits of the first two tasks ({first}): density
and coefficient of Breadcrumbs and TIES, the coefficient of task arithmetic. Tuned again is the coefficient alone. Tasks
are added in one order, that of their names. Normalized accuracy on the test splits of the merged tasks:

| method | {" | ".join(f"{size} tasks" for size in sizes)} |
|---|{"---:|" * len(sizes)}
{rows}

**Finding**: with all tasks merged, freezing costs or gains, in points against tuning again: {costs};
half an interval of one mean is {100 * accuracy.half_width(last["breadcrumbs"]["frozen"]):.1f}.
"""


def _row(found: Mapping[str, Any], curve: Mapping[str, Any], kind: str) -> str:
    values = " | ".join(f"{value:.3f}" for value in _normalized(found, curve, kind))
    if kind == "retuned":
        return f"| {LABELS[curve['method']]}, tuned again | {values} |"
    setting = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in curve["frozen_parameters"].items())
    return f"| {LABELS[curve['method']]}, frozen ({setting}) | {values} |"
