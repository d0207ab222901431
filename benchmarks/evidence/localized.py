"""Localize-and-stitch: how freely should masks learn, and are they better than the largest entries alone?

The bias that scores begin at is chosen on validation; masks are learned on the training split. No claim of the papers
that the evidence is about: it is measured apart, `--only localize_and_stitch`.

Source: He et al. 2024, arXiv:2408.13656, section 3.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from app.domain.catalog import load_catalog
from benchmarks.evidence import accuracy, overview
from benchmarks.evidence.accuracy import plain
from benchmarks.evidence.laboratory import Laboratory
from benchmarks.evidence.lessons import Lesson
from benchmarks.evidence.processes import Part
from workers.figures import lines, style

NAME = "localize_and_stitch"
TITLE = "Localize-and-stitch: how freely masks learn"

BIASES = (1.0, 5.0)
EXAMPLES = 16
START: Mapping[str, Any] = {"density": 0.01}  # as masks begin by default
DATALESS = "localize_and_stitch_dataless"


def parts() -> Sequence[Part]:
    """Return what can be measured at once."""
    return [*(partial(_point, bias=bias) for bias in BIASES), _start]


def find(laboratory: Laboratory) -> dict[str, Any]:
    """Measure each bias, and the masks of the start; return everything as JSON."""
    return {
        "start": _start(laboratory),
        "dataless": _dataless(laboratory),
        "points": [_point(laboratory, bias) for bias in BIASES],
        "individual": laboratory.individual,
    }


def _point(laboratory: Laboratory, bias: float) -> dict[str, Any]:
    lesson = Lesson("localize_and_stitch", {"sigmoid_bias": bias}, split="train", max_examples=EXAMPLES)
    found = laboratory.experts.learn(lesson)
    told: Any = found.told  # the report of a job
    kept = [one["density"] for one in told["masks"]]
    return {"sigmoid_bias": bias, "kept": kept, **{split: plain(counts) for split, counts in found.counts.items()}}


def _start(laboratory: Laboratory) -> dict[str, Any]:
    """Return what the masks score that learning begins with: the largest entries."""
    merges = laboratory.experts
    return {split: plain(merges.merge(DATALESS, START, split)) for split in ("validation", "test")}


def _dataless(laboratory: Laboratory) -> dict[str, Any]:
    """Return the suite's row of the largest entries, at the default density, which is about what learning keeps."""
    row = overview.read_rows(laboratory)[DATALESS]
    return {"density": _default(DATALESS, "density"), "validation": row["validation"], "test": row["counts"]}


def _default(method: str, parameter: str) -> float:
    return float(load_catalog().method(method).parameters["properties"][parameter]["default"])


# --- telling --------------------------------------------------------------------------------------------------------


def draw(found: Mapping[str, Any]) -> dict[str, Figure]:
    """Return accuracy over the bias."""
    figure, (axes,) = style.new_figure(1, width=8.5, height=5.2)
    curves = {
        split: [100 * accuracy.mean(point[split]) for point in found["points"]] for split in ("validation", "test")
    }
    lines.draw_lines(axes, [point["sigmoid_bias"] for point in found["points"]], curves)
    axes.set(xlabel="bias that scores begin at", ylabel="mean accuracy, %")
    axes.set_title("Localize-and-stitch over its bias")
    return {NAME: figure}


def tell(found: Mapping[str, Any]) -> str:
    """Return the section's text."""
    rows = "\n".join(
        _row(
            f"learned, bias {point['sigmoid_bias']:g}",
            _kept(point),
            accuracy.mean(point["validation"]),
            point["test"],
            found,
        )
        for point in found["points"]
    )
    start, dataless = found["start"], found["dataless"]
    best = max(found["points"], key=lambda point: accuracy.mean(point["validation"]))
    gain = 100 * (accuracy.mean(best["test"]) - accuracy.mean(dataless["test"]))
    half = 100 * accuracy.half_width(best["test"])
    told = "Learning the masks on so few examples is no gain." if gain <= half else "Learning the masks is a gain."
    return f"""Measured apart (`python -m benchmarks.evidence --only {NAME}`), not by `make suite`. Masks are learned on
{EXAMPLES} examples of each task's training split, all else as it is by default; the paper's bias is 5. The rows of
[`{DATALESS}`](methods/{DATALESS}.md) keep the largest entries and learn nothing: the first is where learning
begins, the second keeps about as many entries as learning ends with at a bias of {BIASES[0]:g}.

| masks | kept, % | validation, mean | test, % | normalized |
|---|---:|---:|---:|---:|
{_row("largest entries", f"{100 * START['density']:g}", accuracy.mean(start["validation"]), start["test"], found)}
{_row("largest entries", f"{100 * dataless['density']:g}", dataless["validation"], dataless["test"], found)}
{rows}

**Finding**: validation chooses a bias of {best["sigmoid_bias"]:g} (the method's default:
{_default("localize_and_stitch", "sigmoid_bias"):g}), which scores {gain:+.1f} points on test against the largest
entries at a similar density; half an interval of one mean is {half:.1f}. {told}
"""


def _row(masks: str, kept: str, validation: float, test: accuracy.Counts, found: Mapping[str, Any]) -> str:
    return (
        f"| {masks} | {kept} | {accuracy.percent(validation)} "
        f"| {accuracy.percent(accuracy.mean(test))} ± {100 * accuracy.half_width(test):.1f} "
        f"| {accuracy.normalized(test, found['individual']):.3f} |"
    )


def _kept(point: Mapping[str, Any]) -> str:
    return f"{100 * min(point['kept']):.1f} to {100 * max(point['kept']):.1f}"
