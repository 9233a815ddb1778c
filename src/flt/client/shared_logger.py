"""The user's logger, shared by the fits of all clients."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.loggers import Logger


class SharedLogger(Logger):
    """Lets the fits of all clients log to the user's logger, on one count of steps for the whole federation.

    Every fit has a Trainer of its own, whose steps begin at 0.

    Args:
        logger: The user's, or the run's own.
        step: Steps that the federation had taken before.
        forwards: Whether metrics are handed on; else a fit only finds the logger's ``experiment``.
    """

    def __init__(self, logger: Logger, step: int = 0, forwards: bool = True) -> None:
        self.logger, self.step, self.forwards = logger, step, forwards

    @property
    def name(self) -> str | None:
        """The user's logger's."""
        return self.logger.name

    @property
    def version(self) -> int | str | None:
        """The user's logger's."""
        return self.logger.version

    @property
    def save_dir(self) -> str | None:
        """None: what a fit's callbacks write goes under the Trainer's own root, not among the run's files."""
        return None

    @property
    def experiment(self) -> Any:
        """What the user's logger writes to."""
        return getattr(self.logger, "experiment", None)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Hands on the metrics, at the federation's step."""
        if self.forwards:
            self.logger.log_metrics(metrics, step=self.step + (step or 0))

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the federation logs them once."""
