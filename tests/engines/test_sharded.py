"""One client at a time on all devices: what comes out is what one device makes, up to the rounding of the means."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from forked import forked
from slowly import mostly_slowly
from test_invariance import everything
from test_trivial_cases import METHODS, clients_of
from toys import toy_federator

from flt.client_states import ClientStates
from flt.engines.processes import Processes
from flt.engines.sharded import Sharded
from flt.messages import decode
from flt.places import Parts

QUICK = ["scaffold", "hafl freeze", "sa_fedlora"]


def split(name: str, folder: Path, processes: Processes) -> tuple[list[bytes], list[dict[str, float]]]:
    """A federation of one of the methods, every fit of which is split."""
    recipe, settings = METHODS[name]
    federator = toy_federator(recipe, **{**settings, "clients": clients_of(3), "rounds": 1})
    federator.client_states = ClientStates(folder, writes=processes.is_first)
    federator.engine = Sharded(federator.engine.site, federator.clients, processes, nodes=1)
    federator.fit()
    return everything(federator), federator.history


@pytest.mark.parametrize("name", mostly_slowly(METHODS, QUICK))
def test_two_processes_that_split_each_batch_make_what_one_makes(name: str, tmp_path: Path) -> None:
    recipe, settings = METHODS[name]
    serial = toy_federator(recipe, **{**settings, "clients": clients_of(3), "rounds": 1})
    serial.fit()
    (found, _), (other, _) = forked(functools.partial(split, name, tmp_path / "states"), 2, tmp_path)
    assert found == other
    expected = everything(serial)
    assert len(found) == len(expected)
    for one, two in zip(found[0:1], expected[0:1], strict=True):
        one, two = decode(one).groups, decode(two).groups
        assert one.keys() == two.keys()
        for gid in one:
            for key, tensor in one[gid].weights.items():
                torch.testing.assert_close(tensor, two[gid].weights[key], rtol=1e-5, atol=1e-5)


def test_every_example_of_a_batch_is_in_one_part() -> None:
    batches = [[5, 1, 9, 4], [2, 7, 3], [8]]
    parts = [list(Parts(batches, rank, 2)) for rank in range(2)]  # type: ignore[arg-type]  # a list does for a sampler
    for batch, *its in zip(batches[:2], *parts, strict=False):
        assert sorted(sum(its, [])) == sorted(batch)
    assert [part[2] for part in parts] == [[8], [8]]
    assert [len(Parts(batches, 0, 2))] == [3]  # type: ignore[arg-type]  # as above
