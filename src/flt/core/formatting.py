"""Formatting of sizes and durations, and selection of the metrics to show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

WORST = "_worst10"
"""Suffix of a metric's key if the metric is the mean over the worst 10 % of the cohort's jobs."""


def size(count: float) -> str:
    """Formats a number of bytes in decimal units, such as kB = 1000 B.

    Example:
        >>> size(532), size(120_300), size(999_960)
        ('532 B', '120.3 kB', '1.0 MB')
    """
    if count < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if round(count, 1) < 1000:
            return f"{count:.1f} {unit}"
    return f"{count / 1000:.1f} TB"


def duration(seconds: float) -> str:
    """Formats a duration in its two largest units.

    Example:
        >>> duration(4.12), duration(185), duration(7620)
        ('4.1 s', '3 min 05 s', '2 h 07 min')
    """
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def short_duration(seconds: float) -> str:
    """Formats a duration that may be a small part of a second.

    Example:
        >>> short_duration(0.0435), short_duration(185)
        ('43.5 ms', '3 min 05 s')
    """
    return f"{1000 * seconds:.1f} ms" if seconds < 1 else duration(seconds)


def between(metrics: Mapping[str, float], prefix: str, suffix: str = "") -> dict[str, float]:
    """Selects the metrics whose keys have the given prefix and suffix. Removes prefix and suffix from the keys.

    Example:
        >>> between({"round": 1, "round/val_acc": 0.5}, "round/")
        {'val_acc': 0.5}
    """
    middle = slice(len(prefix), -len(suffix) or None)
    return {key[middle]: v for key, v in metrics.items() if key.startswith(prefix) and key.endswith(suffix)}


def received_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Returns the metrics of the models as received by clients, as means over the cohort's jobs.

    These metrics are the ``clients/`` metrics for which there is also a key with the suffix ``_worst10``.

    Example:
        >>> received_metrics({"clients/steps": 9, "clients/val_acc": 0.5, "clients/val_acc_worst10": 0.1})
        {'val_acc': 0.5}
    """
    measured = between(metrics, "clients/", WORST)
    return {name: metrics[key] for name in measured if (key := f"clients/{name}") in metrics}


def score(names: Iterable[str]) -> str | None:
    """Chooses the metric that best measures a model: a perplexity, else an accuracy, else the first that isn't a loss.

    Returns None if all metrics are losses. The metric ``clustering_acc`` is never chosen, since it measures no model.

    Example:
        >>> score(["val_loss", "val_f1", "val_acc"])
        'val_acc'
        >>> score(["val_loss", "val_acc", "val_perplexity"])
        'val_perplexity'
    """
    others = [name for name in names if "loss" not in name and name != "clustering_acc"]
    known = (name for part in ("perplexity", "acc") for name in others if part in name)
    return next(known, others[0] if others else None)


def accuracy(names: Iterable[str]) -> str | None:
    """Returns the first name of an accuracy metric, or None if there is none. ``clustering_acc`` doesn't count."""
    return next((name for name in names if "acc" in name and name != "clustering_acc"), None)


def printable(text: str, kept: str = "") -> str:
    r"""Returns a text in which control characters, which could change a terminal, are escaped.

    Args:
        text: The text.
        kept: Characters that stay, such as line breaks.

    Example:
        >>> printable("a\x1b[2J")
        'a\\x1b[2J'
    """
    return "".join(c if c.isprintable() or c in kept else c.encode("unicode_escape").decode() for c in text)


def lower_is_better(name: str) -> bool:
    """Returns whether smaller values of a metric are better, which holds for losses and perplexities.

    Example:
        >>> lower_is_better("val_loss"), lower_is_better("val_acc")
        (True, False)
    """
    return "loss" in name or "perplexity" in name


def loss(names: Iterable[str]) -> str | None:
    """Returns the first name of a loss metric, or None if there is none."""
    return next((name for name in names if "loss" in name), None)
