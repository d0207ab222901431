"""AWD: how orthogonal do task vectors become, and does it help task arithmetic and AdaMerging?

Source: Xiong et al. 2024, arXiv:2411.18729, section 5; Yang et al. 2023, arXiv:2310.02575, for AdaMerging.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from app.domain.catalog import load_catalog
from benchmarks.evidence import accuracy
from benchmarks.evidence.accuracy import plain
from benchmarks.evidence.laboratory import Laboratory
from benchmarks.evidence.lessons import Lesson
from benchmarks.evidence.processes import Part
from workers.figures import lines, matrices, style
from workers.figures.matrices import Scale

NAME = "awd"
TITLE = "AWD: orthogonal task vectors"

COEFFICIENTS = (0.1, 0.3, 0.5, 0.7, 0.9, 1.2, 1.6)
PENALTIES = (0.01, 0.0)  # beside the method's default, 0.1
SMALL_COSINE = 0.001
SHOWN_COSINE = 0.15  # at the ends of the colors
METHODS = ("task_arithmetic", "awd_task_arithmetic")
LABELS = {"task_arithmetic": "task arithmetic", "awd_task_arithmetic": "with AWD"}
ADAMERGING: Mapping[str, Any] = {"steps": 40, "learning_rate": 1e-2, "batch_size": 8}
TRANSFORMS: Mapping[str, tuple[str, ...]] = {"adamerging": (), "awd_adamerging": ("awd",)}


def parts() -> Sequence[Part]:
    """Return what can be measured at once, what takes longest first."""
    return [
        *(partial(learn, name=name) for name in TRANSFORMS),
        partial(_curve, method="task_arithmetic"),
        _weigh,
    ]


def find(laboratory: Laboratory) -> dict[str, Any]:
    """Measure the curves on validation, the best of each and AdaMerging on test; return everything as JSON."""
    return {
        "weighed": _weigh(laboratory),
        "curves": [_curve(laboratory, method) for method in METHODS],
        "individual": laboratory.individual,
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


def _weigh(laboratory: Laboratory) -> list[dict[str, Any]]:
    """Return AWD by each weight of the redundant vector's norm, the default first: cosines, and validation.

    The coefficient is the one that is best by default.
    """
    merges, method = laboratory.experts, METHODS[1]
    coefficient = _curve(laboratory, method)["coefficient"]
    default = load_catalog().method(method).parameters["properties"]["norm_penalty"]["default"]
    found = []
    for given in ({}, *({"norm_penalty": one} for one in PENALTIES)):
        report: Any = merges.report(method, given)  # Any: a job's report
        scored = merges.merge(method, {**given, "scaling_coefficient": coefficient}, "validation")
        found.append(
            {
                "norm_penalty": given.get("norm_penalty", default),
                "redundancy": report["redundancy"],
                "validation": plain(scored),
            }
        )
    return found


def learn(laboratory: Laboratory, name: str) -> dict[str, Any]:
    """Return what AdaMerging, with or without AWD, scores on test."""
    found = laboratory.experts.learn(Lesson("adamerging", ADAMERGING, transforms=TRANSFORMS[name]))
    return {"method": name, "learned": found.told, "test": plain(found.test)}


# --- telling --------------------------------------------------------------------------------------------------------


def draw(found: Mapping[str, Any]) -> dict[str, Figure]:
    """Return the curves of task arithmetic with and without AWD, and the cosines before and after."""
    figure, (axes,) = style.new_figure(1, width=8.5, height=5.2)
    curves = {
        LABELS[curve["method"]]: [100 * accuracy.mean(point["validation"]) for point in curve["points"]]
        for curve in found["curves"]
    }
    lines.draw_lines(axes, [point["coefficient"] for point in found["curves"][0]["points"]], curves)
    axes.set(xlabel="scaling coefficient", ylabel="accuracy on validation, %")
    axes.set_title("Task arithmetic with and without AWD")
    return {NAME: figure, f"{NAME}_cosines": _draw_cosines(found)}


def _draw_cosines(found: Mapping[str, Any]) -> Figure:
    """Return the matrices of cosines before and after."""
    redundancy = found["weighed"][0]["redundancy"]
    shown = {"Cosines before AWD": redundancy["cosines_before"], "After it": redundancy["cosines_after"]}
    scale = Scale(-SHOWN_COSINE, SHOWN_COSINE, style.DIVERGING, "cosine", decimals=3)
    figure, panels = style.new_figure(len(shown), width=14.0, height=5.6)
    for axes, (title, cosines) in zip(panels, shown.items(), strict=True):
        others = [
            [None if row == column else one for column, one in enumerate(line)] for row, line in enumerate(cosines)
        ]
        matrices.draw_matrix(axes, others, list(found["individual"]), scale)
        axes.set_title(title)
    return figure


def tell(found: Mapping[str, Any]) -> str:
    """Return the section's text."""
    individual, default = found["individual"], found["weighed"][0]
    rows = [
        (f"{LABELS[curve['method']]}, coefficient {curve['coefficient']:g}", curve["test"]) for curve in found["curves"]
    ] + [(one["method"].replace("_", "-"), one["test"]) for one in found["learned"]]
    table = "\n".join(
        f"| {name} | {_percent(test)} | {accuracy.normalized(test, individual):.3f} |" for name, test in rows
    )
    mean = default["redundancy"]["mean_absolute_cosine_before"]
    steps, rate, batch = (ADAMERGING[key] for key in ("steps", "learning_rate", "batch_size"))
    before = default["redundancy"]["cosines_before"]
    return f"""\
Between the {len(_pairs(before))} pairs of task vectors the mean |cosine| is {mean:.4f}. The largest, before and
after AWD has subtracted the redundant vector: {_largest(found)}.
By the weight of that vector's norm in what AWD minimizes (`norm_penalty`, by default {default["norm_penalty"]:g}), at
the coefficient that is best by default:

| norm_penalty | mean abs. cosine after | largest after | validation, % |
|---:|---:|---:|---:|
{chr(10).join(_tell_weighed(one) for one in found["weighed"])}

Coefficients are chosen on validation; AdaMerging by layer takes {steps} steps of {batch} texts per task
at a learning rate of {rate:g} on the validation split (the papers: 500 steps on the test split).

| merge | accuracy on test, % | normalized |
|---|---:|---:|
{table}

{_verdict(found, dict(rows))}
"""


def _tell_weighed(one: Mapping[str, Any]) -> str:
    redundancy = one["redundancy"]
    largest = max(map(abs, _pairs(redundancy["cosines_after"]).values()))
    return (
        f"| {one['norm_penalty']:g} | {redundancy['mean_absolute_cosine_after']:.4f} | {largest:.3f} "
        f"| {accuracy.percent(accuracy.mean(one['validation']))} |"
    )


def _largest(found: Mapping[str, Any]) -> str:
    """Return the two largest cosines with the names of their tasks, and what the default leaves of them."""
    names = list(found["individual"])
    before, after = (_pairs(found["weighed"][0]["redundancy"][f"cosines_{when}"]) for when in ("before", "after"))
    largest = sorted(before, key=lambda pair: abs(before[pair]), reverse=True)[:2]
    told = [f"{names[i]} and {names[j]} {before[i, j]:.3f} → {after[i, j]:.3f}" for i, j in largest]
    return ", ".join(told)


def _pairs(cosines: Sequence[Sequence[float]]) -> dict[tuple[int, int], float]:
    return {(i, j): cosines[i][j] for i in range(len(cosines)) for j in range(i)}


def _verdict(found: Mapping[str, Any], rows: Mapping[str, Any]) -> str:
    arithmetic, awd, plain_learned, awd_learned = rows.values()
    half = 100 * accuracy.half_width(arithmetic)
    best = max(found["weighed"], key=lambda one: accuracy.mean(one["validation"]))
    gaps = [
        100 * (accuracy.mean(other["validation"]) - accuracy.mean(one["validation"]))
        for one, other in zip(*(curve["points"] for curve in found["curves"]), strict=True)
    ]
    coefficients = [point["coefficient"] for point in found["curves"][0]["points"]]
    return f"""\
**Finding**: AWD by its default changes task arithmetic by {_points(awd, arithmetic)} points on test and
AdaMerging by {_points(awd_learned, plain_learned)}; half an interval of one mean is {half:.1f}.
Over the whole range of coefficients, {coefficients[0]:g} to {coefficients[-1]:g}, it changes task arithmetic by
{min(gaps):+.1f} to {max(gaps):+.1f} points on validation. Of the norm penalties validation chooses
{best["norm_penalty"]:g} (of equal ones the first).
{_tell_descent(found)}"""


def _tell_descent(found: Mapping[str, Any]) -> str:
    """Return what the descent does to the cosines, and whether it is the penalty that keeps the largest."""
    default, least = found["weighed"][0]["redundancy"], found["weighed"][-1]
    before, after = (_pairs(default[f"cosines_{when}"]).values() for when in ("before", "after"))
    free = _pairs(least["redundancy"]["cosines_after"]).values()
    largest, kept, left = (max(map(abs, cosines)) for cosines in (before, after, free))
    few, more = (sum(abs(one) < SMALL_COSINE for one in cosines) for cosines in (before, after))
    n_models = len(default["cosines_before"])
    keeps = "It is" if kept - left > (largest - left) / 2 else "It is not"
    return f"""\
The descent brings small cosines to 0 (below {SMALL_COSINE:g}: {few} of {len(before)} before, {more} after) and leaves
the largest, {largest:.3f} → {kept:.3f}. {keeps} the penalty that keeps it: with a norm_penalty of
{least["norm_penalty"]:g} it is {left:.3f}. The redundant vector has one coefficient for each of the
{n_models} models, too few to bring more than {n_models} of {len(before)} cosines to 0 but by chance."""


def _percent(test: accuracy.Counts) -> str:
    return f"{accuracy.percent(accuracy.mean(test))} ± {100 * accuracy.half_width(test):.1f}"


def entropies(learned: Mapping[str, Any]) -> tuple[float, float]:
    """Return what AdaMerging minimizes, a sum of entropies over tasks: means of the first and last quarter of steps."""
    losses = [one["loss"] for one in learned["losses"]]
    quarter = max(1, len(losses) // 4)
    return fmean(losses[:quarter]), fmean(losses[-quarter:])


def _points(one: accuracy.Counts, other: accuracy.Counts) -> str:
    return f"{100 * (accuracy.mean(one) - accuracy.mean(other)):+.1f}"
