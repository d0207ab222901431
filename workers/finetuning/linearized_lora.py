"""L-LoRA: each LoRA layer is replaced by its first-order Taylor expansion around where its factors begin.

Since B begins at zero the output depends on B alone, A keeps its first value, and the adapter is exactly linear in what
is learned. All adapters of one base begin at the same φ₀, unless `init_seed` or `target_modules` say otherwise.

Source: Tang et al. 2023, arXiv:2310.04742.
Departs from source: A is not trained where B₀ is zero; its gradient is zero, and weight decay moves it to no effect.
"""

from pydantic import Field

from workers.model_contract import Run, Trainable, Trained, finetuner
from workers.training.adapters import train_adapter
from workers.training.parameters import LoraParameters


class LinearizedLoraParameters(LoraParameters):
    """The recipe of a linearized LoRA."""

    learning_rate: float = Field(default=5e-3, gt=0, le=1, description="Highest learning rate, after the warm-up.")
    weight_decay: float = Field(
        default=0.0, ge=0, le=1, description="Weight decay: decoupled in adamw, a penalty in sgd."
    )


@finetuner(
    name="linearized_lora",
    title="Linearized LoRA (L-LoRA)",
    summary="Trains LoRA as its first-order expansion around a start that all adapters of a base share, so that what "
    "they learn adds up; gives an adapter with its start.",
    source="Tang et al. 2023, arXiv:2310.04742",
    version=2,
    parameters=LinearizedLoraParameters,
    produces="adapter",
    keeps_start=True,
)
def train(trainable: Trainable, parameters: LinearizedLoraParameters, run: Run) -> Trained:
    """Train s [ B A₀ + B₀ (A − A₀) ] for each target module.

    Raises: as `train_adapter`.
    """
    return train_adapter(trainable, parameters, run, is_linearized=True)
