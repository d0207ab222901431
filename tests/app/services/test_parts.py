"""Rounds of the parts of a merge: which parts tally, and which merge."""

from app.domain.parts import Share
from app.services.parts import PartSpec, first_round

SHARES = tuple(Share(index=index, n_parts=4, files=(f"f{index}",)) for index in range(4))


def test_without_rounds_of_statistics_every_share_is_merged_at_once() -> None:
    assert first_round(SHARES, n_rounds=0, n_tallying=2) == [PartSpec(share=share, round=0) for share in SHARES]


def test_as_many_parts_tally_as_can_run_at_once() -> None:
    first = first_round(SHARES, n_rounds=2, n_tallying=2)
    assert [(spec.share.index, spec.share.n_parts, spec.share.files) for spec in first] == [
        (0, 2, ("f0", "f1")),
        (1, 2, ("f2", "f3")),
    ]
    second = [one for spec in first for one in spec.follow(is_left=True)]
    assert [(spec.round, spec.share, spec.merging) for spec in second] == [
        (1, spec.share, spec.merging) for spec in first
    ]
    third = [one for spec in second for one in spec.follow(is_left=True)]
    assert third == [PartSpec(share=share, round=2) for share in SHARES]


def test_a_round_more_than_the_plan_said_is_one_of_the_merging_shares() -> None:
    spec = PartSpec(share=SHARES[0], round=2)
    assert spec.follow(is_left=True) == [PartSpec(share=SHARES[0], round=3)]


def test_where_nothing_was_left_to_tally_the_merge_follows_at_once() -> None:
    first = first_round(SHARES, n_rounds=2, n_tallying=3)
    assert [one for spec in first for one in spec.follow(is_left=False)] == [
        PartSpec(share=share, round=1) for share in SHARES
    ]


def test_more_places_than_shares_change_nothing_and_none_means_unknown() -> None:
    for n_tallying in (0, 4, 9):
        assert first_round(SHARES, n_rounds=2, n_tallying=n_tallying) == first_round(SHARES, n_rounds=0, n_tallying=2)
