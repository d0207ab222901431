"""Full fine-tuning: every parameter beside the embeddings learns, a head of the checkpoint's own along with them.

By default AdamW with a linear warm-up and a cosine decay to zero; the gradient's norm is clipped; there is no dropout.

Source: Ilharco et al. 2023, arXiv:2212.04089, appendix B: the recipe under which task vectors add up.
Departs from source: 75 steps of 16 examples at learning rate 5e-5 instead of 2,000 of 128 at 1e-5.
"""

from pydantic import Field

from workers.model_contract import Run, Trainable, Trained, finetuner
from workers.training.loop import optimize
from workers.training.parameters import TrainingParameters


class FullParameters(TrainingParameters):
    """The recipe of a full fine-tuning."""

    freeze_embeddings: bool = Field(default=True, description="Leave the input embeddings as they are.")


@finetuner(
    name="full",
    title="Full fine-tuning",
    summary="Trains the whole model, a head of its own included; the input embeddings stay unless asked otherwise.",
    source="Ilharco et al. 2023, arXiv:2212.04089, appendix B",
    parameters=FullParameters,
)
def train(trainable: Trainable, parameters: FullParameters, run: Run) -> Trained:
    """Train the module's own weights.

    Raises: as `optimize`.
    """
    frozen = trainable.unreached
    frozen |= trainable.embeddings if parameters.freeze_embeddings else frozenset()
    frozen |= trainable.head if parameters.freeze_head else frozenset()
    chosen = {name: value for name, value in trainable.module.named_parameters() if name not in frozen}
    for value in chosen.values():
        value.requires_grad = True
    return optimize(trainable, chosen, parameters, run)
