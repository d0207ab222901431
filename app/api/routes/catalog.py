"""What the service can do: methods, evaluators, fine-tuning techniques, with their parameters as JSON Schema."""

from collections.abc import Sequence
from typing import TypeVar

from fastapi import APIRouter

from app.api.dependencies import CatalogDep
from app.api.pages import ShortPageDep
from app.api.problems import problems
from app.db.paging import paginate_sorted
from app.domain.catalog import AnalysisCard, EvaluatorCard, FinetunerCard, MethodCard, StepCard
from app.domain.errors import (
    BadCursor,
    EvaluatorNotFound,
    MethodNotFound,
    NotFound,
    UnknownAnalysis,
    UnknownTechnique,
)
from app.domain.views.pages import Page, PageRequest

Card = TypeVar("Card", MethodCard, EvaluatorCard, FinetunerCard, StepCard, AnalysisCard)

router = APIRouter(prefix="/v1", tags=["catalog"])


@router.get("/methods", operation_id="list_methods", responses=problems(BadCursor), summary="All merge methods")
def list_methods(catalog: CatalogDep, page: ShortPageDep) -> Page[MethodCard]:
    """List the cards of all merge methods."""
    return _page(catalog.methods, page)


@router.get(
    "/methods/{name}",
    operation_id="get_method",
    summary="One merge method",
    responses=problems(MethodNotFound),
)
def get_method(name: str, catalog: CatalogDep) -> MethodCard:
    """Give a method's card, by name or alias."""
    return catalog.method(name)


@router.get("/evaluators", operation_id="list_evaluators", responses=problems(BadCursor), summary="All evaluators")
def list_evaluators(catalog: CatalogDep, page: ShortPageDep) -> Page[EvaluatorCard]:
    """List the cards of all evaluators; an evaluator's name is the `kind` of the tasks it measures."""
    return _page(catalog.evaluators, page)


@router.get(
    "/evaluators/{name}",
    operation_id="get_evaluator",
    summary="One evaluator",
    responses=problems(EvaluatorNotFound),
)
def get_evaluator(name: str, catalog: CatalogDep) -> EvaluatorCard:
    """Give an evaluator's card."""
    return catalog.evaluator(name)


@router.get(
    "/finetuners", operation_id="list_finetuners", responses=problems(BadCursor), summary="All fine-tuning techniques"
)
def list_finetuners(catalog: CatalogDep, page: ShortPageDep) -> Page[FinetunerCard]:
    """List the cards of all fine-tuning techniques."""
    return _page(catalog.finetuners, page)


@router.get(
    "/finetuners/{name}",
    operation_id="get_finetuner",
    summary="One fine-tuning technique",
    responses=problems(NotFound),
)
def get_finetuner(name: str, catalog: CatalogDep) -> FinetunerCard:
    """Give the card of a fine-tuning technique."""
    try:
        return catalog.finetuner(name)
    except UnknownTechnique as error:  # here it is the address that is wrong, not a body
        raise NotFound(error.detail) from None


@router.get("/transforms", operation_id="list_transforms", responses=problems(BadCursor), summary="All transforms")
def list_transforms(catalog: CatalogDep, page: ShortPageDep) -> Page[StepCard]:
    """List the cards of what can stand before a merge method: `transforms` of a merge names them."""
    return _page(catalog.transforms, page)


@router.get("/post_steps", operation_id="list_post_steps", responses=problems(BadCursor), summary="All post-steps")
def list_post_steps(catalog: CatalogDep, page: ShortPageDep) -> Page[StepCard]:
    """List the cards of what can stand after a merge method: `post_steps` of a merge names them."""
    return _page(catalog.post_steps, page)


@router.get(
    "/analyses/kinds",
    operation_id="list_analysis_kinds",
    responses=problems(BadCursor),
    summary="All kinds of analyses",
)
def list_analysis_kinds(catalog: CatalogDep, page: ShortPageDep) -> Page[AnalysisCard]:
    """List the cards of all kinds of analyses: what each one answers, takes and finds."""
    return _page(catalog.analyses, page)


@router.get(
    "/analyses/kinds/{name}",
    operation_id="get_analysis_kind",
    summary="One kind of analysis",
    responses=problems(NotFound),
)
def get_analysis_kind(name: str, catalog: CatalogDep) -> AnalysisCard:
    """Give the card of a kind of analysis: its parameters, and its report's data as JSON Schema."""
    try:
        return catalog.analysis(name)
    except UnknownAnalysis as error:  # here it is the address that is wrong, not a body
        raise NotFound(error.detail) from None


def _page(cards: Sequence[Card], page: PageRequest) -> Page[Card]:
    listed = sorted(cards, key=lambda card: card.name, reverse=page.is_descending)
    names = [card.name for card in listed]
    filters = {"list": sorted(names)[:1]}
    cut = paginate_sorted(
        names, limit=page.limit, cursor=page.cursor, filters=filters, is_descending=page.is_descending
    )
    return Page(items=listed[cut.start : cut.end], next_cursor=cut.next_cursor)
