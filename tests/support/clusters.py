"""Updates around known centres, and the groups that a grouping finds."""

from __future__ import annotations

import dataclasses

from made import update_of

from flt.algorithm.grouping.base import Groups
from flt.algorithm.view import View
from flt.protocol.messages import Ids, JobId, Update


def jobs_in(groups: Groups) -> dict[int, set[JobId]]:
    return {gid: {update.job for update in its} for gid, its in groups.members.items()}


def sets_in(groups: Groups) -> set[frozenset[JobId]]:
    return {frozenset(jobs) for jobs in jobs_in(groups).values()}


def around(view: View, job: JobId, centre: int, spread: float = 0.05, kept: dict[str, Ids] | None = None) -> Update:
    """An update near one of a few centres."""
    noise, middle = update_of(view, job, kept), update_of(view, (900 + centre, 0), kept)
    tensors = {name: middle.tensors[name] + spread * tensor for name, tensor in noise.tensors.items()}
    return dataclasses.replace(noise, tensors=tensors)


def moved(view: View, job: JobId, centre: int) -> Update:
    """An update that went from its broadcast in a direction."""
    far = around(view, job, centre, 0.01)
    sent = view.sent_to(job)
    return dataclasses.replace(far, tensors={name: sent[name] + far.tensors[name] for name in far.tensors})
