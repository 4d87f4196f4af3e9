# SPDX-License-Identifier: MIT
"""The table of transitions, walked whole."""

import itertools

import pytest

from pcisplit.proto.states import TRANSITIONS, Role, front_step_untrusted, may_step
from pcisplit.wire import State


@pytest.mark.parametrize("role", Role)
@pytest.mark.clause("LIFE-1")
def test_every_state_of_a_side_has_a_row_and_ends_closed(role: Role) -> None:
    rows = TRANSITIONS[role]
    for state, steps in rows.items():
        assert all(new in rows for new in steps), state
    assert rows[State.CLOSED] == {}
    for state in rows:
        reached, fresh = {state}, [state]
        while fresh:
            fresh += [new for new in rows[fresh.pop()] if new not in reached and not reached.add(new)]  # type: ignore[func-returns-value]
        assert State.CLOSED in reached, f"{role} cannot close from {state}"


@pytest.mark.clause("LIFE-1", "LIFE-2")
def test_every_step_that_is_not_in_the_table_is_refused() -> None:
    for old, raw, back in itertools.product(TRANSITIONS[Role.FRONT], range(-1, 12), State):
        new = front_step_untrusted(old, raw, back)
        if new is None:
            continue
        assert new == raw
        if new is not old and new in TRANSITIONS[Role.FRONT][old]:
            assert any(may_step(Role.FRONT, old, peer, new) for peer in State if peer <= back)


@pytest.mark.clause("LIFE-2")
@pytest.mark.parametrize(
    "old, new, back, allowed",
    [
        (State.UNKNOWN, State.INITIALISED, State.INIT_WAIT, True),  # two steps between two looks
        (State.UNKNOWN, State.CONNECTED, State.INIT_WAIT, False),  # the back is not Connected
        (State.INITIALISED, State.CONNECTED, State.CONNECTED, True),
        (State.CONNECTED, State.INITIALISED, State.CONNECTED, False),  # never backwards
        (State.CLOSED, State.CONNECTED, State.CONNECTED, False),
        (State.CONNECTED, State.CLOSING, State.CONNECTED, True),
        (State.CONNECTED, State.RECONFIGURED, State.CONNECTED, False),  # the back's state, not the front's
    ],
)
def test_steps_as_sampled(old: State, new: State, back: State, allowed: bool) -> None:
    assert (front_step_untrusted(old, new, back) is new) == allowed
