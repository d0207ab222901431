"""What the numbers of L-LoRA and LoRA say: the verdict, and what has to be known beside the table."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from benchmarks.evidence import accuracy
from benchmarks.evidence.adapter_runs import FACTOR_COEFFICIENTS, SEARCH_SEED, TIES_COEFFICIENTS
from benchmarks.evidence.adapter_scores import FACTORS, N_ALL, best_setting, gains, runs_of, signs

OF_UPDATES = ("average", "task_arithmetic", "ties")
OF_FACTORS = (*FACTORS, "lorahub")
EARLIER = """\
An earlier run trained both more weakly, for 75 steps (validation gap -0.3 points; whole test splits). There L-LoRA
minus LoRA's updates was +0.9, +0.2, -0.5 points by average and -2.5, -2.3, -3.0 by task arithmetic, and its averages
with seed 0 were better in normalized accuracy with 2 to 5 tasks (0.962, 0.944, 0.925, 0.909 against 0.947, 0.920,
0.908, 0.890): nearer to what the paper says than the adapters above."""


def tell_training(found: Mapping[str, Any]) -> str:
    """Return whether the two are trained equally well, as far as the texts can tell."""
    linearized, plain = (best_setting(found, name) for name in ("linearized_lora", "lora"))
    gap = 100 * (accuracy.mean(linearized["validation"]) - accuracy.mean(plain["validation"]))
    half = 100 * accuracy.half_width(plain["validation"])
    told = "these texts do not tell them apart" if abs(gap) <= half else "they are not trained equally well"
    most = {key: max(one["parameters"][key] for one in found["searched"]) for key in ("rank", "steps")}
    is_at_end = all(one["parameters"][key] == most[key] for one in (linearized, plain) for key in most)
    end = (
        "\nBoth have the largest rank and the most steps of the search: more of either was not tried."
        if is_at_end
        else ""
    )
    return (
        f"At its best L-LoRA is {gap:+.1f} points from LoRA on validation, where half an interval of one mean is\n"
        f"{half:.1f}: {told}.{end}"
    )


def verdict(found: Mapping[str, Any]) -> str:
    """Return where L-LoRA merges better, and where worse, with every seed: than LoRA's updates, and its factors."""
    runs = runs_of(found, "lora")
    half = 100 * accuracy.half_width(runs[0]["individual"])
    seeds = "one seed" if len(runs) == 1 else f"with each of {len(runs)} seeds"
    return f"""**Finding** ({seeds}): against LoRA's updates merged ({list_methods(OF_UPDATES)}) L-LoRA merges
{_tell_signs(found, OF_UPDATES)}.
Against LoRA's factors merged, as in the paper ({list_methods(OF_FACTORS)}), it merges
{_tell_signs(found, OF_FACTORS)}.
{_tell_claim(found, half)}
Half an interval of one mean is {half:.1f} points."""


def _tell_signs(found: Mapping[str, Any], methods: Sequence[str]) -> str:
    told = []
    for is_normalized, what in ((False, "absolute"), (True, "normalized")):
        better, worse = signs(found, methods, is_normalized=is_normalized)
        told.append(f"in {what} accuracy better by {list_methods(better)}, worse by {list_methods(worse)}")
    return "; ".join(told)


def _tell_claim(found: Mapping[str, Any], half: float) -> str:
    """Return what this says of the paper's claim, that linearized adapters merge better."""
    better = signs(found, OF_FACTORS, is_normalized=False)[0]
    if not better:
        return "So the paper's claim is not seen here, whichever of the two is merged of LoRA."
    told = ", ".join(
        f"{list_methods([method])} {100 * fmean(gains(found, method, N_ALL, is_normalized=False)):+.1f}"
        for method in better
    )
    most = 100 * max(fmean(gains(found, method, N_ALL, is_normalized=False)) for method in better)
    small = ", less than half an interval" if most < half else ""
    worse = signs(found, OF_UPDATES, is_normalized=False)[1]
    rest = f";\nLoRA's updates merged are better than L-LoRA by {list_methods(worse)}" if worse else ""
    part = "" if len(better) == len(OF_FACTORS) else "in part, "
    return (
        f"So the paper's claim is seen {part}against LoRA's factors (in points, mean over seeds: {told}{small}){rest}."
    )


def tell_factors(found: Mapping[str, Any]) -> str:
    """Return what merging LoRA's factors means here and in the paper."""
    chosen = [
        run["of_factors"]["task_arithmetic"]["parameters"]["scaling_coefficient"] for run in runs_of(found, "lora")
    ]
    at_end = any(one in (min(FACTOR_COEFFICIENTS), max(FACTOR_COEFFICIENTS)) for one in chosen)
    return f"""\
The paper merges LoRA's factors, each on its own: A = A₀ + λ Σ (Aₜ − A₀), B = λ Σ Bₜ. Here factors are merged around
zero: A = λ Σ Aₜ, B = λ Σ Bₜ. That is the same average, since all adapters of a seed begin at one A₀, but not the same
task arithmetic: ours grows with λ², and the paper's was not measured. Of λ {_numbers(FACTOR_COEFFICIENTS)}
validation chose {_numbers(chosen)}, seed by seed{" (ends of the grid among them)" if at_end else ""}."""


def tell_ties(found: Mapping[str, Any]) -> str:
    """Return what the rows of TIES compare, and the suite's rows over the updates of both."""
    plain, linearized = (
        accuracy.percent(accuracy.mean(found["ties_of_updates"][name])) for name in ("lora", "linearized_lora")
    )
    return f"""\
The row of TIES compares unlike things: LoRA's updates of the weights are merged, and L-LoRA's change of the factors.
By TIES over the updates of both (seed {SEARCH_SEED}, whole test splits, [suite](suite.md)) LoRA scores {plain},
L-LoRA {linearized}."""


def tell_ends() -> str:
    """Return what lies beyond the grids, and that it was tried."""
    return f"""\
Grids of adapters are short: two or three coefficients of task arithmetic, by the number of tasks, and of TIES
{_numbers(TIES_COEFFICIENTS)}. What lies beyond was tried in earlier runs and never chosen: 0.2 and 1.2, 0.35 of two
tasks, 0.8 of four or five; of TIES 0.35 and 2.8; of LoRA's factors 0.2, 0.4 and 0.5."""


def list_methods(methods: Sequence[str], nothing: str = "no method") -> str:
    """Return the methods' names in a row."""
    return ", ".join(method.replace("_", " ") for method in methods) or nothing


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{one:g}" for one in values)
