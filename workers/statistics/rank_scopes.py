"""What a search for ranks is given: scopes within which magnitudes are ranked, and the effort it may spend."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Effort:
    """How much memory and reading a search may spend; no result depends on it."""

    small_scope: int = 1 << 18  # entries of a scope that is simply held
    n_counts: int = 1 << 21  # numbers kept of all windows of one scope
    sample_run_elements: int = 2048
    max_sampled: int = 1 << 24  # entries of one scope, of all models together: runs become shorter with many models
    elements_per_sample_run: int = 1 << 17
    min_sample_runs: int = 32  # of one scope
    max_sample_runs: int = 2048
    margin: float = 5.0  # standard errors of the sample's quantile on each side
    many_scopes: int = 16  # from so many on, one whose rank lies beside its window costs little: it alone is read again
    margin_of_many: float = 3.0


USUAL_EFFORT = Effort()


@dataclass(frozen=True)
class Scope:
    """The tensors within which magnitudes are ranked together, and the ranks wanted of each model."""

    tensors: tuple[tuple[str, int, int], ...]  # (name, elements, index of its first element within the scope), no empty
    n_elements: int
    ranks: tuple[int, ...]

    @property
    def searched_ranks(self) -> list[int]:
        """The ranks that do not go without saying."""
        return [rank for rank in self.ranks if 0 < rank < self.n_elements]
