"""The parameters that every fine-tuning technique has: one name, one range, one description each."""

from typing import Literal

from pydantic import Field, model_validator

from app.domain.parameters import Parameters


class TrainingParameters(Parameters):
    """How long, how fast, and what is kept."""

    steps: int = Field(default=75, ge=1, le=1_000_000, description="Number of optimizer steps.")
    batch_size: int = Field(default=16, ge=1, le=4096, description="Examples per step.")
    optimizer: Literal["adamw", "sgd"] = Field(
        default="adamw", description="adamw, or sgd: stochastic gradient descent with momentum."
    )
    learning_rate: float = Field(default=5e-5, gt=0, le=1, description="Highest learning rate, after the warm-up.")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        default="cosine", description="How the learning rate falls to 0 after the warm-up; constant: it does not."
    )
    warmup_fraction: float = Field(
        default=0.1, ge=0, le=1, description="Fraction of the steps over which the learning rate rises."
    )
    weight_decay: float = Field(
        default=0.01, ge=0, le=1, description="Weight decay: decoupled in adamw, a penalty in sgd."
    )
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Momentum of sgd; adamw has its own.")
    max_gradient_norm: float = Field(default=1.0, gt=0, description="The gradient's norm is clipped to this.")
    validate_every: int | None = Field(
        default=None, ge=1, description="Measure on the validation split every so many steps; null: never."
    )
    early_stopping_patience: int | None = Field(
        default=None,
        ge=1,
        description="Stop when so many validations in a row were no better than the best before; null: never.",
    )
    keep: Literal["last", "best"] = Field(
        default="last", description="Which weights are kept: of the last step, or of the best validation."
    )
    freeze_head: bool = Field(
        default=False, description="Leave the checkpoint's own classification head; heads of other kinds always stay."
    )

    @model_validator(mode="after")
    def _has_validations(self) -> "TrainingParameters":
        if self.validate_every is None and (self.early_stopping_patience is not None or self.keep == "best"):
            raise ValueError("early_stopping_patience and keep 'best' need validate_every")
        return self


class LoraParameters(TrainingParameters):
    """What techniques that train an adapter have beside it."""

    learning_rate: float = Field(default=1e-3, gt=0, le=1, description="Highest learning rate, after the warm-up.")
    freeze_head: bool = Field(
        default=True,
        description="Leave the checkpoint's own classification head; false: the adapter holds the trained one, whole.",
    )
    rank: int = Field(default=8, ge=1, le=65_536, description="Rank of each update.")
    alpha: float = Field(
        default=16.0, gt=0, le=1e6, description="Scaling of each update: alpha / rank, with use_rslora alpha / √rank."
    )
    use_rslora: bool = Field(default=False, description="Scale by alpha / √rank, which suits high ranks.")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Fraction of an update's inputs that is dropped.")
    target_modules: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        max_length=1000,
        description="Modules to adapt, by their names in memory or the ends of these; null: the attention's query and "
        "value.",
    )
    init_seed: int | None = Field(
        default=None,
        ge=0,
        le=2**63 - 1,
        description="Seed of where the factors begin; the same for all adapters that are to be merged. null: 0.",
    )
