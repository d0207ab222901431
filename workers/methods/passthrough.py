"""Passthrough: put a model together from runs of layers of other models; nothing is computed.

Source: Goddard et al. 2024, arXiv:2403.13257 (mergekit), the method `passthrough`; also known as frankenmerging and
    depth up-scaling (Kim et al. 2023, arXiv:2312.15166).
Departs from source: which tensors are layers is found from their names (docs/methods/passthrough.md).
"""

from fnmatch import fnmatchcase

from torch import Tensor

from app.domain.passthrough import PassthroughParameters
from workers.contract import MergeContext, merge_method


@merge_method(
    name="passthrough",
    title="Passthrough",
    summary="Copies runs of layers of the models, one after the other, into a model of another depth.",
    source="Goddard et al. 2024, arXiv:2403.13257",
    aliases=("depth_up_scaling", "frankenmerge", "layer_stacking"),
    parameters=PassthroughParameters,
    base_model="unused",
    models=(1, None),
    weights="unused",
    granularity="element",
    order_matters=True,
    neutral_parameters={},
    copies=True,
    adapter_spaces=(),
)
def merge(base: Tensor | None, finetuned: Tensor, parameters: PassthroughParameters, context: MergeContext) -> Tensor:
    """Return the first model's tensor times its factor: what the pipeline, which follows the plan, copies.

    base: unused; finetuned: [n, m]; result: [m].
    """
    factors = [one.factor for one in parameters.scaling if fnmatchcase(context.tensor, one.match)]
    return finetuned[0] * (factors[-1] if factors else 1.0)
