# SPDX-License-Identifier: MIT
"""The life of a session, in one table [LIFE-1].

Two rules of this file, h11's: everything that affects a transition stands here, and nothing here knows which side we
are, so that no side can apply softer rules to itself. No I/O, no ring, no clock.
"""

import enum

from pcisplit.wire import State


class Role(enum.Enum):
    FRONT = "front"
    BACK = "back"


_S = State
_ANY = frozenset(State)

#: TRANSITIONS[role][own state][next state] = states of the peer in which the step is allowed.
TRANSITIONS: dict[Role, dict[State, dict[State, frozenset[State]]]] = {
    Role.FRONT: {
        _S.UNKNOWN: {_S.INITIALISING: frozenset({_S.INIT_WAIT}), _S.CLOSED: _ANY},
        _S.INITIALISING: {_S.INITIALISED: frozenset({_S.INIT_WAIT}), _S.CLOSING: _ANY, _S.CLOSED: _ANY},
        _S.INITIALISED: {_S.CONNECTED: frozenset({_S.CONNECTED}), _S.CLOSING: _ANY, _S.CLOSED: _ANY},
        _S.CONNECTED: {_S.RECONFIGURING: frozenset({_S.RECONFIGURING}), _S.CLOSING: _ANY, _S.CLOSED: _ANY},
        _S.RECONFIGURING: {_S.CONNECTED: frozenset({_S.RECONFIGURED}), _S.CLOSING: _ANY, _S.CLOSED: _ANY},
        _S.CLOSING: {_S.CLOSED: _ANY},
        _S.CLOSED: {},
    },
    Role.BACK: {
        _S.UNKNOWN: {_S.INITIALISING: frozenset({_S.UNKNOWN})},
        _S.INITIALISING: {_S.INIT_WAIT: frozenset({_S.UNKNOWN}), _S.CLOSING: _ANY},
        _S.INIT_WAIT: {_S.CONNECTED: frozenset({_S.INITIALISED}), _S.CLOSING: _ANY},
        _S.CONNECTED: {_S.RECONFIGURING: frozenset({_S.CONNECTED}), _S.CLOSING: _ANY},
        _S.RECONFIGURING: {_S.RECONFIGURED: frozenset({_S.RECONFIGURING}), _S.CLOSING: _ANY},
        _S.RECONFIGURED: {_S.CONNECTED: frozenset({_S.CONNECTED}), _S.CLOSING: _ANY},
        _S.CLOSING: {_S.CLOSED: _ANY},
        _S.CLOSED: {},
    },
}


def may_step(role: Role, own: State, peer: State, new: State) -> bool:
    """Whether a side of `role` in state `own` may go to `new` while its peer is in `peer`."""
    return peer in TRANSITIONS[role].get(own, {}).get(new, frozenset())


def front_step_untrusted(old: State, raw: int, back: State) -> State | None:
    """The front's new state as the back read it, or None if the front could not have got there [LIFE-2].

    The back samples the word, so several steps may lie between two looks; and it may have moved on since the front took
    one. So a state is allowed when it can be reached from `old` by steps that some state up to `back` allows.
    """
    try:
        new = State(raw)
    except ValueError:
        return None
    reached, fresh = {old}, [old]
    while fresh:
        steps = TRANSITIONS[Role.FRONT].get(fresh.pop(), {})
        more = {step for step, peers in steps.items() if min(peers) <= back} - reached
        reached |= more
        fresh += more
    return new if new in reached else None
