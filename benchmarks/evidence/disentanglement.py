"""AWD: how orthogonal do task vectors become, and does it help task arithmetic and AdaMerging?

Source: Xiong et al. 2024, arXiv:2411.18729, section 5; Yang et al. 2023, arXiv:2310.02575, for AdaMerging.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from benchmarks.evidence import accuracy
from benchmarks.evidence.accuracy import plain
from benchmarks.evidence.laboratory import Laboratory
from benchmarks.evidence.merging import Lesson
from benchmarks.evidence.processes import Part
from workers.figures import lines, style

NAME = "awd"
TITLE = "AWD: orthogonal task vectors"

COEFFICIENTS = (0.1, 0.3, 0.5, 0.7, 0.9, 1.2, 1.6)
METHODS = ("task_arithmetic", "awd_task_arithmetic")
LABELS = {"task_arithmetic": "task arithmetic", "awd_task_arithmetic": "with AWD"}
ADAMERGING: Mapping[str, Any] = {"steps": 40, "learning_rate": 1e-2, "batch_size": 8}
TRANSFORMS: Mapping[str, tuple[str, ...]] = {"adamerging": (), "awd_adamerging": ("awd",)}


def parts() -> Sequence[Part]:
    """Return what can be measured at once, what takes longest first."""
    return [*(partial(learn, name=name) for name in TRANSFORMS), *(partial(_curve, method=name) for name in METHODS)]


def find(laboratory: Laboratory) -> dict[str, Any]:
    """Measure the curves on validation, the best of each and AdaMerging on test; return everything as JSON."""
    merges = laboratory.experts
    report: Any = merges.report("awd_task_arithmetic", {})  # Any: a job's report
    return {
        "redundancy": report["redundancy"],
        "curves": [_curve(laboratory, method) for method in METHODS],
        "individual": plain(merges.individual("test")),
        "learned": [learn(laboratory, name) for name in TRANSFORMS],
    }


def _curve(laboratory: Laboratory, method: str) -> dict[str, Any]:
    merges = laboratory.experts
    points: list[dict[str, Any]] = [
        {"coefficient": one, "validation": plain(merges.merge(method, {"scaling_coefficient": one}, "validation"))}
        for one in COEFFICIENTS
    ]
    best = max(points, key=lambda point: accuracy.mean(point["validation"]))
    test = plain(merges.merge(method, {"scaling_coefficient": best["coefficient"]}, "test"))
    return {"method": method, "points": points, "coefficient": best["coefficient"], "test": test}


def learn(laboratory: Laboratory, name: str) -> dict[str, Any]:
    """Return what AdaMerging, with or without AWD, scores on test."""
    found = laboratory.experts.learn(Lesson("adamerging", ADAMERGING, transforms=TRANSFORMS[name]))
    return {"method": name, "learned": found.told, "test": plain(found.test)}


# --- telling --------------------------------------------------------------------------------------------------------


def draw(found: Mapping[str, Any]) -> dict[str, Figure]:
    """Return the curves of task arithmetic with and without AWD."""
    figure, (axes,) = style.new_figure(1, width=8.5, height=5.2)
    curves = {
        LABELS[curve["method"]]: [100 * accuracy.mean(point["validation"]) for point in curve["points"]]
        for curve in found["curves"]
    }
    lines.draw_lines(axes, [point["coefficient"] for point in found["curves"][0]["points"]], curves)
    axes.set(xlabel="scaling coefficient", ylabel="accuracy on validation, %")
    axes.set_title("Task arithmetic with and without AWD")
    return {NAME: figure}


def tell(found: Mapping[str, Any]) -> str:
    """Return the section's text."""
    individual = found["individual"]
    rows = [
        (f"{LABELS[curve['method']]}, coefficient {curve['coefficient']:g}", curve["test"]) for curve in found["curves"]
    ] + [(one["method"].replace("_", "-"), one["test"]) for one in found["learned"]]
    table = "\n".join(
        f"| {name} | {accuracy.percent(accuracy.mean(test))} ± {100 * accuracy.half_width(test):.1f} "
        f"| {accuracy.normalized(test, individual):.3f} |"
        for name, test in rows
    )
    before, after = (found["redundancy"][f"mean_absolute_cosine_{when}"] for when in ("before", "after"))
    steps, rate, batch = (ADAMERGING[key] for key in ("steps", "learning_rate", "batch_size"))
    return f"""Mean |cosine| of the pairs of task vectors: {before:.3f} before, {after:.3f} after the redundant vector
is subtracted. Coefficients are chosen on validation; AdaMerging by layer takes {steps} steps of {batch} texts per task
at a learning rate of {rate:g} on the validation split (the papers: 500 steps on the test split).

| merge | accuracy on test, % | normalized |
|---|---:|---:|
{table}

{_verdict(dict(rows))}
"""


def _verdict(rows: Mapping[str, Any]) -> str:
    arithmetic, awd, plain_learned, awd_learned = rows.values()
    return (
        f"**Finding**: AWD changes task arithmetic by {_points(awd, arithmetic)} points and AdaMerging by "
        f"{_points(awd_learned, plain_learned)}; half an interval of one mean is "
        f"{100 * accuracy.half_width(arithmetic):.1f}.\nTask vectors that are nearly orthogonal leave AWD little to do."
    )


def _points(one: accuracy.Counts, other: accuracy.Counts) -> str:
    return f"{100 * (accuracy.mean(one) - accuracy.mean(other)):+.1f}"
