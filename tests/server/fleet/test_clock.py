"""When a round ends by the simulated clock, and whose updates it takes: by hand."""

from __future__ import annotations

import pytest

from flt.core.errors import InputError
from flt.protocol.failure import Late
from flt.protocol.messages import decode, encode
from flt.server.client_sampling import FixedSize, Poisson
from flt.server.fleet.clock import Clock
from flt.server.fleet.sampler import over_selected

TIMES = {0: 5.0, 1: 2.0, 2: 9.0, 3: 4.0}


@pytest.mark.parametrize(
    ("clock", "taken", "seconds"),
    [
        (Clock(), [1, 3, 0, 2], 9.0),
        (Clock(deadline=20.0), [1, 3, 0, 2], 9.0),
        (Clock(deadline=5.0), [1, 3, 0], 5.0),
        (Clock(deadline=4.5), [1, 3], 4.5),
        (Clock(deadline=1.0), [], 1.0),
        (Clock(wanted=2), [1, 3], 4.0),
        (Clock(wanted=4), [1, 3, 0, 2], 9.0),
        (Clock(wanted=7), [1, 3, 0, 2], 9.0),
        (Clock(wanted=2, deadline=3.0), [1], 3.0),
        (Clock(wanted=2, deadline=6.0), [1, 3], 4.0),
    ],
)
def test_a_round_ends_with_the_last_client_that_it_waits_for_or_at_the_deadline(
    clock: Clock, taken: list[int], seconds: float
) -> None:
    found = clock.in_time(TIMES, round=0)
    assert found == taken
    assert clock.length(TIMES, {client: TIMES[client] for client in found}) == seconds


def test_a_round_without_clients_takes_no_time_or_lasts_until_the_deadline() -> None:
    assert Clock().length({}, {}) == 0.0
    assert Clock(deadline=3.0).length({}, {}) == 3.0


def test_the_server_waits_for_a_client_that_fails_as_long_as_that_works() -> None:
    assert Clock().length(TIMES, {1: 2.0}) == 9.0
    assert Clock(wanted=2).length(TIMES, {1: 2.0}) == 9.0


def test_of_clients_that_arrive_together_a_draw_decides_in_each_round_anew() -> None:
    clock, together = Clock(seed=3, wanted=2), dict.fromkeys(range(6), 1.0)
    first = [frozenset(clock.in_time(together, round)) for round in range(30)]
    assert first == [frozenset(clock.in_time(together, round)) for round in range(30)]
    assert len(set(first)) > 5
    assert frozenset.union(*first) == set(range(6))


def test_over_selection_draws_further_clients_rounded_up_and_no_more_than_there_are() -> None:
    assert over_selected(FixedSize(10), 0.0, 100) == FixedSize(10)
    assert over_selected(FixedSize(10), 0.01, 100) == FixedSize(11)
    assert over_selected(FixedSize(10), 0.3, 100) == FixedSize(13)
    assert over_selected(FixedSize(10), 1.1, 100) == FixedSize(21)  # 1.1 x 10 is a little above 11 in floating point
    assert over_selected(FixedSize(10), 5.0, 12) == FixedSize(12)
    assert over_selected(FixedSize(100), 0.55, 1000) == FixedSize(155)  # 0.55 * 100 is 55.00000000000001
    for sampler in (FixedSize(None), Poisson(0.5)):
        with pytest.raises(InputError, match=r"fleet\.over_selection=0\.3"):
            over_selected(sampler, 0.3, 100)


def test_processes_tell_each_other_who_is_late() -> None:
    late = Late((3, 1), "why")
    assert decode(encode(late)) == late
    assert isinstance(decode(encode(late)), Late)
