"""What the service can do: methods, evaluators, fine-tuning techniques, with their parameters as JSON Schema."""

from fastapi import APIRouter

from app.api.dependencies import CatalogDep
from app.api.problems import problems
from app.api.schemas.catalog import EvaluatorList, FinetunerList, MethodList
from app.domain.catalog import EvaluatorCard, FinetunerCard, MethodCard
from app.domain.errors import EvaluatorNotFound, MethodNotFound, NotFound, near_match

router = APIRouter(prefix="/v1", tags=["catalog"])


@router.get("/methods", operation_id="list_methods", summary="All merge methods")
def list_methods(catalog: CatalogDep) -> MethodList:
    """List the cards of all merge methods."""
    return MethodList(items=list(catalog.methods))


@router.get(
    "/methods/{name}",
    operation_id="get_method",
    summary="One merge method",
    responses=problems(MethodNotFound),
)
def get_method(name: str, catalog: CatalogDep) -> MethodCard:
    """Give a method's card, by name or alias."""
    return catalog.method(name)


@router.get("/evaluators", operation_id="list_evaluators", summary="All evaluators")
def list_evaluators(catalog: CatalogDep) -> EvaluatorList:
    """List the cards of all evaluators; an evaluator's name is the `kind` of the tasks it measures."""
    return EvaluatorList(items=list(catalog.evaluators))


@router.get(
    "/evaluators/{name}",
    operation_id="get_evaluator",
    summary="One evaluator",
    responses=problems(EvaluatorNotFound),
)
def get_evaluator(name: str, catalog: CatalogDep) -> EvaluatorCard:
    """Give an evaluator's card."""
    return catalog.evaluator(name)


@router.get("/finetuners", operation_id="list_finetuners", summary="All fine-tuning techniques")
def list_finetuners(catalog: CatalogDep) -> FinetunerList:
    """List the cards of all fine-tuning techniques."""
    return FinetunerList(items=list(catalog.finetuners))


@router.get(
    "/finetuners/{name}",
    operation_id="get_finetuner",
    summary="One fine-tuning technique",
    responses=problems(NotFound),
)
def get_finetuner(name: str, catalog: CatalogDep) -> FinetunerCard:
    """Give the card of a fine-tuning technique."""
    cards = {card.name: card for card in catalog.finetuners}
    if name not in cards:
        match = near_match(name, cards)
        hint = f" Did you mean {match!r}?" if match else ""
        raise NotFound(f"There is no fine-tuning technique {name!r}.{hint} Known: {', '.join(cards)}.")
    return cards[name]
