"""RegMean: linear layers merged by regression, so that the result maps each task's inputs as that task's model does.

Source: Jin et al. 2022, arXiv:2212.09849, equation 2 and section 3.3.
Departs from source: solved from the mean with a ridge, instead of by an inverse (docs/methods/regmean.md).
"""

from torch import Tensor

from app.domain.errors import IncompatibleCheckpoints
from workers.contract import Learning, MergeContext, merge_method
from workers.learning.gram import TRANSPOSED, find_linear_layers, measure_grams
from workers.learning.means import weighted_mean
from workers.learning.measuring import OnExample, measure_models, merged_weights
from workers.learning.regmean import RegmeanParameters
from workers.learning.statistics_files import StatisticsFile, StatisticsOfModels
from workers.learning_contract import LearningSession
from workers.model_contract import Probe
from workers.numerics import precision
from workers.numerics.regression import Regression
from workers.stored import Models

KIND = "gram"


def learn(_parameters: RegmeanParameters, session: LearningSession) -> StatisticsOfModels:
    """Measure what enters the linear layers of each model on its own task."""

    def measure(_model: int, probe: Probe, on_example: OnExample) -> dict[str, Tensor]:
        layers = find_linear_layers(probe.module, merged_weights(session, probe.module))
        return measure_grams(probe, layers, on_example)

    return measure_models(session, KIND, measure)


@merge_method(
    name="regmean",
    title="RegMean",
    summary="Linear layers merged by regression on each task's own inputs; everything else averaged.",
    source="Jin et al. 2022, arXiv:2212.09849",
    aliases=("regression_mean",),
    parameters=RegmeanParameters,
    base_model="unused",
    models=(1, None),
    weights="non_negative",
    granularity="matrix",
    neutral_parameters={},
    learning=Learning(learn, data="gram", statistics=KIND, reads=()),
    adapter_spaces=("delta",),
)
def merge(base: Tensor | None, finetuned: Models, parameters: RegmeanParameters, context: MergeContext) -> Tensor:
    """Return the regression mean of a linear layer, the weighted mean of any other tensor.

    base: unused; finetuned: [n, *shape]; result: [*shape]. In float64, rounded once.

    Raises: InvalidParameters when all weights are 0.
    """
    learned: StatisticsOfModels | None = context.learned
    mean = weighted_mean(finetuned, context)
    name = None if learned is None else _gram_of(context.tensor, learned)
    if learned is None or name is None:
        return precision.round_to_float32(mean)
    is_transposed = name != context.tensor
    regression = Regression(mean.mT if is_transposed else mean)
    for tensor, weight, one in zip(finetuned, context.weights, learned.of_model, strict=True):
        own = tensor.mT if is_transposed else tensor  # [out, in]
        gram = _read_gram(one, name, own.shape[-1]).to(own.device)
        regression.add(own, gram, weight, non_diagonal_scale=parameters.non_diagonal_scale)
    merged = precision.round_to_float32(regression.solve(parameters.ridge))
    return merged.mT.contiguous() if is_transposed else merged


def _gram_of(tensor: str, learned: StatisticsOfModels) -> str | None:
    """Return the name of a tensor's Gram matrix, if all models have one."""
    for name in (tensor, tensor + TRANSPOSED):
        if all(name in one.tensors for one in learned.of_model):
            return name
    return None


def _read_gram(statistics: StatisticsFile, name: str, n_in: int) -> Tensor:
    found = statistics.tensors[name].shape
    if found != (n_in, n_in):
        raise IncompatibleCheckpoints(
            f"{statistics.path} holds {list(found)} for {name!r}, expected [{n_in}, {n_in}]; use statistics of these "
            "models."
        )
    return statistics.read(name).view(n_in, n_in)
