"""One client at a time on all devices: what comes out is what one device makes, up to the rounding of the means."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from forked import forked
from methods import METHODS, clients_of
from slowly import mostly_slowly
from toys import assert_same, toy_federator
from whole_runs import everything

from flt.engines.process_group import ProcessGroup
from flt.engines.sharded import ShardedEngine
from flt.engines.sharded_placement import Parts
from flt.protocol.messages import decode
from flt.server.client_state_store import ClientStateStore

QUICK = ["scaffold", "hafl freeze", "sa_fedlora"]


def split(name: str, folder: Path, processes: ProcessGroup) -> list[bytes]:
    """A federation of one of the methods, every fit of which is split."""
    recipe, settings = METHODS[name]
    federator = toy_federator(recipe, **{**settings, "clients": clients_of(3), "rounds": 1})
    folder.mkdir(parents=True, exist_ok=True)
    federator.client_states = ClientStateStore(folder, writes=processes.is_first)
    federator.engine = ShardedEngine(federator.engine.local_trainer, federator.clients, processes, nodes=1)
    federator.fit()
    return everything(federator)


@pytest.mark.parametrize("name", mostly_slowly(METHODS, QUICK))
@pytest.mark.slow
def test_two_processes_that_split_each_batch_make_what_one_makes(name: str, tmp_path: Path) -> None:
    recipe, settings = METHODS[name]
    serial = toy_federator(recipe, **{**settings, "clients": clients_of(3), "rounds": 1})
    serial.fit()
    found, other = forked(functools.partial(split, name, tmp_path / "states"), 2, tmp_path)
    assert found == other
    (state, *private), (whole, *kept) = ([decode(data) for data in its] for its in (found, everything(serial)))
    assert state.groups.keys() == whole.groups.keys()
    for gid, group in state.groups.items():
        assert_same(group.weights, whole.groups[gid].weights, 1e-5)
    for one, two in zip(private, kept, strict=True):
        assert_same(one.tensors, two.tensors, 1e-5)
        assert one.slots.keys() == two.slots.keys()
        for slot in one.slots:
            assert_same(one.slots[slot], two.slots[slot], 1e-4)  # a gradient's error, which lr has not made smaller


def test_every_example_of_a_batch_is_in_one_part() -> None:
    batches = [[5, 1, 9, 4], [2, 7, 3], [8]]
    parts = [list(Parts(batches, rank, 2)) for rank in range(2)]  # type: ignore[arg-type]  # a list does for a sampler
    for batch, *its in zip(batches[:2], *parts, strict=False):
        assert sorted(sum(its, [])) == sorted(batch)
    assert [part[2] for part in parts] == [[8], [8]]
    assert [len(Parts(batches, 0, 2))] == [3]  # type: ignore[arg-type]  # as above
