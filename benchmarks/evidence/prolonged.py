"""AdaMerging for longer: is the run of the section on AWD too short? Measured apart, it takes long.

Source: Yang et al. 2023, arXiv:2310.02575.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from benchmarks.evidence import accuracy, disentanglement
from benchmarks.evidence.accuracy import plain
from benchmarks.evidence.laboratory import Laboratory
from benchmarks.evidence.lessons import Lesson
from benchmarks.evidence.processes import Part
from workers.figures import lines, style

NAME = "adamerging_long"
TITLE = "AdaMerging for longer"

SETTINGS: Mapping[str, Any] = {"steps": 200, "learning_rate": 1e-2, "batch_size": 16}


def parts() -> Sequence[Part]:
    """Return what can be measured at once: one run."""
    return [_learn]


def find(laboratory: Laboratory) -> dict[str, Any]:
    """Learn for longer, and take the short run; return everything as JSON."""
    return {
        "individual": laboratory.individual,
        "short": disentanglement.learn(laboratory, "adamerging"),
        "long": _learn(laboratory),
    }


def _learn(laboratory: Laboratory) -> dict[str, Any]:
    found = laboratory.experts.learn(Lesson("adamerging", SETTINGS))
    return {"learned": found.told, "test": plain(found.test)}


# --- telling --------------------------------------------------------------------------------------------------------


def draw(found: Mapping[str, Any]) -> dict[str, Figure]:
    """Return the entropy that is minimized over the steps of both runs, as means of ten; one batch is noisy."""
    figure, (axes,) = style.new_figure(1, width=9.5, height=5.2)
    for index, run in enumerate(("short", "long")):
        losses = found[run]["learned"]["losses"]
        tens = [losses[start : start + 10] for start in range(0, len(losses), 10)]
        means = [fmean(one["loss"] for one in ten) for ten in tens]
        lines.draw_path(
            axes, [fmean(one["step"] for one in ten) for ten in tens], means, index=index, label=f"{run} run"
        )
    axes.set(xlabel="step", ylabel="sum of mean entropies")
    axes.set_title("AdaMerging: what it minimizes")
    axes.legend()
    return {NAME: figure}


def tell(found: Mapping[str, Any]) -> str:
    """Return the section's text."""
    rows = "\n".join(_row(found, run) for run in ("short", "long"))
    gain = 100 * (accuracy.mean(found["long"]["test"]) - accuracy.mean(found["short"]["test"]))
    half = 100 * accuracy.half_width(found["short"]["test"])
    told = "So the entropy falls on, and accuracy does not follow: it is not the short run that keeps AdaMerging there."
    if abs(gain) > half:
        told = "So the short run is too short."
    steps, rate, batch = (SETTINGS[key] for key in ("steps", "learning_rate", "batch_size"))
    return f"""\
Measured apart (`python -m benchmarks.evidence --only {NAME}`), not by `make suite`: AdaMerging in {steps} steps of
{batch} texts per task at a learning rate of {rate:g}, on the validation split, beside the short run of the section on
AWD. The entropy is what is minimized, a sum over tasks, as means of the first and of the last quarter of the steps.

| run | steps | texts in a step | learning rate | entropy, begin → end | accuracy on test, % | normalized |
|---|---:|---:|---:|---:|---:|---:|
{rows}

**Finding**: the long run scores {gain:+.1f} points against the short one; half an interval of one mean is {half:.1f}.
{told}
"""


def _row(found: Mapping[str, Any], run: str) -> str:
    setting = SETTINGS if run == "long" else disentanglement.ADAMERGING
    test = found[run]["test"]
    begin, end = disentanglement.entropies(found[run]["learned"])
    return (
        f"| {run} | {setting['steps']} | {setting['batch_size']} | {setting['learning_rate']:g} "
        f"| {begin:.2f} → {end:.2f} | {accuracy.percent(accuracy.mean(test))} ± {100 * accuracy.half_width(test):.1f} "
        f"| {accuracy.normalized(test, found['individual']):.3f} |"
    )
