"""The points of a search, one after the other, as Optuna's sampler proposes them.

Source: Bergstra et al. 2011, "Algorithms for Hyper-Parameter Optimization", section 4: the tree-structured Parzen
estimator; the first ten points are drawn at random. One seed, one point at a time: the same points on every machine.
"""

from collections.abc import Generator, Mapping

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import JsonValue

from app.domain.sweep_requests import Choices, NumberRange
from app.domain.sweeps import Search, Values


def propose(search: Search) -> Generator[Values, float | None, None]:
    """Yield points; each answer says how good the last one was (higher is better), None where it has no number."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=search.seed))
    distributions = {path: _distribution(values) for path, values in search.axes}
    for _ in range(search.n_trials):
        trial = study.ask(distributions)
        goodness = yield _values(trial.params, distributions)
        failed = optuna.trial.TrialState.FAIL
        study.tell(trial, goodness, state=None if goodness is not None else failed)


def _values(found: Mapping[str, JsonValue], paths: Mapping[str, BaseDistribution]) -> Values:
    return {path: found[path] for path in paths}


def _distribution(values: NumberRange | Choices) -> BaseDistribution:
    if isinstance(values, Choices):
        return CategoricalDistribution(tuple(values.choices))
    if values.integer:
        step = 1 if values.step is None else int(values.step)
        return IntDistribution(int(values.low), int(values.high), log=values.log, step=step)
    return FloatDistribution(values.low, values.high, log=values.log, step=values.step)
