"""Full fine-tuning: every parameter beside the embeddings learns, the head is frozen.

The optimizer is AdamW with a linear warm-up and a cosine decay to zero; the gradient's norm is clipped; there is no
dropout. The order of the examples depends on the seed alone.

Source: Ilharco et al. 2023, arXiv:2212.04089, appendix B: the recipe under which task vectors add up.
Departs from source: 75 steps of 16 examples at learning rate 5e-5 instead of 2,000 of 128 at 1e-5.
"""

import math
from collections.abc import Callable, Iterator

import torch
from pydantic import Field

from app.domain.errors import NotFinite
from app.domain.parameters import Parameters
from workers.model_contract import Step, Trainable, finetuner


class FullParameters(Parameters):
    """The recipe of a full fine-tuning."""

    steps: int = Field(default=75, ge=1, le=1_000_000, description="Number of optimizer steps.")
    learning_rate: float = Field(default=5e-5, gt=0, le=1, description="Highest learning rate, after the warm-up.")
    batch_size: int = Field(default=16, ge=1, le=4096, description="Examples per step.")
    weight_decay: float = Field(default=0.01, ge=0, le=1, description="Decoupled weight decay of AdamW.")
    warmup_fraction: float = Field(
        default=0.1, ge=0, le=1, description="Fraction of the steps over which the learning rate rises."
    )
    max_gradient_norm: float = Field(default=1.0, gt=0, description="The gradient's norm is clipped to this.")
    freeze_embeddings: bool = Field(default=True, description="Leave the input embeddings as they are.")


@finetuner(
    name="full",
    title="Full fine-tuning",
    summary="Trains the whole encoder under a frozen head; the input embeddings stay unless asked otherwise.",
    source="Ilharco et al. 2023, arXiv:2212.04089, appendix B",
    parameters=FullParameters,
)
def train(
    trainable: Trainable, parameters: FullParameters, seed: int, on_step: Callable[[Step], None]
) -> frozenset[str]:
    """Train the module in place and return the names of the parameters that learned.

    Raises: NotFinite when the loss is NaN or infinite, with the step.
    """
    chosen = _choose(trainable, parameters)
    optimizer = torch.optim.AdamW(
        chosen.values(), lr=parameters.learning_rate, weight_decay=parameters.weight_decay, foreach=False
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, parameters))
    batches = draw_batches(trainable.n_examples, parameters.batch_size, seed)
    for done in range(1, parameters.steps + 1):
        optimizer.zero_grad(set_to_none=True)
        loss = trainable.loss(next(batches))
        _refuse_not_finite(loss, done, parameters)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(chosen.values(), parameters.max_gradient_norm)
        optimizer.step()
        schedule.step()
        on_step(Step(done=done, total=parameters.steps, loss=loss.item()))
    return frozenset(name for name, parameter in chosen.items() if parameter.grad is not None)


def learning_rate_factor(step: int, parameters: FullParameters) -> float:
    """Return the factor on the learning rate of step 0, 1, …: rising to 1 in the warm-up, then half a cosine to 0."""
    n_warmup = round(parameters.steps * parameters.warmup_fraction)
    if step < n_warmup:
        return (step + 1) / n_warmup
    progress = (step - n_warmup) / max(1, parameters.steps - n_warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def draw_batches(n_examples: int, batch_size: int, seed: int) -> Iterator[list[int]]:
    """Yield batches of indices without end: one shuffled pass over the examples after another.

    A batch may reach from one pass into the next, so all have the same size; where the examples are fewer than a batch,
    an example can occur in it more than once.
    """
    generator = torch.Generator().manual_seed(seed)
    waiting: list[int] = []
    while True:
        while len(waiting) < batch_size:
            waiting += torch.randperm(n_examples, generator=generator).tolist()
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]


def _choose(trainable: Trainable, parameters: FullParameters) -> dict[str, torch.nn.Parameter]:
    frozen = trainable.embeddings if parameters.freeze_embeddings else frozenset()
    chosen = {name: value for name, value in trainable.module.named_parameters() if name not in frozen}
    for value in chosen.values():
        value.requires_grad = True
    return chosen


def _refuse_not_finite(loss: torch.Tensor, step: int, parameters: FullParameters) -> None:
    if not math.isfinite(loss.item()):
        raise NotFinite(
            f"The training loss is {loss.item()} at step {step} of {parameters.steps}. Lower learning_rate (now "
            f"{parameters.learning_rate}), or look for NaN in the base model."
        )
