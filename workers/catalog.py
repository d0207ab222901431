"""The catalog of what workers can do, found from the files of methods/, evaluators/ and the like; no list to edit.

`python -m workers.catalog` writes app/domain/catalog.json, from which the API answers without any of this code;
`python -m workers.catalog --check` fails where the committed file differs.
"""

import argparse
import difflib
import importlib
import json
import pkgutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from pydantic import JsonValue

from app.domain.catalog import CATALOG_PATH, Catalog, MethodCard, load_catalog
from app.domain.recipes import Recipe
from workers import adapter_methods, analyses, evaluators, finetuning, methods, post_steps, transforms
from workers.adapter_contract import AdapterCode, AdapterMethod
from workers.analysis_contract import Analysis
from workers.contract import MergeMethod, PostStep, RecipeCode, Transform
from workers.model_contract import Evaluator, Finetuner

Entry = TypeVar("Entry", MergeMethod, AdapterMethod, Evaluator, Finetuner, Transform, PostStep, Analysis)


class CatalogFault(Exception):
    """A file that does not hold what its folder promises, or a name that two files claim."""


def find_methods() -> tuple[MergeMethod, ...]:
    """Return every merge method, sorted by name.

    Raises: CatalogFault for a file without its method, or a name or alias used twice.
    """
    found = _find(methods, MergeMethod)
    for module, method in found.items():
        if module.rpartition(".")[2] != method.card.name:
            raise CatalogFault(f"{module} holds the method {method.card.name!r}; a method's file is named like it")
    refuse_collisions((name, module) for module, method in found.items() for name in _names(method))
    return tuple(sorted(found.values(), key=lambda method: method.card.name))


def find_adapter_methods() -> tuple[AdapterMethod, ...]:
    """Return every adapter method, sorted by name.

    Raises: CatalogFault for a file without its method.
    """
    return tuple(sorted(_find(adapter_methods, AdapterMethod).values(), key=lambda method: method.card.name))


def find_cards() -> tuple[MethodCard, ...]:
    """Return the cards of all merge methods, sorted by name.

    Raises: CatalogFault for a file without its method, or a name or alias used twice.
    """
    cards = [*(one.card for one in find_methods()), *(one.card for one in find_adapter_methods())]
    refuse_collisions((name, card.name) for card in cards for name in (card.name, *card.aliases))
    return tuple(sorted(cards, key=lambda card: card.name))


def find_evaluators() -> tuple[Evaluator, ...]:
    """Return every evaluator, sorted by name.

    Raises: CatalogFault for a file without its evaluator, or a name used twice.
    """
    found = _find(evaluators, Evaluator)
    refuse_collisions((evaluator.card.name, module) for module, evaluator in found.items())
    return tuple(sorted(found.values(), key=lambda evaluator: evaluator.card.name))


def find_finetuners() -> tuple[Finetuner, ...]:
    """Return every fine-tuning technique, sorted by name.

    Raises: CatalogFault for a file without its technique, or a name used twice.
    """
    found = _find(finetuning, Finetuner)
    refuse_collisions((finetuner.card.name, module) for module, finetuner in found.items())
    return tuple(sorted(found.values(), key=lambda finetuner: finetuner.card.name))


def find_transforms() -> tuple[Transform, ...]:
    """Return every transform, sorted by name.

    Raises: CatalogFault for a file without its transform.
    """
    return tuple(sorted(_find(transforms, Transform).values(), key=lambda step: step.card.name))


def find_post_steps() -> tuple[PostStep, ...]:
    """Return every post-step, sorted by name.

    Raises: CatalogFault for a file without its post-step.
    """
    return tuple(sorted(_find(post_steps, PostStep).values(), key=lambda step: step.card.name))


def find_analyses() -> tuple[Analysis, ...]:
    """Return every analysis, sorted by name.

    Raises: CatalogFault for a file without its analysis.
    """
    return tuple(sorted(_find(analyses, Analysis).values(), key=lambda one: one.card.name))


def load_recipe(recipe: Recipe) -> RecipeCode:
    """Return the code of a recipe's method, of the methods nested in it, and of its transforms and post-steps."""
    method = load_method(recipe.method)
    return RecipeCode(
        method=method,
        nested={name: load_method(_name_of(recipe.parameters[name])) for name in method.card.nested},
        transforms=tuple(_load(transforms, step.name, Transform) for step in recipe.transforms),
        post_steps=tuple(_load(post_steps, step.name, PostStep) for step in recipe.post_steps),
    )


def load_adapter_recipe(recipe: Recipe) -> AdapterCode:
    """Return the code of a recipe whose result is an adapter."""
    card = load_catalog().method(recipe.method)
    if card.produces != "adapter":
        code = load_recipe(recipe)
        return AdapterCode(code.method, code)
    method = _load(adapter_methods, card.name, AdapterMethod)
    inner = [RecipeCode(load_method(_name_of(recipe.parameters[name]))) for name in card.nested]
    return AdapterCode(method, inner[0] if inner else None)


def load_method(name: str) -> MergeMethod:
    """Return a method by name or alias, loading its file alone.

    Raises: MethodNotFound with the nearest name.
    """
    return _load(methods, load_catalog().method(name).name, MergeMethod)


def load_transform(name: str) -> Transform:
    """Return a transform by name, loading its file alone."""
    return _load(transforms, name, Transform)


def load_evaluator(name: str) -> Evaluator:
    """Return an evaluator by name, loading its file alone.

    Raises: EvaluatorNotFound with the nearest name.
    """
    return _load(evaluators, load_catalog().evaluator(name).name.replace("-", "_"), Evaluator)


def load_finetuner(name: str) -> Finetuner:
    """Return a fine-tuning technique by name, loading its file alone.

    Raises: UnknownTechnique with the nearest name.
    """
    return _load(finetuning, load_catalog().finetuner(name).name, Finetuner)


def load_analysis(kind: str) -> Analysis:
    """Return an analysis by its kind, loading its file alone.

    Raises: UnknownAnalysis with the nearest name.
    """
    return _load(analyses, load_catalog().analysis(kind).name, Analysis)


def build_catalog() -> Catalog:
    """Return the catalog as the code stands."""
    return Catalog(
        methods=find_cards(),
        evaluators=tuple(evaluator.card for evaluator in find_evaluators()),
        finetuners=tuple(finetuner.card for finetuner in find_finetuners()),
        transforms=tuple(step.card for step in find_transforms()),
        post_steps=tuple(step.card for step in find_post_steps()),
        analyses=tuple(one.card for one in find_analyses()),
    )


def render(catalog: Catalog) -> str:
    """Return the catalog as it is committed: sorted keys, indented, with a newline at the end."""
    return json.dumps(catalog.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def refuse_collisions(claims: Iterable[tuple[str, str]]) -> None:
    """Check that no name is claimed by two modules.

    Raises: CatalogFault naming both.
    """
    owners: dict[str, str] = {}
    for name, module in claims:
        if name in owners:
            raise CatalogFault(f"the name {name!r} is claimed by {owners[name]} and {module}; rename one of them")
        owners[name] = module


def main(arguments: Sequence[str] | None = None, *, path: Path = CATALOG_PATH) -> int:
    """Write the catalog, or with --check compare it with the committed one; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m workers.catalog", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the file differs")
    is_check = parser.parse_args(arguments).check
    wanted = render(build_catalog())
    if not is_check:
        path.write_text(wanted, encoding="utf-8")
        return 0
    found = path.read_text(encoding="utf-8") if path.exists() else ""
    if found == wanted:
        return 0
    lines = difflib.unified_diff(found.splitlines(), wanted.splitlines(), str(path), "the code", lineterm="")
    sys.stdout.write("\n".join([*lines, f"{path} is not what the code says; run `make catalog` and commit it", ""]))
    return 1


def _find(package: ModuleType, kind: type[Entry]) -> dict[str, Entry]:
    names = [f"{package.__name__}.{module.name}" for module in pkgutil.iter_modules(package.__path__)]
    return {name: _only(importlib.import_module(name), kind) for name in sorted(names)}


def _load(package: ModuleType, name: str, kind: type[Entry]) -> Entry:
    return _only(importlib.import_module(f"{package.__name__}.{name}"), kind)


def _name_of(nested: JsonValue) -> str:
    return str(nested["method"]) if isinstance(nested, dict) else ""


def _only(module: ModuleType, kind: type[Entry]) -> Entry:
    entries = [value for value in vars(module).values() if isinstance(value, kind)]
    if len(entries) != 1:
        raise CatalogFault(f"{module.__name__} holds {len(entries)} of {kind.__name__}; expected exactly one")
    return entries[0]


def _names(method: MergeMethod) -> tuple[str, ...]:
    return (method.card.name, *method.card.aliases)


if __name__ == "__main__":
    sys.exit(main())
