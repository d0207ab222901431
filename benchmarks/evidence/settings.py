"""The section of the page that names every setting and grid, from the constants that the experiments run with."""

from collections.abc import Mapping, Sequence
from typing import Any

from app.domain.catalog import load_catalog
from benchmarks.evidence import (
    adapter_runs,
    compression,
    disentanglement,
    increments,
    learned,
    localized,
    overview,
    prolonged,
)
from benchmarks.evidence.adapter_scores import N_ALL
from benchmarks.evidence.brief import N_TEXTS
from benchmarks.suite.inputs import SEED

TITLE = "Settings"
TOLD = ("steps", "batch_size", "optimizer", "learning_rate", "schedule", "warmup_fraction", "weight_decay")


def tell() -> str:
    """Return the section."""
    rows = "\n".join(f"| {what} | {setting} |" for what, setting in _settings().items())
    return f"""## {TITLE}

What is not named has the default of its method or technique. Coefficients are `scaling_coefficient`.

| what | setting |
|---|---|
{rows}
"""


def _settings() -> Mapping[str, str]:
    ties = _defaults("ties")
    hub = _defaults("lorahub")
    return {
        "the five models": f"technique `full`, seed {SEED}: {_technique('full')}",
        "adapters": f"techniques `lora` and `linearized_lora`: {_technique('lora')}, where no other is "
        f"named; alpha twice the rank; searched with seed {adapter_runs.SEARCH_SEED}, merged with seeds "
        f"{_list(adapter_runs.SEEDS)}",
        "sweep of task arithmetic, with and without AWD": _list(disentanglement.COEFFICIENTS),
        "trend": f"{overview.N_SUBSETS} subsets of a size, {N_TEXTS} test texts of a task",
        "task arithmetic of adapters": "; ".join(
            f"{size} tasks {_list(adapter_runs.coefficients_of(size))}" for size in range(2, N_ALL + 1)
        ),
        "TIES of adapters": f"{_list(adapter_runs.TIES_COEFFICIENTS)}, density {ties['density']:g}",
        "task arithmetic of LoRA's factors": _list(adapter_runs.FACTOR_COEFFICIENTS),
        "LoraHub": f"budget {adapter_runs.LORAHUB['budget']}, {adapter_runs.LORAHUB_EXAMPLES} examples of a task, "
        f"bound {hub['bound']:g}, regularization {hub['regularization']:g}",
        "AWD": f"`norm_penalty` {_defaults('awd_task_arithmetic')['norm_penalty']:g}, and "
        f"{_list(disentanglement.PENALTIES)} at the coefficient that is best by default",
        "AdaMerging": _pairs(disentanglement.ADAMERGING) + "; the long run: " + _pairs(prolonged.SETTINGS),
        **{
            f"tasks one by one, {increments.LABELS[method]}": "; ".join(
                f"{name.replace('_', ' ')} {_list(values)}" for name, values in grid.items()
            )
            for method, grid in increments.GRIDS.items()
        },
        "PERU": "; ".join(
            f"{compression.LABELS[method]} {name} {_list(values)}"
            for method, (name, values) in compression.SWEPT.items()
        )
        + f"; shared: task arithmetic at {_defaults('peru_fft')['shared']['parameters']['scaling_coefficient']:g}",
        "Surgery": _pairs(learned.SURGERY),
        "localize-and-stitch": f"{localized.EXAMPLES} examples of a task, bias {_list(localized.BIASES)}",
    }


def _technique(name: str) -> str:
    properties = load_catalog().finetuner(name).parameters["properties"]
    return _pairs({key: properties[key]["default"] for key in TOLD})


def _defaults(method: str) -> Mapping[str, Any]:
    return {key: one.get("default") for key, one in load_catalog().method(method).parameters["properties"].items()}


def _pairs(setting: Mapping[str, object]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in setting.items())


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{one:g}" for one in values)
