"""Localize-and-stitch: how freely should masks learn, and are they better than the largest entries alone?

The bias that scores begin at is chosen on validation; masks are learned on the training split.

Source: He et al. 2024, arXiv:2408.13656, section 3.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from app.domain.catalog import load_catalog
from benchmarks.evidence import accuracy
from benchmarks.evidence.accuracy import plain
from benchmarks.evidence.laboratory import Laboratory
from benchmarks.evidence.merging import Lesson
from benchmarks.evidence.processes import Part
from workers.figures import lines, style

NAME = "localize_and_stitch"
TITLE = "Localize-and-stitch: how freely masks learn"

BIASES = (1.0, 5.0)
EXAMPLES = 8
START: Mapping[str, Any] = {"density": 0.01}  # as masks begin by default


def parts() -> Sequence[Part]:
    """Return what can be measured at once."""
    return [*(partial(_point, bias=bias) for bias in BIASES), _start]


def find(laboratory: Laboratory) -> dict[str, Any]:
    """Measure each bias, and the masks of the start; return everything as JSON."""
    return {
        "start": _start(laboratory),
        "points": [_point(laboratory, bias) for bias in BIASES],
        "individual": plain(laboratory.experts.individual("test")),
    }


def _point(laboratory: Laboratory, bias: float) -> dict[str, Any]:
    lesson = Lesson("localize_and_stitch", {"sigmoid_bias": bias}, split="train", max_examples=EXAMPLES)
    found = laboratory.experts.learn(lesson)
    told: Any = found.told  # the report of a job
    kept = [one["density"] for one in told["masks"]]
    return {"sigmoid_bias": bias, "kept": kept, **{split: plain(counts) for split, counts in found.counts.items()}}


def _start(laboratory: Laboratory) -> dict[str, Any]:
    """Return what the masks score that learning begins with: the largest entries."""
    merges, method = laboratory.experts, "localize_and_stitch_dataless"
    return {split: plain(merges.merge(method, START, split)) for split in ("validation", "test")}


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
        f"| {point['sigmoid_bias']:g} | {_kept(point)} | {accuracy.percent(accuracy.mean(point['validation']))} "
        f"| {accuracy.percent(accuracy.mean(point['test']))} ± {100 * accuracy.half_width(point['test']):.1f} "
        f"| {accuracy.normalized(point['test'], found['individual']):.3f} |"
        for point in found["points"]
    )
    start = found["start"]
    best = max(found["points"], key=lambda point: accuracy.mean(point["validation"]))
    default = load_catalog().method("localize_and_stitch").parameters["properties"]["sigmoid_bias"]["default"]
    before = [accuracy.percent(accuracy.mean(start[split])) for split in ("validation", "test")]
    gain = 100 * (accuracy.mean(best["test"]) - accuracy.mean(start["test"]))
    return f"""Masks are learned on {EXAMPLES} examples of each task's training split, all else as it is by default; the
paper's bias is 5. Before learning, the largest hundredth of each task vector is kept:
{before[0]} % on validation, {before[1]} % on test.

| bias | kept, % | validation, mean | test, % | normalized |
|---:|---|---:|---:|---:|
{rows}

**Finding**: validation chooses a bias of {best["sigmoid_bias"]:g} (the method's default: {default:g}),
{gain:+.1f} points on test against the masks before learning.
"""


def _kept(point: Mapping[str, Any]) -> str:
    return f"{100 * min(point['kept']):.1f} to {100 * max(point['kept']):.1f}"
