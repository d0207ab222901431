"""The diagonal of a model's Fisher information, example by example.

Source: Matena, Raffel 2021, arXiv:2111.09832, equations 4 and 5.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor

from app.domain.errors import NotFinite
from workers.model_contract import Probe

Labels = Literal["expected", "sampled", "given"]


def measure_fisher(
    probe: Probe,
    weights: Mapping[str, Tensor],
    labels: Labels,
    generator: torch.Generator,
    on_example: Callable[[int], None],
) -> dict[str, Tensor]:
    """Return E_x E_y (∂ log p(y|x) / ∂θ)² over the probe's examples, in the shapes of the weights, float32.

    Without the weights that no output depends on.

    weights: by tensor name; the module's other parameters are held. labels: y runs over all classes with the model's
    own probability, is drawn once from it (`generator`), or is the example's label. Of a text, which has no list of all
    outcomes, each token is drawn given those of the example before it. on_example: how many are done.
    Raises: NotFinite naming a tensor; HeadMismatch for all outcomes of a text.
    """
    probe.module.requires_grad_(requires_grad=False)
    for weight in weights.values():
        weight.requires_grad = True
    totals: dict[str, Tensor] = {}
    for index in range(probe.n_examples):
        for share, log_likelihood in _outcomes(probe, index, labels, generator):
            gradients = torch.autograd.grad(log_likelihood, [*weights.values()], retain_graph=True, allow_unused=True)
            for name, gradient in zip(weights, gradients, strict=True):
                if gradient is not None:  # else the output does not depend on it
                    total = totals.setdefault(name, torch.zeros_like(gradient))
                    total.addcmul_(gradient, gradient, value=share)
        on_example(index + 1)
    for name, total in totals.items():
        if not bool(torch.isfinite(total).all()):
            raise NotFinite(
                f"The Fisher information of tensor {name!r} is not finite, expected finite squares of gradients. Look "
                "for NaN or very large numbers in the model, or exclude the tensor."
            )
        total.div_(probe.n_examples)
    return totals


def _outcomes(probe: Probe, index: int, labels: Labels, generator: torch.Generator) -> Iterator[tuple[float, Tensor]]:
    """Yield (how much it counts, log p(y|x) as 0-d with its graph) of the outcomes of one example."""
    if labels == "given":
        n_tokens = 1 if probe.tokens is None else probe.tokens.counts[index]
        yield 1.0, -probe.losses([index]).sum() * n_tokens
        return
    if probe.tokens is not None and labels == "sampled":
        log_p = probe.tokens.of_example(index).log_softmax(dim=-1)  # [t, vocabulary]
        drawn = torch.multinomial(log_p.detach().exp().cpu(), 1, generator=generator)  # [t, 1]
        yield 1.0, log_p.gather(1, drawn.to(log_p.device)).sum()
        return
    log_p = probe.logits([index])[0].log_softmax(dim=-1)  # [n_classes]
    p = log_p.detach().exp().cpu()
    if labels == "sampled":
        yield 1.0, log_p[int(torch.multinomial(p, 1, generator=generator))]
        return
    for label, share in enumerate(p.tolist()):
        yield share, log_p[label]
