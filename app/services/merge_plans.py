"""What a merge costs, and whether the store has room for it."""

from app.db.checkpoints import load_manifests
from app.db.engine import Sessions
from app.domain.catalog import load_catalog
from app.domain.errors import OutOfDisk
from app.domain.planning import plan_merge
from app.domain.plans import MergePlan
from app.services.merge_drafts import Draft, MergeSpec
from app.services.wiring import Wiring


def make_plan(wiring: Wiring, made: Draft) -> MergePlan:
    """Return the plan of a draft. Raises: IncompatibleCheckpoints, Invalid."""
    beside = wiring.catalog.cards_beside(made.recipe)
    return plan_merge(made.recipe, made.base_manifest, made.manifests, made.card, beside)


def plan_spec(sessions: Sessions, spec: MergeSpec) -> MergePlan:
    """Return the plan of a merge that was accepted; the same as when it was."""
    ids = [str(model["checkpoint"]) for model in spec.models]
    with sessions.read() as session:
        manifests = load_manifests(session, sorted({*ids, *filter(None, (spec.base_model,))}))
    catalog = load_catalog()
    base = manifests[spec.base_model] if spec.base_model is not None else None
    beside = catalog.cards_beside(spec.recipe)
    return plan_merge(spec.recipe, base, [manifests[one] for one in ids], catalog.method(spec.method), beside)


def check_disk(wiring: Wiring, plan: MergePlan) -> None:
    """Refuse a merge that the store has no room for. Raises: OutOfDisk."""
    free = wiring.storage.free_bytes()
    if free is not None and free < plan.disk_bytes:
        raise OutOfDisk(
            f"The merge writes {plan.disk_bytes:,} bytes, and the store has {free:,} left. Delete artifacts that"
            " nothing needs, or give the store more room."
        )
