"""Measuring each model on its own task, one after the other; what was measured goes to the disk."""

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from app.domain.statistics_files import statistics_file
from workers.learning.statistics_files import StatisticsFile, StatisticsOfModels, write_statistics
from workers.learning_contract import LearningSession
from workers.model_contract import Probe

OnExample = Callable[[int], None]  # how many of the task's examples are done
Measure = Callable[[int, Probe, OnExample], Mapping[str, Tensor]]  # (model, its probe, progress) -> tensors by name


def measure_models(session: LearningSession, kind: str, measure: Measure) -> StatisticsOfModels:
    """Return the statistics of all models; a model that is named twice is measured once, on the first of its tasks.

    Raises: whatever opening a task raises.
    """
    keys = session.context.model_keys
    paths = [statistics_file(kind, key) for key in keys]
    found: dict[str, StatisticsFile] = {}
    for model, path in enumerate(paths):
        if path not in found:
            probe = session.open(model, model=model)
            tensors = measure(model, probe, _progress(session, model, probe.n_examples))
            found[path] = write_statistics(session.scratch, path, tensors)
    return StatisticsOfModels([found[path] for path in paths], new_in=session.scratch)


def merged_weights(session: LearningSession, module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of a runnable model that are merged, by the name of their tensor, sorted."""
    merged = {name for name, _, _ in session.source.tensors}
    parameters = dict(module.named_parameters(remove_duplicate=False))
    places = session.places(module)
    found = {name: parameters[path] for path, name in places.items() if name in merged and path in parameters}
    return {name: found[name] for name in sorted(found)}


def _progress(session: LearningSession, model: int, n_examples: int) -> OnExample:
    n_models = session.source.n_models

    def on_example(done: int) -> None:
        session.on_count(model * n_examples + done, n_models * n_examples)

    return on_example
