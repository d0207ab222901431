"""PERU: what each task keeps of its accuracy, over what is stored for it.

Source: Jiang et al. 2023, arXiv:2310.01886, section 4.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from benchmarks.evidence import accuracy
from benchmarks.evidence.laboratory import Laboratory
from benchmarks.evidence.processes import Part
from workers.figures import bands, lines, style

NAME = "peru"
TITLE = "PERU: accuracy over bytes"

MEBIBYTE = 2**20
SWEPT: Mapping[str, tuple[str, tuple[float, ...]]] = {
    "peru_fft": ("density", (0.01, 0.05, 0.1, 0.2, 1.0)),
    "post_pruning": ("density", (0.1,)),
    "peru_lora": ("rank", (4, 8, 16, 32)),
}
TICKS = (2, 5, 10, 20, 50, 100, 200, 400)
LABELS = {"peru_fft": "PERU-FFT", "post_pruning": "post-pruning", "peru_lora": "PERU-LoRA"}


def parts() -> Sequence[Part]:
    """Return what can be measured at once."""
    return [partial(_point, method=method, value=value) for method, (_, values) in SWEPT.items() for value in values]


def find(laboratory: Laboratory) -> dict[str, Any]:
    """Measure each method at each density or rank; return everything as JSON."""
    points = [_point(laboratory, method, value) for method, (_, values) in SWEPT.items() for value in values]
    return {"individual": laboratory.individual, "points": points}


def _point(laboratory: Laboratory, method: str, value: float) -> dict[str, Any]:
    name = SWEPT[method][0]
    return {"method": method, name: value, **laboratory.experts.compress(method, {name: value})}


# --- telling --------------------------------------------------------------------------------------------------------


def draw(found: Mapping[str, Any]) -> dict[str, Figure]:
    """Return accuracy over the mebibytes of all patches."""
    figure, (axes,) = style.new_figure(1, width=9.5, height=5.4)
    for index, method in enumerate(SWEPT):
        points = [point for point in found["points"] if point["method"] == method]
        lines.draw_path(
            axes,
            [_mebibytes(point) for point in points],
            [100 * accuracy.mean(point["test"]) for point in points],
            index=index,
            label=LABELS[method],
        )
    bands.draw_level(axes, 100 * accuracy.mean(found["individual"]), "individual models")
    axes.set_xscale("log")
    axes.set_xticks(TICKS, [f"{tick}" for tick in TICKS])
    axes.minorticks_off()
    axes.set(xlabel="patches of all tasks, MiB", ylabel="accuracy on test, %")
    axes.set_title("Each task with its own patch")
    axes.legend(loc="lower right")
    return {NAME: figure}


def _mebibytes(point: Mapping[str, Any]) -> float:
    return float(sum(patch["size_bytes"] for patch in point["storage"]["patches"]) / MEBIBYTE)


def tell(found: Mapping[str, Any]) -> str:
    """Return the section's text."""
    individual = found["individual"]
    rows = "\n".join(_row(point, individual) for point in found["points"])
    whole = next(point for point in found["points"] if point["method"] == "peru_fft" and point["density"] == 1.0)
    exact = "the individual models, bit for bit" if whole["exact"] else "models that differ from the individual ones"
    tenth = next(point for point in found["points"] if point["method"] == "peru_fft" and point["density"] == 0.1)
    loss = 100 * (accuracy.mean(individual) - accuracy.mean(tenth["test"]))
    separate = whole["storage"]["separate_bytes"] / MEBIBYTE
    return f"""One shared model and a patch per task. The individual models score
{accuracy.percent(accuracy.mean(individual))} % and take {separate:.0f} MiB.

| method | per task | patches, MiB | stored / separate | accuracy on test, % | normalized |
|---|---|---:|---:|---:|---:|
{rows}

**Finding**: PERU-FFT at density 1 gives {exact}; at 10 % it is {loss:.1f} points below them. Half an
interval of one mean is {100 * accuracy.half_width(individual):.1f} points. The smallest patches that keep a method
within it: {_tell_smallest(found)}.
"""


def _tell_smallest(found: Mapping[str, Any]) -> str:
    """Return, by method, the fewest bytes within half an interval of the individual models."""
    floor = accuracy.mean(found["individual"]) - accuracy.half_width(found["individual"])
    told = []
    for method, (name, _) in SWEPT.items():
        within = [one for one in found["points"] if one["method"] == method and accuracy.mean(one["test"]) >= floor]
        best = min(within, key=_mebibytes, default=None)
        told.append(f"{LABELS[method]} " + (f"{name} {best[name]:g}, {_mebibytes(best):.1f} MiB" if best else "none"))
    return "; ".join(told)


def _row(point: Mapping[str, Any], individual: accuracy.Counts) -> str:
    name = SWEPT[point["method"]][0]
    mean = accuracy.percent(accuracy.mean(point["test"]))
    return (
        f"| {LABELS[point['method']]} | {name} {point[name]:g} | {_mebibytes(point):.1f} "
        f"| {point['storage']['byte_ratio']:.3f} | {mean} | {accuracy.normalized(point['test'], individual):.3f} |"
    )
