"""What L-LoRA's adapters and LoRA's score, alone and merged, and the difference seed by seed."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.evidence import accuracy
from benchmarks.evidence.accuracy import Counts

N_ALL = 5  # tasks
FACTORS = {
    "average of factors": "average",
    "task arithmetic of factors": "task_arithmetic",
}  # of LoRA's; L-LoRA as ever


def runs_of(found: Mapping[str, Any], technique: str, size: int = N_ALL) -> list[Mapping[str, Any]]:
    """Return what was measured with so many tasks, seed by seed."""
    runs = found["runs"] if size == N_ALL else [one for one in found["fewer"] if len(one["models"]) == size]
    return [run for run in runs if run["technique"] == technique]


def _of(run: Mapping[str, Any], method: str) -> Counts:
    """Return the counts; of FACTORS, those of LoRA's factors merged, and of L-LoRA merged as ever."""
    if method == "alone":
        return dict(run["individual"])
    own = FACTORS.get(method, method)
    merged = run["of_factors"] if method in FACTORS and "of_factors" in run else run["merged"]
    counts: Counts = merged[own]["test"]
    return counts


def scores(
    found: Mapping[str, Any], technique: str, method: str, size: int, *, is_normalized: bool = False
) -> list[float]:
    """Return the mean accuracy over the tasks, or over that of the models alone, seed by seed."""
    return [
        accuracy.normalized(_of(run, method), run["individual"]) if is_normalized else accuracy.mean(_of(run, method))
        for run in runs_of(found, technique, size)
    ]


def gains(found: Mapping[str, Any], method: str, size: int, *, is_normalized: bool) -> list[float]:
    """Return L-LoRA minus LoRA, seed by seed."""
    linearized, plain = (
        scores(found, name, method, size, is_normalized=is_normalized) for name in ("linearized_lora", "lora")
    )
    return [one - other for one, other in zip(linearized, plain, strict=True)]


def signs(found: Mapping[str, Any], methods: Sequence[str], *, is_normalized: bool) -> tuple[list[str], list[str]]:
    """Return the methods by which L-LoRA merges better with every seed, and those by which worse."""
    of_methods = {method: gains(found, method, N_ALL, is_normalized=is_normalized) for method in methods}
    return (
        [method for method, of_seeds in of_methods.items() if min(of_seeds) > 0],
        [method for method, of_seeds in of_methods.items() if max(of_seeds) < 0],
    )


def best_setting(found: Mapping[str, Any], technique: str) -> Mapping[str, Any]:
    """Return the setting that did best on validation."""
    settings: list[Mapping[str, Any]] = [one for one in found["searched"] if one["technique"] == technique]
    return max(settings, key=lambda one: accuracy.mean(one["validation"]))
