"""What a nested method merges, held by models that run: for learners that look at the merge they learn beside."""

from math import prod

import torch
from torch import nn

from workers.contract import NestedMerge
from workers.learning.merged_weights import put_in_place
from workers.learning.task_vectors import BLOCK_ELEMENTS
from workers.learning_contract import LearningSession

SharedModel = dict[str, nn.Parameter]  # tensor of the merge set -> [*shape] float32, without gradient


def merge_shared(session: LearningSession, method: NestedMerge) -> SharedModel:
    """Return the merge of all tensors, as the artifact will hold it in float32. Memory: one set of weights."""
    return {
        name: nn.Parameter(_merge(session, method, name, shape), requires_grad=False)
        for name, shape, _ in session.source.tensors
    }


def bind(session: LearningSession, module: nn.Module, shared: SharedModel) -> None:
    """Put the merged tensors in place of a model's own; what is not merged stays the model's, as in its patch."""
    for path, name in session.places(module).items():
        if name in shared:
            put_in_place(module, path, shared[name])


def _merge(session: LearningSession, method: NestedMerge, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    n = prod(shape)
    step = BLOCK_ELEMENTS if method.granularity == "element" else max(1, n)
    merged = torch.empty(n)
    for at in range(0, n, step):
        end = min(at + step, n)
        merged[at:end] = method.of_piece(session.source.read(name, at, end - at))
    return merged.view(shape).to(session.device)
