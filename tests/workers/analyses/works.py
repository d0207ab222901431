"""Analyses as a worker runs them, over tiny models: for the tests of every kind."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import JsonValue
from safetensors.torch import load_file

from app.domain.checkpoints import LocalCheckpoint
from app.domain.tasks import LocalTask
from app.domain.work import AnalyzeOutcome, AnalyzeWork
from tests.workers import tiny_bert
from workers.runner import WorkOrder, perform
from workers.statistics.views import TensorSource

Vectors = Mapping[str, NDArray[np.float64]]  # tensor -> [n, *shape], the task vectors


def make_models(folder: Path, n: int, *, dtype: torch.dtype = torch.float32) -> list[LocalCheckpoint]:
    """Return a base model of two layers, and models near it."""
    layers = {"num_hidden_layers": 2, "dtype": dtype}
    return [
        tiny_bert.local(tiny_bert.make_encoder(folder / f"model{seed}", seed=seed, **layers))  # type: ignore[arg-type]
        for seed in range(n + 1)
    ]


def make_work(kind: str, models: list[LocalCheckpoint], folder: Path, **changes: object) -> AnalyzeWork:
    """Return the work of analyzing models; models: the base model first."""
    output = Path(tempfile.mkdtemp(dir=folder)) / "output"
    output.mkdir()
    work = AnalyzeWork(analysis=kind, base_model=models[0], models=tuple(models[1:]), output=output)
    return work.model_copy(update=changes)


def make_task(folder: Path, **changes: Any) -> LocalTask:
    """Return a task whose texts fit the tiny models; `changes` are fields of its TaskSpec."""
    return tiny_bert.make_task(folder, preprocessing={"max_tokens": 8}, **changes)


def with_tasks(work: AnalyzeWork, folder: Path, n: int, **parameters: JsonValue) -> AnalyzeWork:
    """Return the work with tasks, all alike but for their names."""
    tasks = [
        make_task(folder / "data", name=f"task{index}").model_copy(update={"id": f"task_{index}"}) for index in range(n)
    ]
    heads = {task.id: work.base_model for task in tasks}
    return work.model_copy(update={"tasks": tuple(tasks), "head_bases": heads, "parameters": parameters})


def run(work: AnalyzeWork, *, threads: int = 1) -> AnalyzeOutcome:
    """Do the work as a job process does."""
    outcome = perform(WorkOrder(work=work, threads=threads), tiny_bert.ignore)
    assert isinstance(outcome, AnalyzeOutcome)
    return outcome


def read_vectors(models: list[LocalCheckpoint]) -> Vectors:
    """Return the task vectors of models; the base model first."""
    base, *others = (load_file(model.path / "model.safetensors") for model in models)
    return {
        name: np.stack([(other[name].float() - base[name].float()).double().numpy() for other in others])
        for name in sorted(base)
    }


def source_of(
    base: Mapping[str, NDArray[np.float32]], models: Sequence[Mapping[str, NDArray[np.float32]]]
) -> TensorSource:
    """Return arrays as a source of pieces of five elements."""
    tensors = [{name: torch.from_numpy(values) for name, values in one.items()} for one in (base, *models)]
    return TensorSource(base=tensors[0], models=tensors[1:], weights=[1.0] * len(models), piece_elements=5)


def open_source(models: list[LocalCheckpoint]) -> TensorSource:
    """Return checkpoints, the base model first, as a source of small pieces."""
    base, *others = (load_file(one.path / "model.safetensors") for one in models)
    return TensorSource(base=base, models=others, weights=[1.0] * len(others), piece_elements=100)
