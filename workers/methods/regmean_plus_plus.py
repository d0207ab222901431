"""RegMean++: RegMean front to back, each layer on what reaches it through the layers that are merged already.

Source: Nguyen et al. 2025, arXiv:2508.03121, section 3; Jin et al. 2022, arXiv:2212.09849, equation 2.
Departs from source: solved as `regmean` is (docs/methods/regmean_plus_plus.md).
"""

from torch import Tensor

from workers.contract import Learning, MergeContext, merge_method
from workers.learning.front_to_back import LearnedLayers, learn_front_to_back
from workers.learning.means import weighted_mean
from workers.learning.regmean import RegmeanParameters
from workers.learning_contract import LearningSession
from workers.numerics import precision
from workers.stored import Models


def learn(parameters: RegmeanParameters, session: LearningSession) -> LearnedLayers:
    """Merge the linear layers front to back."""
    return learn_front_to_back(session, parameters)


@merge_method(
    name="regmean_plus_plus",
    title="RegMean++",
    summary="RegMean front to back: each layer merged on what the merged layers before it make of the inputs.",
    source="Nguyen et al. 2025, arXiv:2508.03121",
    aliases=("regmeanpp",),
    parameters=RegmeanParameters,
    base_model="unused",
    models=(1, None),
    weights="non_negative",
    granularity="matrix",
    neutral_parameters={},
    learning=Learning(learn, data="gram"),
    adapter_spaces=("delta",),
)
def merge(base: Tensor | None, finetuned: Models, parameters: RegmeanParameters, context: MergeContext) -> Tensor:
    """Return a linear layer as it was merged, the weighted mean of any other tensor.

    base: unused; finetuned: [n, *shape]; result: [*shape]. In float64, rounded once.

    Raises: InvalidParameters when all weights are 0.
    """
    learned: LearnedLayers | None = context.learned
    if learned is not None and context.tensor in learned.layers:
        return learned.layers[context.tensor].to(finetuned.device, copy=True)
    return precision.round_to_float32(weighted_mean(finetuned, context))
