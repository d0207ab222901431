"""Small things to train: a line with one weight, and a BERT of a few hundred parameters."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import BertModel

from app.domain.tasks import Measurement
from tests.workers import tiny_bert
from workers.model_contract import Run, Step, Trainable

RUN = Run(seed=0, base_key="base", on_step=lambda _: None)


class Line(torch.nn.Module):
    """An embedding, a weight and a parameter that the loss never sees."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        self.weight = torch.nn.Parameter(torch.tensor(0.0))
        self.unused = torch.nn.Parameter(torch.tensor(7.0))


def make_line() -> tuple[Line, Trainable]:
    """Return the module and its task: the weight that makes 2, 4, 6, 8 of the embedding."""
    module = Line().requires_grad_(requires_grad=False)

    def loss(batch: list[int]) -> Tensor:
        return ((module.weight * module.embedding[batch] - 2 * torch.arange(1.0, 5.0)[batch]) ** 2).mean()

    return module, Trainable(module, frozenset({"embedding"}), 4, loss)  # type: ignore[arg-type]  # takes any sequence


def make_bert(seed: int = 0) -> BertModel:
    """Return a BERT with frozen weights, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertModel(tiny_bert.make_config()).requires_grad_(requires_grad=False)
    model.train(mode=False)
    return model


def make_bert_task(module: BertModel) -> Trainable:
    """Return the task to bring the mean of the last layer to a random vector, for four inputs of three tokens."""
    inputs = torch.arange(12).view(4, 3)
    targets = torch.randn(4, 8, generator=torch.Generator().manual_seed(7))

    def loss(batch: list[int]) -> Tensor:
        hidden: Tensor = module(input_ids=inputs[batch]).last_hidden_state.mean(dim=1)
        return ((hidden - targets[batch]) ** 2).mean()

    return Trainable(module, frozenset(), 4, loss)  # type: ignore[arg-type]  # as above


def record_steps(run: Run = RUN) -> tuple[Run, list[Step]]:
    """Return a run that keeps the steps it is told."""
    steps: list[Step] = []
    return replace(run, on_step=steps.append), steps


def validate_with(values: Mapping[int, float | None], **changes: Any) -> Callable[[int], Measurement]:
    """Return a validation that finds these values, by step."""
    fields = {"task": "task_a", "name": "accuracy", "split": "validation", "n": 4, **changes}
    return lambda step: Measurement.model_validate({**fields, "value": values[step], "step": step})
