"""What fresh processes take: to the end of round 1 with all imports, and with many clients beside few."""

from __future__ import annotations

from pathlib import Path

from benchmarks.speed import cases, pairing, workload
from benchmarks.speed.cases import Verdict
from benchmarks.speed.contestant import ContestantError, MissingError, Round

MANY, FEW = 10_000, 10


def first_round(source: Path, folder: Path, pairs: int) -> Verdict:
    """From the start of the process to the end of round 1: ``flt.fit`` as it is, and Flower, in turn.

    Args:
        source: The workload.
        folder: Of logs and weights.
        pairs: How many times.
    """
    taken: dict[str, list[Round]] = {"start": [], "flower": []}
    difference = 0.0
    for i in range(pairs):
        weights = []
        for name in sorted(taken, reverse=i % 2 == 1):
            its = cases.contestant(name, source, folder, ["--whole"], "serial" if name == "start" else "")
            try:
                taken[name].append(its.first())
            except (OSError, MissingError, ContestantError) as error:
                return Verdict(*_missing(cases.FIRST_ROUND, f"{name}: {error}"))
            finally:
                its.stop()
            weights.append(taken[name][-1].weights)
        difference = max(difference, pairing.furthest(*weights))
    name, bound = cases.FIRST_ROUND
    seconds = pairing.Timed(taken, {})
    said = f"{seconds.median('start', 'wall'):.1f} s against {seconds.median('flower', 'wall'):.1f} s"
    return Verdict(name, seconds.ratio("start", "flower", "wall"), bound, difference, said)


def many_clients(folder: Path, rounds: int) -> list[Verdict]:
    """A cohort of ten of 10,000 clients beside one of ten: the time of a round, and the peak of the memory.

    Args:
        folder: Of workloads, logs and weights.
        rounds: Timed ones.
    """
    why: dict[str, str] = {}
    sizes = {clients: workload.Size(clients=clients, rounds=rounds + pairing.CHECKED) for clients in (MANY, FEW)}
    made = {clients: workload.make(folder / f"clients-{clients}", size) for clients, size in sizes.items()}
    ours = [cases.contestant(f"of-{clients}", path, folder, engine="serial") for clients, path in made.items()]
    loop = cases.contestant("loop", made[MANY], folder, engine=cases.REFERENCE)
    with cases.started([loop, *ours], why) as there:
        if why:
            said = "; ".join(why.values())
            return [Verdict(*_missing(its, said)) for its in (cases.ROUND_OF_MANY, cases.MEMORY_OF_MANY)]
        checked = {name: there[name] for name in ("loop", f"of-{MANY}")}
        difference = pairing.compare(checked, "loop", 0).differences[f"of-{MANY}"]
        loop.stop()
        timed = pairing.Timed(pairing.run({its.name: its for its in ours}, rounds), {})
    one, other = f"of-{MANY}", f"of-{FEW}"
    time = timed.ratio(one, other, "wall")
    peaks = [timed.rounds[name][-1].peak_mb for name in (one, other)]
    memory = pairing.Ratio(peaks[0] / peaks[1], peaks[0] / peaks[1], peaks[0] / peaks[1], 1, 0, False)
    said = f"{timed.median(one, 'wall'):.2f} s against {timed.median(other, 'wall'):.2f} s"
    in_mb = f"{peaks[0]:.0f} MB against {peaks[1]:.0f} MB"
    return [
        Verdict(cases.ROUND_OF_MANY[0], time, cases.ROUND_OF_MANY[1], difference, said),
        Verdict(cases.MEMORY_OF_MANY[0], memory, cases.MEMORY_OF_MANY[1], difference, in_mb),
    ]


def _missing(of: tuple[str, float], why: str) -> tuple[str, None, float, None, str]:
    return of[0], None, of[1], None, why
