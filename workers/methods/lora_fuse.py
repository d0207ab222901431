"""LoRA fuse: fold an adapter into its base, W₀ + s·B·A, and write the dense model.

Source: Hu et al. 2021, arXiv:2106.09685, section 4.1.
"""

from torch import Tensor

from app.domain.parameters import Parameters, ScalingCoefficient
from workers.contract import MergeContext, merge_method
from workers.numerics import task_vectors


class LoraFuseParameters(Parameters):
    """Parameters of `lora_fuse`."""

    scaling_coefficient: ScalingCoefficient = 1.0


@merge_method(
    name="lora_fuse",
    title="LoRA fuse",
    summary="Folds an adapter into its base model and writes the dense model that the two are together.",
    source="Hu et al. 2021, arXiv:2106.09685",
    aliases=("merge_and_unload", "fuse", "fuse_lora", "merge_lora"),
    parameters=LoraFuseParameters,
    base_model="required",
    models=(1, 1),
    weights="unused",
    granularity="element",
    neutral_parameters={},
    accepts_dense=False,
    adapter_spaces=("delta",),
)
def merge(base: Tensor, finetuned: Tensor, parameters: LoraFuseParameters, context: MergeContext) -> Tensor:
    """Return the adapter's dense model; with a coefficient other than 1, what lies on the line through the base.

    base: [m]; finetuned: [1, m]; result: [m].
    """
    if parameters.scaling_coefficient == 1.0:
        return finetuned[0].clone()
    delta = finetuned[0].double() - base.double()
    return task_vectors.add(base, delta, scaling_coefficient=parameters.scaling_coefficient)
