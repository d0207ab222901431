"""States and their allowed moves; backoff."""

from app.domain.jobs import FINAL_STATES, LIVE_STATES, MOVES, JobState, retry_delay_seconds


def test_final_states_never_move() -> None:
    assert all(not MOVES[state] for state in FINAL_STATES)


def test_every_live_state_can_reach_a_final_one() -> None:
    for start in LIVE_STATES:
        seen, pending = set(), [start]
        while pending:
            state = pending.pop()
            if state not in seen:
                seen.add(state)
                pending.extend(MOVES[state])
        assert seen & FINAL_STATES == FINAL_STATES


def test_a_lost_job_goes_back_to_the_queue_but_a_canceling_one_does_not() -> None:
    assert JobState.QUEUED in MOVES[JobState.RUNNING]
    assert JobState.QUEUED not in MOVES[JobState.CANCELING]


def test_backoff_doubles_up_to_thirty_seconds() -> None:
    assert [retry_delay_seconds(n) for n in (1, 2, 3, 4, 5, 50)] == [2, 4, 8, 16, 30, 30]
