"""LoRA: low-rank updates of some modules learn, everything else is frozen; an adapter comes out.

Source: Hu et al. 2022, arXiv:2106.09685.
"""

from workers.model_contract import Run, Trainable, Trained, finetuner
from workers.training.adapters import train_adapter
from workers.training.parameters import LoraParameters


@finetuner(
    name="lora",
    title="LoRA",
    summary="Trains low-rank updates of the attention's query and value, or of the modules named; gives an adapter.",
    source="Hu et al. 2022, arXiv:2106.09685",
    version=2,
    parameters=LoraParameters,
    produces="adapter",
)
def train(trainable: Trainable, parameters: LoraParameters, run: Run) -> Trained:
    """Train s·B·A for each target module.

    Raises: as `train_adapter`.
    """
    return train_adapter(trainable, parameters, run)
