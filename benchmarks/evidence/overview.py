"""The table of methods and tasks, the sweep's hump, and the trend over the number of tasks.

Source: Ilharco et al. 2022, arXiv:2212.04089, for the sweep; Davari & Belilovsky 2023, arXiv:2312.06795, figure 3, for
the trend.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from app.domain.catalog import load_catalog
from benchmarks.evidence import accuracy
from benchmarks.evidence.accuracy import plain
from benchmarks.evidence.brief import N_TEXTS
from benchmarks.evidence.disentanglement import COEFFICIENTS
from benchmarks.evidence.laboratory import Laboratory, choose, round_robin
from benchmarks.evidence.processes import Part
from benchmarks.suite.rows import REFERENCES, measure_row, read_row
from workers.figures import bands, lines, style
from workers.figures.bands import Band

NAME = "overview"
TITLE = "The table, the hump, the trend"

SHOWN = (
    "average", "task_arithmetic", "awd_task_arithmetic", "ties", "breadcrumbs", "consensus_ta", "tsv_m", "iso_c", "pcb",
    "peru_fft",
)  # fmt: skip
N_SUBSETS = 2


def rows() -> Sequence[Part]:
    """Return the rows of the suite's table that are shown and not measured yet."""
    names = [name for name in (*REFERENCES, *SHOWN) if read_row(name) is None]
    return [partial(_measure_row, name=name) for name in names]


def parts() -> Sequence[Part]:
    """Return what can be measured at once: the trend, which begins with every point of the sweep."""
    return [_trend]


def find(laboratory: Laboratory) -> dict[str, Any]:
    """Take the table from the suite, measure the sweep and the trend; return everything as JSON."""
    found = read_rows(laboratory)
    return {
        "rows": [found[name] for name in (*REFERENCES, *SHOWN)],
        "sweep": _sweep(laboratory),
        "trend": _trend(laboratory),
    }


def read_rows(laboratory: Laboratory) -> dict[str, Any]:
    """Return the suite's rows that are measured, by method."""
    names = [*REFERENCES, *(card.name for card in load_catalog().methods)]
    found = {name: read_row(name) for name in names}
    return {name: row for name, row in found.items() if row is not None}


def _measure_row(laboratory: Laboratory, *, name: str) -> None:
    measure_row(name, laboratory.folder.parent)


def _sweep(laboratory: Laboratory) -> list[dict[str, Any]]:
    merges = laboratory.experts
    return [
        {"coefficient": one, "validation": plain(merges.merge("task_arithmetic", _scaled(one), "validation"))}
        for one in COEFFICIENTS
    ]


def _scaled(coefficient: float) -> dict[str, Any]:
    return {"scaling_coefficient": coefficient}


def _trend(laboratory: Laboratory) -> list[dict[str, Any]]:
    """Return merges of fewer models on their own tasks; the coefficient is the one of all five."""
    merges = laboratory.experts_in_brief
    parameters = choose(laboratory.experts, "task_arithmetic", [_scaled(one) for one in COEFFICIENTS]).parameters
    own, names = merges.individual("test"), [task.spec.name for task in laboratory.suite.tasks]
    subsets = [
        models for size in range(2, len(merges.all) + 1) for models in round_robin(len(merges.all), size, N_SUBSETS)
    ]
    return [
        {
            "models": list(models),
            "individual": plain({names[place]: own[names[place]] for place in models}),
            "task_arithmetic": plain(merges.merge("task_arithmetic", parameters, "test", models)),
            "average": plain(merges.merge("average", {}, "test", models)),
        }
        for models in subsets
    ]


def broken_orders(found: Mapping[str, Any]) -> list[str]:
    """Return the orders that every paper on task vectors shows, where the numbers do not hold them.

    They hold beyond the error of 1280 test inputs and the choice of a seed; finer ones need more seeds.
    """
    points = {row["method"]: 100 * accuracy.mean(row["counts"]) for row in found["rows"]}
    hump = {point["coefficient"]: accuracy.mean(point["validation"]) for point in found["sweep"]}
    top = max(hump, key=hump.__getitem__)
    orders = {
        "task arithmetic is no more than half a point above the individual models": (
            points["individual"] >= points["task_arithmetic"] - 0.5
        ),
        "task arithmetic is 3 points above the average": points["task_arithmetic"] >= points["average"] + 3,
        "the average is 3 points above the pre-trained model": points["average"] >= points["pre-trained"] + 3,
        "the sweep of task arithmetic has its top between 0.2 and 1": min(hump) <= 0.2 < top < 1.0 <= max(hump),
    }
    return [order for order, holds in orders.items() if not holds]


# --- telling --------------------------------------------------------------------------------------------------------


def draw(found: Mapping[str, Any]) -> dict[str, Figure]:
    """Return the hump of the sweep, and the trend with the range over subsets."""
    figure, axes = style.new_figure(2, width=14.0, height=5.4)
    sweep = found["sweep"]
    curves = {
        task: [100 * accuracy.share(point["validation"], task) for point in sweep] for task in sweep[0]["validation"]
    } | {"mean": [100 * accuracy.mean(point["validation"]) for point in sweep]}
    lines.draw_lines(axes[0], [point["coefficient"] for point in sweep], curves)
    axes[0].set(xlabel="scaling coefficient", ylabel="accuracy on validation, %")
    axes[0].set_title("Task arithmetic over its coefficient")
    _draw_trend(axes[1], found)
    return {NAME: figure}


def _draw_trend(axes: Axes, found: Mapping[str, Any]) -> None:
    sizes = sorted({len(one["models"]) for one in found["trend"]})
    ranges = {
        method.replace("_", " "): _band([_relative(found, method, size) for size in sizes])
        for method in ("task_arithmetic", "average")
    }
    bands.draw_bands(axes, [float(size) for size in sizes], ranges)
    bands.draw_level(axes, 1.0, "individual models")
    axes.set_xticks(sizes)
    axes.set(xlabel="merged tasks", ylabel="accuracy / individual")
    axes.set_title("Mean and range over subsets")
    axes.legend()


def _band(values: list[list[float]]) -> Band:
    return Band([fmean(one) for one in values], [min(one) for one in values], [max(one) for one in values])


def _relative(found: Mapping[str, Any], method: str, size: int) -> list[float]:
    return [accuracy.normalized(one[method], one["individual"]) for one in found["trend"] if len(one["models"]) == size]


def _row(found: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    row: Mapping[str, Any] = next(row for row in found["rows"] if row["method"] == name)
    return row


def tell(found: Mapping[str, Any]) -> str:
    """Return the section's text."""
    own = _row(found, "individual")["counts"]
    tasks = list(own)
    table = "\n".join(_tell_row(row, own) for row in found["rows"])
    peak = max(found["sweep"], key=lambda point: accuracy.mean(point["validation"]))
    return f"""Some methods of the [suite](suite.md), with half the 95 % interval of each mean (of the
test texts that were drawn; one seed of training). Accuracy on test in %:

| model | {" | ".join(tasks)} | mean | normalized |
|---|{"---:|" * len(tasks)}---:|---:|
{table}

The sweep of task arithmetic has its top at {peak["coefficient"]:g}. The trend keeps the
coefficient that is best for all five, over at most {_count_subsets(found)} subsets
of a size, and is measured on the first {N_TEXTS} test texts of each task.
"""


def _count_subsets(found: Mapping[str, Any]) -> int:
    return max(Counter(len(one["models"]) for one in found["trend"]).values())


def _tell_row(row: Mapping[str, Any], own: accuracy.Counts) -> str:
    counts = row["counts"]
    values = " | ".join(accuracy.percent(accuracy.share(counts, task)) for task in counts)
    mean = f"{accuracy.percent(accuracy.mean(counts))} ± {100 * accuracy.half_width(counts):.1f}"
    return f"| {row['method'].replace('_', ' ')} | {values} | {mean} | {accuracy.normalized(counts, own):.3f} |"
