"""How long the arithmetic of a merge takes where it is more than reading: from cards, shapes and parameters.

Bytes are plans.py's; here are singular vectors and steps of Adam, which only matrices have.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from math import prod

from pydantic import JsonValue

from app.domain.catalog import MatrixWork, MethodCard, StepCard
from app.domain.recipes import Recipe
from app.domain.tensor_parameters import TensorGroup

Parameters = Mapping[str, JsonValue]


def seconds_of_work(
    recipe: Recipe,
    groups: Sequence[TensorGroup],
    shapes: Mapping[str, tuple[int, ...]],
    cards: tuple[MethodCard, Sequence[MethodCard | StepCard]],
    known: Collection[str] = (),
) -> float:
    """Return the seconds of one core that a recipe's matrices take.

    groups: of the merged tensors, whose shapes are given; cards: the method's, and those beside it as
        Catalog.cards_beside gives them; known: tensors of which all updates are known as products of thin factors.
    """
    seconds = 0.0
    for group in groups:
        for work, parameters in _works(recipe, cards, group.parameters):
            names = [name for name in group.names if not (work.takes_factors and name in known)]
            sizes = (_size(work, shapes[name]) for name in names if _is_matrix(name, shapes[name], parameters))
            seconds += 1e-9 * work.seconds * _count(work, parameters, len(recipe.models)) * sum(sizes)
    return seconds


def _works(
    recipe: Recipe, cards: tuple[MethodCard, Sequence[MethodCard | StepCard]], parameters: Parameters
) -> Iterator[tuple[MatrixWork, Parameters]]:
    """Yield what each card computes of a matrix under its parameters, with these."""
    card, beside = cards
    own = [_parameters_in(parameters[name]) for name, scope in card.nested.items() if scope == "merge_set"]
    own += [step.parameters for step in (*recipe.transforms, *recipe.post_steps)]
    for one, values in [(card, parameters), *zip(beside, own, strict=False)]:  # a plan may be told of none beside
        for work in one.work:
            if all(values.get(name) == value for name, value in work.where.items()):
                yield work, values


def _count(work: MatrixWork, parameters: Parameters, n_models: int) -> int:
    steps = parameters.get("steps")
    return {"matrix": 1, "model": n_models, "step": steps if isinstance(steps, int) else 0}[work.each]


def _size(work: MatrixWork, shape: tuple[int, ...]) -> int:
    rows, columns = shape[0], prod(shape[1:])
    smaller = min(rows, columns)
    return {
        "decomposition": smaller**2 * (rows + columns),
        "product": rows * columns * smaller,
        "inputs": rows * columns**2,
        "input_square": columns**3,
    }[work.of]


def _is_matrix(name: str, shape: tuple[int, ...], parameters: Parameters) -> bool:
    """Tell whether a tensor is treated as a matrix, as workers/numerics/matrices.py does."""
    has_sides = len(shape) == 2 or (len(shape) > 2 and parameters.get("conv_as_matrix") is True)
    patterns = parameters.get("dense_patterns")
    is_dense = isinstance(patterns, list) and any(fnmatchcase(name, str(one)) for one in patterns)
    return has_sides and not is_dense


def _parameters_in(method: JsonValue) -> Parameters:
    found = method.get("parameters") if isinstance(method, dict) else None
    return found if isinstance(found, dict) else {}
