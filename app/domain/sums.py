"""The sums that some dense results keep, so that models can be added: the file they lie in, and how large it becomes.

workers/sums.py says what they are, docs/methods/localize_and_stitch_dataless.md how they are stored.
"""

from collections.abc import Sequence
from math import floor

from app.domain.catalog import MethodCard
from app.domain.checkpoints import TensorSpec
from app.domain.recipes import Recipe

SUMS_FILE = "sums.safetensors"
SUMS_FORMAT = "amalgam-sums"
SUMS_FORMAT_VERSION = 1
ENTRY_BYTES = 24  # two float64 and an index


def keeps_sums(card: MethodCard, recipe: Recipe) -> bool:
    """Tell whether a recipe's result keeps sums; transforms and post-steps leave nothing that could be added to."""
    addition = card.task_addition
    if addition is None or addition.file != SUMS_FILE or recipe.transforms or recipe.post_steps:
        return False
    return all(recipe.parameters.get(name, value) == value for name, value in addition.fixed.items())


def bound_sums_bytes(card: MethodCard, recipe: Recipe, tensors: Sequence[TensorSpec]) -> int:
    """Return the most bytes that the sums of these tensors take, headers aside; 0 where none are kept."""
    if not keeps_sums(card, recipe):
        return 0
    density = recipe.parameters.get("density")
    n_models = len(recipe.models)
    if recipe.onto is not None or recipe.overrides or not isinstance(density, float):
        return ENTRY_BYTES * sum(tensor.n_elements for tensor in tensors)
    return ENTRY_BYTES * sum(
        min(tensor.n_elements, n_models * (floor(density * tensor.n_elements) + 1)) for tensor in tensors
    )
