"""The learning rate over the steps: it rises in the warm-up, then falls to 0 as the schedule says."""

import math

from workers.training.parameters import TrainingParameters


def learning_rate_factor(step: int, parameters: TrainingParameters) -> float:
    """Return the factor on the learning rate of step 0, 1, …: rising to 1 in the warm-up, then by the schedule.

    cosine: half a cosine from 1 to 0; linear: a line from 1 to 0; constant: 1.
    """
    n_warmup = round(parameters.steps * parameters.warmup_fraction)
    if step < n_warmup:
        return (step + 1) / n_warmup
    if parameters.schedule == "constant":
        return 1.0
    progress = min(1.0, (step - n_warmup) / max(1, parameters.steps - n_warmup))
    if parameters.schedule == "linear":
        return 1.0 - progress
    return 0.5 * (1 + math.cos(math.pi * progress))
