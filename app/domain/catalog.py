"""The cards of methods and evaluators, and the check of a recipe against them; no method's code is needed.

`catalog.json` is generated from the worker's method files (`make catalog`), committed, and checked for drift.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from math import fsum
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, JsonValue

from app.domain.adapters import AdapterSpace
from app.domain.checkpoints import Value
from app.domain.errors import (
    EvaluatorNotFound,
    FieldProblem,
    Invalid,
    InvalidParameters,
    MethodNotFound,
    UnknownAnalysis,
    UnknownMethod,
    UnknownTaskKind,
    UnknownTechnique,
    near_match,
    near_matches,
)
from app.domain.parameter_checks import fill_defaults, parameter_faults, schema_faults
from app.domain.recipes import Recipe

CATALOG_FORMAT_VERSION = 1
CATALOG_PATH = Path(__file__).parent / "catalog.json"
MAX_MODELS = 256
AT_MOST_MODELS = "x-at-most-models"  # keyword in a parameters schema: the number is one of models

Granularity = Literal["element", "row", "tensor", "matrix", "model"]
PatchCodec = Literal["replacement", "low_rank", "mask", "sign", "module"]
# What a method inside a method works on: the tensors of the merge, or small ones that the outer method makes of them.
NestedScope = Literal["merge_set", "local"]
StepKind = Literal["transforms", "post_steps"]


_FINE_TO_COARSE: tuple[Granularity, ...] = ("element", "row", "tensor", "matrix", "model")


def coarsest(granularities: Sequence[Granularity]) -> Granularity:
    """Return the granularity that holds enough for all."""
    return max(granularities, key=_FINE_TO_COARSE.index)


class TaskAddition(Value):
    """How tasks are added to a method's result later, without the old models."""

    method: str | None = None  # by another method over what is shared; None: by the method itself
    fixed: dict[str, JsonValue] = Field(default_factory=dict)  # parameters that must have these values
    file: str | None = None  # which must lie beside the result: it holds what weights alone do not tell


class Preset(Value):
    """What a name adds to a request that says nothing of it: `awd_adamerging` is `adamerging` behind `awd`."""

    transforms: tuple[str, ...] = ()
    parameters: dict[str, JsonValue] = Field(default_factory=dict)


class ClassesNeed(Value):
    """That a method looks at probabilities of classes: always, or under some parameters."""

    why: str  # what it does with them, as a predicate of the method, and the way out where there is one
    where: dict[str, JsonValue] = Field(default_factory=dict)  # the parameters under which it does


class MatrixWork(Value):
    """A part of what code computes of each matrix beside reading it, for the seconds of a plan."""

    seconds: float = Field(gt=0.0)  # of one core for 10⁹ of `of`, as measured by benchmarks/spectral/work.py
    of: Literal[
        "decomposition",  # smaller side² · (rows + columns)
        "product",  # rows · columns · smaller side
        "inputs",  # rows · columns²
        "input_square",  # columns³
    ] = "decomposition"
    each: Literal["matrix", "model", "step"] = "matrix"  # step: of the parameter `steps`
    where: dict[str, JsonValue] = Field(default_factory=dict)  # the parameters under which it does
    takes_factors: bool = False  # whether it is nothing where models are adapters


class MethodCard(Value):
    """What a caller and the pipeline need to know about a merge method."""

    name: str
    version: int  # raised whenever the method gives other bytes for the same input
    title: str
    summary: str
    source: str  # paper or project, with its number
    aliases: tuple[str, ...] = ()
    base_model: Literal["required", "optional", "unused"]
    min_models: int = Field(ge=1)
    max_models: int | None = None
    weights: Literal["any", "non_negative", "unused"]  # what models[].weight may be
    data: Literal["none", "unlabelled", "labelled", "gram", "fisher"] = "none"  # what it looks at of tasks
    data_of: Literal["models", "merge"] = "models"  # each model's own task, or tasks that the whole merge is tried on
    learned: str | None = None  # parameter that takes what the method learns; where it is given, nothing is learned
    statistics: str | None = None  # kind of the files, one per model, that its results hold and other merges take
    needs_classes: ClassesNeed | None = None  # of its tasks' evaluators: `has_class_logits`
    granularity: Granularity  # the smallest piece the method may be given
    working_copies: int = 4  # of a whole tensor, float32, that it holds at most beside the models' (their result's too)
    order_matters: bool = False
    is_random: bool = False
    produces: Literal["dense", "multitask", "adapter"] = "dense"
    patch_codec: PatchCodec | None = None  # how a multitask artifact's patches are stored, mostly
    task_addition: TaskAddition | None = None  # None: a result is what it is
    accepts_adapters: bool = True
    accepts_dense: bool = True  # False: its models are adapters
    adapter_spaces: tuple[AdapterSpace, ...] = ("delta",)  # where it merges adapters; the first is the default
    parameters: dict[str, Any]  # JSON Schema (draft 2020-12) of the parameters object
    per_model: tuple[str, ...] = ()  # parameters of which models[].parameters may have a model's own
    neutral_parameters: dict[str, JsonValue] | None = None  # one model in, that model out (law T1); None: no such law
    is_scale_equivariant: bool = True  # law T8
    counts_copies_as_one: bool = True  # law T4: a model named n times with weight 1/n is that model
    statistic_passes: int = Field(default=0, ge=0)  # passes over the inputs before the merge, at most
    spared_passes: tuple[dict[str, JsonValue], ...] = ()  # each: one less, where the parameters have these values
    local_where: tuple[dict[str, JsonValue], ...] = ()  # where they have these, tensors are looked at one by one
    copies: bool = False  # nothing is computed: `slices` says which tensor of which model becomes which of the result
    nested: dict[str, NestedScope] = Field(default_factory=dict)  # parameters that name a method, and what it sees
    presets: dict[str, Preset] = Field(default_factory=dict)  # aliases that say more than the name
    work: tuple[MatrixWork, ...] = ()  # all parts; none: it takes no longer than reading

    def learns(self, parameters: Mapping[str, JsonValue]) -> bool:
        """Tell whether a merge with these effective parameters looks at data."""
        return self.data != "none" and (self.learned is None or parameters.get(self.learned) is None)

    def why_classes(self, parameters: Mapping[str, JsonValue]) -> str | None:
        """Return what a merge with these effective parameters does with probabilities of classes; None: nothing."""
        need = self.needs_classes
        if need is None or any(parameters.get(name) != value for name, value in need.where.items()):
            return None
        return need.why


def count_passes(card: "MethodCard | StepCard", variants: Sequence[Mapping[str, JsonValue]]) -> int:
    """Return how often what a card describes reads the inputs before the merge.

    variants: effective parameters, of which some tensors may have one and some another: a pass is spared where all
    spare it.
    """
    spared = [where for where in card.spared_passes if _holds(where, variants)]
    return max(0, card.statistic_passes - len(spared))


def count_rounds(card: MethodCard, variants: Sequence[Mapping[str, JsonValue]]) -> int:
    """Return how many of these passes find what all tensors have to be read for."""
    return 0 if any(_holds(where, variants) for where in card.local_where) else count_passes(card, variants)


def _holds(where: Mapping[str, JsonValue], variants: Sequence[Mapping[str, JsonValue]]) -> bool:
    return all(where.items() <= one.items() for one in variants)


class StepCard(Value):
    """What a caller needs to know about a transform (before the method) or a post-step (after it)."""

    name: str
    version: int  # raised whenever the step gives other bytes for the same input
    title: str
    summary: str
    source: str
    granularity: Granularity
    parameters: dict[str, Any]  # JSON Schema of the parameters object
    statistic_passes: int = Field(default=0, ge=0)  # passes over the inputs, at most
    spared_passes: tuple[dict[str, JsonValue], ...] = ()  # each: one less, where the parameters have these values
    work: tuple[MatrixWork, ...] = ()  # all parts; none: it takes no longer than reading


ClassesRule = Literal["required", "optional", "none"]  # must, may or must not a task name classes
DataFormat = Literal["jsonl", "parquet", "npz", "zip"]


class EvaluatorCard(Value):
    """What a caller needs to know about an evaluator; its name is the `kind` of the tasks it measures."""

    name: str
    version: int
    title: str
    summary: str
    source: str
    heads: tuple[str, ...]
    trainable_heads: tuple[str, ...] = ()  # heads under which a model can be fine-tuned
    metrics: tuple[str, ...]  # the first is a task's unless it names another
    classes: ClassesRule = "required"
    data_formats: tuple[DataFormat, ...] = ("jsonl", "parquet")
    parameters: dict[str, Any]  # JSON Schema of a task's `preprocessing`
    is_learnable: bool = False  # whether merge methods that look at data can learn on its tasks
    has_class_logits: bool = False  # whether its models give one logit per class, which some of these methods need


class FinetunerCard(Value):
    """What a caller needs to know about a fine-tuning technique."""

    name: str
    version: int  # raised whenever the technique gives other bytes for the same input
    title: str
    summary: str
    source: str
    produces: Literal["dense", "adapter"]
    keeps_start: bool = False  # whether its adapters tell where they began, so that a request may name a `family`
    parameters: dict[str, Any]  # JSON Schema of the parameters object


# none; any number of them; the first for models[0], …; the first to be forgotten, the others to be kept
TasksNeeded = Literal["none", "any", "one_per_model", "target_and_controls"]


class AnalysisCard(Value):
    """What a caller needs to know about a kind of analysis."""

    name: str
    version: int  # raised whenever the analysis gives other data for the same input
    title: str
    summary: str
    source: str
    min_models: int = Field(ge=1)
    max_models: int | None = None
    tasks: TasksNeeded = "none"
    observes: bool = False  # it looks at logits or features: its tasks' evaluators must have those of classes
    tunes: bool = False  # something is chosen on the tasks' validation split, whatever split is measured on
    nested: tuple[str, ...] = ()  # parameters that name a merge method
    merges_subsets: bool = False  # by that method it merges some of the models at a time, too
    steps: tuple[str, ...] = ()  # parameters that name transforms, through which it looks at the task vectors, too
    takes_merged: bool = False  # it looks at an existing merge of the models, too, in place of one that it makes
    parameters: dict[str, Any]  # JSON Schema of the parameters object
    data: dict[str, Any]  # JSON Schema of what it finds: the report's data beside its heading


class Catalog(Value):
    """All cards, sorted by name."""

    format_version: int = CATALOG_FORMAT_VERSION
    methods: tuple[MethodCard, ...]
    evaluators: tuple[EvaluatorCard, ...]
    finetuners: tuple[FinetunerCard, ...] = ()
    transforms: tuple[StepCard, ...] = ()
    post_steps: tuple[StepCard, ...] = ()
    analyses: tuple[AnalysisCard, ...] = ()

    def method(self, name: str) -> MethodCard:
        """Return a method's card by name or alias.

        Raises: MethodNotFound with the nearest name.
        """
        for card in self.methods:
            if name == card.name or name in card.aliases:
                return card
        near = near_matches(name, self._method_names, most=3)
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise MethodNotFound(
            f"There is no merge method {name[:80]!r}.{hint} GET /v1/methods lists all {len(self.methods)} of them."
        )

    @property
    def _method_names(self) -> list[str]:
        return [known for card in self.methods for known in (card.name, *card.aliases)]

    def evaluator(self, name: str) -> EvaluatorCard:
        """Return an evaluator's card.

        Raises: EvaluatorNotFound with the nearest name.
        """
        for card in self.evaluators:
            if name == card.name:
                return card
        raise EvaluatorNotFound(_unknown("evaluator", name, [card.name for card in self.evaluators]))

    def check(
        self,
        method: str,
        parameters: Mapping[str, JsonValue],
        *,
        has_base_model: bool,
        weights: Sequence[float],
        model_parameters: Sequence[Mapping[str, JsonValue]] = (),
    ) -> tuple[MethodCard, dict[str, JsonValue]]:
        """Return the card and the effective parameters (defaults filled in) of a merge request.

        Raises: UnknownMethod; InvalidParameters naming every fault at once; Invalid for a wrong number of models,
            a missing base model, or a weight that the method cannot use.
        """
        try:
            card = self.method(method)
        except MethodNotFound as error:
            problem = FieldProblem("/method", error.detail, near_match(method, self._method_names))
            raise UnknownMethod(error.detail, errors=[problem]) from None
        faults = _structural_faults(card, has_base_model=has_base_model, weights=weights)
        faults += _per_model_faults(card, model_parameters)
        if faults:
            raise Invalid(_summary(card.name, faults), errors=faults)
        faults = parameter_faults(card.parameters, parameters, pointer="/parameters")
        if faults:
            raise InvalidParameters(_summary(card.name, faults), errors=faults)
        effective = fill_defaults(card.parameters, parameters, n_models=len(weights))
        for name in card.nested:
            effective[name] = self.check_nested(name, effective[name], has_base_model=has_base_model, weights=weights)
        faults = [fault for name in card.nested for fault in self._learning_faults(card, name, effective[name])]
        faults += _model_count_faults(card, effective, len(weights), pointer="/parameters")
        if faults:
            raise InvalidParameters(_summary(card.name, faults), errors=faults)
        faults = _weight_sum_faults(card, effective, weights)
        if faults:
            raise Invalid(_summary(card.name, faults), errors=faults)
        return card, effective

    def check_override(
        self,
        card: MethodCard,
        parameters: Mapping[str, JsonValue],
        *,
        n_models: int,
        pointer: str,
        elsewhere: Mapping[str, JsonValue],
    ) -> dict[str, JsonValue]:
        """Return the parameters that an override sets, in one form; nothing is filled in.

        elsewhere: the effective parameters of all other tensors, which name the methods inside: these cannot differ
            between tensors, their parameters can.
        Raises: InvalidParameters naming every fault at once.
        """
        plain = {name: value for name, value in parameters.items() if name not in card.nested}
        inside = {name: _only_parameters(value) for name, value in parameters.items() if name in card.nested}
        faults = parameter_faults(card.parameters, plain, pointer=pointer)
        faults += [
            FieldProblem(
                f"{pointer}/{name}",
                f"{name} is a method; it cannot differ between tensors, but its parameters can: give those alone, as "
                '{"parameters": {…}}',
            )
            for name, own in inside.items()
            if own is None
        ]
        faults = faults or _model_count_faults(card, plain, n_models, pointer=pointer)
        if faults:
            raise InvalidParameters(_summary(card.name, faults), errors=faults)
        filled = fill_defaults(card.parameters, plain)
        checked: dict[str, JsonValue] = {name: value for name, value in filled.items() if name in plain}
        for name, own in inside.items():
            method, where = self.method(_method_in(elsewhere[name])), f"{pointer}/{name}/parameters"
            values = self.check_override(method, own or {}, n_models=n_models, pointer=where, elsewhere={})
            checked[name] = {"parameters": dict(values)}
        return dict(sorted(checked.items()))

    def check_step(
        self, kind: StepKind, name: str, parameters: Mapping[str, JsonValue], *, pointer: str
    ) -> tuple[StepCard, dict[str, JsonValue]]:
        """Return the card and the effective parameters (defaults filled in) of a transform or a post-step.

        Raises: Invalid for an unknown name; InvalidParameters naming every fault at once.
        """
        cards = {card.name: card for card in (self.transforms if kind == "transforms" else self.post_steps)}
        if name not in cards:
            what = "transform" if kind == "transforms" else "post-step"
            problem = FieldProblem(f"{pointer}/name", _unknown(what, name, list(cards)), near_match(name, cards))
            raise Invalid(problem.message, errors=[problem])
        card = cards[name]
        faults = schema_faults(card.parameters, dict(parameters), pointer=f"{pointer}/parameters")  # no gradients
        if faults:
            raise InvalidParameters(_summary(card.name, faults), errors=faults)
        return card, fill_defaults(card.parameters, parameters)

    def check_nested(
        self, name: str, value: JsonValue, *, has_base_model: bool, weights: Sequence[float]
    ) -> dict[str, JsonValue]:
        """Return a method that a parameter names as a recipe has it: its name, version and effective parameters.

        Raises: UnknownMethod, InvalidParameters, Invalid with pointers below the parameter.
        """
        pointer = f"/parameters/{name}"
        asked = value if isinstance(value, dict) else {}
        parameters = asked.get("parameters", {})
        try:
            card, effective = self.check(
                str(asked["method"]),
                parameters if isinstance(parameters, dict) else {},
                has_base_model=has_base_model,
                weights=weights,
            )
        except Invalid as error:
            problems = [FieldProblem(pointer + one.pointer, one.message, one.did_you_mean) for one in error.errors]
            raise type(error)(f"{pointer}: {error.detail}", errors=problems) from None
        reasons = _nesting_faults(card, str(asked["method"]), asked.get("version"))
        faults = [FieldProblem(f"{pointer}/method", reason) for reason in reasons]
        if faults:
            raise InvalidParameters(_summary(card.name, faults), errors=faults)
        return {"method": card.name, "version": card.version, "parameters": dict(effective)}

    def _learning_faults(self, outer: MethodCard, name: str, inside: JsonValue) -> list[FieldProblem]:
        """Return why a method inside another one cannot do what it says: it would learn, and sees weights alone."""
        card, parameters = self.method(_method_in(inside)), inside["parameters"] if isinstance(inside, dict) else {}
        if not card.learns(parameters if isinstance(parameters, dict) else {}):
            return []
        ways = ["name a method that does not learn"]
        if outer.nested[name] == "merge_set":
            ways.append(f"merge by {card.name} first, and take its result as base_model of post_pruning")
        if card.learned is not None:
            ways.insert(0, f"give it `{card.learned}`, as an earlier merge learned them")
        message = f"{card.name} learns from data, and inside {outer.name} it sees only weights; {', or '.join(ways)}"
        return [FieldProblem(f"/parameters/{name}/method", message)]

    def cards_inside(self, card: MethodCard, parameters: Mapping[str, JsonValue]) -> tuple[MethodCard, ...]:
        """Return the cards of the methods that effective parameters name inside a method."""
        return tuple(self.method(_method_in(parameters[name])) for name in card.nested)

    def cards_beside(self, recipe: Recipe) -> tuple[MethodCard | StepCard, ...]:
        """Return the cards of what sees the merge set beside a recipe's method: what is nested in it, and steps."""
        card = self.method(recipe.method)
        nested = [
            self.method(_method_in(recipe.parameters[name])) for name in card.nested if card.nested[name] == "merge_set"
        ]
        transforms = {step.name: step for step in self.transforms}
        post_steps = {step.name: step for step in self.post_steps}
        return (
            *nested,
            *(transforms[step.name] for step in recipe.transforms),
            *(post_steps[step.name] for step in recipe.post_steps),
        )

    def check_task(
        self,
        kind: str,
        *,
        head: str,
        metric: str | None,
        n_classes: int,
        preprocessing: Mapping[str, JsonValue],
    ) -> tuple[EvaluatorCard, dict[str, JsonValue]]:
        """Return the evaluator's card and the effective preprocessing (defaults filled in) of a task.

        Raises: UnknownTaskKind with the nearest name; Invalid for a head, a metric or classes that the evaluator does
            not take; InvalidParameters naming every fault of the preprocessing at once.
        """
        known = [card.name for card in self.evaluators]
        if kind not in known:
            detail = _unknown("evaluator for tasks of kind", kind, known)
            raise UnknownTaskKind(detail, errors=[FieldProblem("/kind", detail, near_match(kind, known))])
        card = self.evaluator(kind)
        faults = _choice_faults("/head/kind", "head", head, card.heads)
        faults += _choice_faults("/metric", "metric", metric or card.metrics[0], card.metrics)
        faults += _classes_faults(card, n_classes)
        if faults:
            raise Invalid(f"{card.name}: {faults[0].message}", errors=faults)
        faults = schema_faults(card.parameters, dict(preprocessing), pointer="/preprocessing")
        if faults:
            raise InvalidParameters(_summary(card.name, faults), errors=faults)
        return card, fill_defaults(card.parameters, preprocessing)

    def finetuner(self, name: str) -> FinetunerCard:
        """Return a fine-tuning technique's card.

        Raises: UnknownTechnique with the nearest name.
        """
        cards = {card.name: card for card in self.finetuners}
        if name not in cards:
            detail = _unknown("fine-tuning technique", name, list(cards))
            raise UnknownTechnique(detail, errors=[FieldProblem("/technique", detail, near_match(name, cards))])
        return cards[name]

    def check_finetune(
        self, technique: str, parameters: Mapping[str, JsonValue]
    ) -> tuple[FinetunerCard, dict[str, JsonValue]]:
        """Return the card and the effective parameters (defaults filled in) of a fine-tuning request.

        Raises: UnknownTechnique with the nearest name; InvalidParameters naming every fault at once.
        """
        card = self.finetuner(technique)
        faults = schema_faults(card.parameters, dict(parameters), pointer="/parameters")
        if faults:
            raise InvalidParameters(_summary(card.name, faults), errors=faults)
        return card, fill_defaults(card.parameters, parameters)

    def analysis(self, kind: str) -> AnalysisCard:
        """Return an analysis' card.

        Raises: UnknownAnalysis with the nearest name.
        """
        cards = {card.name: card for card in self.analyses}
        if kind not in cards:
            detail = _unknown("kind of analysis", kind, list(cards))
            raise UnknownAnalysis(detail, errors=[FieldProblem("/kind", detail, near_match(kind, cards))])
        return cards[kind]


@cache
def load_catalog() -> Catalog:
    """Return the committed catalog."""
    return Catalog.model_validate(json.loads(CATALOG_PATH.read_text(encoding="utf-8")))


def _method_in(nested: JsonValue) -> str:
    return str(nested["method"]) if isinstance(nested, dict) else ""


def _only_parameters(nested: JsonValue) -> dict[str, JsonValue] | None:
    """Return the parameters that are given of a method inside; None where they are not given, or not alone."""
    is_alone = isinstance(nested, dict) and nested.keys() == {"parameters"}
    own = nested["parameters"] if is_alone and isinstance(nested, dict) else None
    return own if isinstance(own, dict) else None


def _nesting_faults(card: MethodCard, alias: str, version: JsonValue) -> list[str]:
    reasons: list[str] = []
    preset = card.presets.get(alias, Preset())
    if preset.transforms:
        behind = ", ".join(preset.transforms)
        reasons.append(f"{alias} is {card.name} behind the transform {behind}, which only a merge of its own has")
    if card.produces != "dense":
        reasons.append(f"{card.name} gives a {card.produces} artifact; expected a method that gives one dense model")
    if card.nested:
        reasons.append(f"{card.name} has a method inside itself; expected one without")
    if version not in (None, card.version):
        reasons.append(f"the recipe is of version {version} of {card.name}, this service has version {card.version}")
    return reasons


def _structural_faults(card: MethodCard, *, has_base_model: bool, weights: Sequence[float]) -> list[FieldProblem]:
    faults: list[FieldProblem] = []
    if card.base_model == "required" and not has_base_model:
        faults.append(FieldProblem("/base_model", f"{card.name} needs a base_model; name the pre-trained checkpoint"))
    most = min(card.max_models or MAX_MODELS, MAX_MODELS)
    if not card.min_models <= len(weights) <= most:
        wanted = f"exactly {most}" if most == card.min_models else f"{card.min_models} to {most}"
        faults.append(FieldProblem("/models", f"{card.name} takes {wanted} models, found {len(weights)}"))
    for index, weight in enumerate(weights):
        pointer = f"/models/{index}/weight"
        if card.weights == "unused" and weight != 1.0:
            faults.append(FieldProblem(pointer, f"{card.name} uses no weights; leave it out (found {weight})"))
        if card.weights == "non_negative" and weight < 0:
            faults.append(FieldProblem(pointer, f"{card.name} needs weights >= 0, found {weight}"))
    return faults


def _model_count_faults(
    card: MethodCard, parameters: Mapping[str, JsonValue], n_models: int, *, pointer: str
) -> list[FieldProblem]:
    """Return the parameters that count models and ask for more than there are."""
    counts = [name for name, rule in card.parameters["properties"].items() if rule.get(AT_MOST_MODELS)]
    return [
        FieldProblem(
            f"{pointer}/{name}",
            f"{name} is {parameters[name]}, but {n_models} models are merged; expected at most {n_models}",
        )
        for name in counts
        if isinstance(found := parameters.get(name), int) and found > n_models
    ]


def _weight_sum_faults(
    card: MethodCard, parameters: Mapping[str, JsonValue], weights: Sequence[float]
) -> list[FieldProblem]:
    if not parameters.get("normalize") or fsum(weights) != 0:
        return []
    advice = "change the weights, or set /parameters/normalize to false to sum without dividing"
    return [FieldProblem("/models", f"{card.name} divides by the sum of the weights, which is 0; {advice}")]


def _per_model_faults(card: MethodCard, model_parameters: Sequence[Mapping[str, JsonValue]]) -> list[FieldProblem]:
    known = f"only {', '.join(card.per_model)}" if card.per_model else "no parameters"
    faults: list[FieldProblem] = []
    for index, values in enumerate(model_parameters):
        pointer = f"/models/{index}/parameters"
        faults += [
            FieldProblem(
                f"{pointer}/{name}",
                f"{card.name} takes {known} per model; use /parameters for all models, or weight",
                near_match(name, card.per_model),
            )
            for name in values
            if name not in card.per_model
        ]
        own = {name: value for name, value in values.items() if name in card.per_model}
        faults += parameter_faults(card.parameters, own, pointer=pointer)
    return faults


def _classes_faults(card: EvaluatorCard, n_classes: int) -> list[FieldProblem]:
    if card.classes == "required" and n_classes == 0:
        return [FieldProblem("/classes", "name the classes, at least two, in the order of the labels' indices")]
    if card.classes == "none" and n_classes > 0:
        return [FieldProblem("/classes", f"tasks of this kind have no classes; found {n_classes}. Leave them out")]
    return []


def _choice_faults(pointer: str, what: str, found: str, known: Sequence[str]) -> list[FieldProblem]:
    if found in known:
        return []
    message = f"there is no {what} {found!r} here; expected one of: {', '.join(known)}"
    return [FieldProblem(pointer, message, near_match(found, known))]


def _summary(name: str, faults: Sequence[FieldProblem]) -> str:
    return f"{name}: {faults[0].message}" + (f" (and {len(faults) - 1} more)" if len(faults) > 1 else "")


def _unknown(what: str, name: str, known: Sequence[str]) -> str:
    match = near_match(name, known)
    hint = f" Did you mean {match!r}?" if match else ""
    return f"There is no {what} {name!r}.{hint} Known: {', '.join(sorted(known)) or 'none'}."
