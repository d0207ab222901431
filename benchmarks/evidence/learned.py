"""Learning against not learning: are AdaMerging and Surgery above the best dense merge that looks at no data?

Surgery is measured over two merges: task arithmetic at its best coefficient, and the best without data that takes no
steps (WUDI's take minutes).

Source: Yang et al. 2023, arXiv:2310.02575 (AdaMerging); Yang et al. 2024, arXiv:2402.02705 (Surgery), table 1.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from app.domain.catalog import load_catalog
from benchmarks.evidence import accuracy, disentanglement, overview
from benchmarks.evidence.accuracy import Counts, plain
from benchmarks.evidence.disentanglement import ADAMERGING, COEFFICIENTS, TRANSFORMS
from benchmarks.evidence.laboratory import Laboratory, choose
from benchmarks.evidence.lessons import Lesson
from benchmarks.evidence.processes import Part
from workers.figures import style

NAME = "learned"
TITLE = "Learning against not learning"

SURGERY: Mapping[str, Any] = {"rank": 16, "steps": 500, "learning_rate": 1e-3, "batch_size": 16}
N_WATCHED = 64  # test texts of each task whose features are compared
WHEN = ("before", "after")
OVER = ("task arithmetic", "the best in closed form")


def parts() -> Sequence[Part]:
    """Return what can be measured at once; AdaMerging is measured for the section on AWD."""
    return [partial(_operate, over=over) for over in reversed(OVER)]  # what takes longest first


def find(laboratory: Laboratory) -> dict[str, Any]:
    """Take AdaMerging's rows, and measure Surgery over two merges; return everything as JSON."""
    rows = overview.read_rows(laboratory)
    return {
        "individual": rows["individual"]["counts"],
        "best_dense": _best_dense(laboratory),
        "learned": [disentanglement.learn(laboratory, name) for name in TRANSFORMS],
        "operated": [_operate(laboratory, over) for over in OVER],
    }


def _operate(laboratory: Laboratory, over: str) -> dict[str, Any]:
    """Return what a merge scores before and after surgery."""
    merges, shared = laboratory.experts, _shared(laboratory, over)
    found = merges.learn(Lesson("surgery", {**SURGERY, "shared": shared}), watched=N_WATCHED)
    before = merges.merge(shared["method"], shared["parameters"], "test")
    return {
        "over": over,
        "shared": shared,
        "before": plain(before),
        "test": plain(found.test),
        "learned": found.told,
        "distances": found.distances,
    }


def _shared(laboratory: Laboratory, over: str) -> dict[str, Any]:
    if over == OVER[0]:
        candidates = [{"scaling_coefficient": one} for one in COEFFICIENTS]
        return {
            "method": "task_arithmetic",
            "parameters": choose(laboratory.experts, "task_arithmetic", candidates).parameters,
        }
    best = _best_dense(laboratory, in_closed_form=True)
    return {"method": best["method"], "parameters": best["parameters"]}


def _best_dense(laboratory: Laboratory, *, in_closed_form: bool = False) -> dict[str, Any]:
    """Return the suite's row of the dense method that did best on validation, of all or of those that take no steps."""
    dense = [row for row in overview.read_rows(laboratory).values() if row.get("produces") == "dense"]
    stepless = [row for row in dense if "steps" not in load_catalog().method(row["method"]).parameters["properties"]]
    return dict(max(stepless if in_closed_form else dense, key=lambda row: row["validation"]))


# --- telling --------------------------------------------------------------------------------------------------------


def draw(found: Mapping[str, Any]) -> dict[str, Figure]:
    """Return the mean accuracy of every merge of the table, with its interval."""
    figure, (axes,) = style.new_figure(1, width=9.5, height=5.2)
    rows = dict(reversed(_rows(found).items()))
    means = [100 * accuracy.mean(counts) for counts in rows.values()]
    halves = [100 * accuracy.half_width(counts) for counts in rows.values()]
    axes.errorbar(means, list(rows), xerr=halves, fmt="o", color=style.COLORS[0], capsize=4)
    axes.axvline(100 * accuracy.mean(found["best_dense"]["counts"]), color="0.6", linestyle="--", zorder=0)
    axes.set_xlabel("mean accuracy on test, %")
    axes.set_title("Learning against not learning")
    return {NAME: figure}


def _rows(found: Mapping[str, Any]) -> dict[str, Counts]:
    """Return the counts of the table's rows by their names."""
    best = found["best_dense"]
    operated: dict[str, Counts] = {}
    for one in found["operated"]:
        method = one["shared"]["method"].replace("_", " ")
        operated |= {method: one["before"], f"surgery over {method}": one["test"]}
    learned = {one["method"].replace("_", "-"): one["test"] for one in found["learned"]}
    rows = {**operated, **learned, "individual": found["individual"]}
    return {best["method"].replace("_", " "): best["counts"]} | rows


def tell(found: Mapping[str, Any]) -> str:
    """Return the section's text."""
    best, own = found["best_dense"], found["individual"]
    table = "\n".join(
        f"| {name} | {accuracy.percent(accuracy.mean(counts))} ± {100 * accuracy.half_width(counts):.1f} "
        f"| {_points(counts, best['counts'])} | {accuracy.normalized(counts, own):.3f} |"
        for name, counts in _rows(found).items()
    )
    steps, rank = SURGERY["steps"], SURGERY["rank"]
    link = f"[`{best['method']}`](methods/{best['method']}.md)"
    return f"""The dense method without data that does best on validation is {link}.
AdaMerging is that of the section on AWD. Surgery learns a module of rank {rank} per task in {steps} steps, on the 128
validation texts without their labels (the paper: on test inputs); the merge that it corrects is measured before and
after.

| merge | accuracy on test, % | against the best without data, points | normalized |
|---|---:|---:|---:|
{table}

{_verdict(found)}
"""


def _verdict(found: Mapping[str, Any]) -> str:
    best = found["best_dense"]["counts"]
    half = 100 * accuracy.half_width(best)
    learning = {one["method"].replace("_", "-"): one["test"] for one in found["learned"]} | {
        f"surgery over {one['shared']['method'].replace('_', ' ')}": one["test"] for one in found["operated"]
    }
    above = [name for name, counts in learning.items() if 100 * (accuracy.mean(counts) - accuracy.mean(best)) > half]
    gains = ", ".join(
        f"{_points(one['test'], one['before'])} over {one['shared']['method'].replace('_', ' ')}"
        for one in found["operated"]
    )
    falls = ", ".join(_fall(one["learned"]) for one in found["operated"])
    return (
        f"**Finding**: above the best method without data by more than half an interval ({half:.1f} points): "
        f"{', '.join(above) or 'none'}.\n{_why_adamerging(found)}\n"
        f"Surgery changes the merge under it by {gains}, in points; the distance that it lowers, from the merge's\n"
        f"features to those of the individual models, falls to {falls} of what it was on the texts it learns\n"
        f"on (mean over tasks), and to {_falls_on_test(found)} on {N_WATCHED} test texts of each task. What learning "
        f"could\nwin is small here: the individual models score {_points(found['individual'], best)} points "
        "against the best method\nwithout data."
    )


def _why_adamerging(found: Mapping[str, Any]) -> str:
    """Return what AdaMerging wins over task arithmetic, and how far its entropy fell."""
    adamerging = next(one for one in found["learned"] if one["method"] == "adamerging")
    arithmetic = found["operated"][0]["before"]
    begin, end = disentanglement.entropies(adamerging["learned"])
    steps, batch = ADAMERGING["steps"], ADAMERGING["batch_size"]
    default = load_catalog().method("adamerging").parameters["properties"]
    return (
        f"AdaMerging wins {_points(adamerging['test'], arithmetic)} points over task arithmetic. Its run is short, "
        f"{steps} steps of {batch} texts where the\ndefault is {default['steps']['default']} of "
        f"{default['batch_size']['default']}, and the entropy that it minimizes (summed over tasks) is still falling:\n"
        f"{begin:.2f} in the first quarter of the steps, {end:.2f} in the last; the next section has a longer run."
    )


def _falls_on_test(found: Mapping[str, Any]) -> str:
    shares = [
        fmean(
            after / before for before, after in zip(one["distances"]["before"], one["distances"]["after"], strict=True)
        )
        for one in found["operated"]
    ]
    return ", ".join(f"{100 * share:.0f} %" for share in shares)


def _fall(learned: Any) -> str:  # Any: the report of a job
    curves = [[point["loss"] for point in one["losses"]] for one in learned["modules"]]
    shares = [fmean(losses[-len(losses) // 10 :]) / losses[0] for losses in curves]  # one batch is noisy
    return f"{100 * fmean(shares):.0f} %"


def _points(one: Counts, other: Counts) -> str:
    return f"{100 * (accuracy.mean(one) - accuracy.mean(other)):+.1f}"
