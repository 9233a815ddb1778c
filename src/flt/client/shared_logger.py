"""Logger that the fits of all clients share."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.loggers import Logger


class SharedLogger(Logger):
    """Lets the fits of all clients log to one logger, with one step count for the whole federation.

    Every fit has its own Trainer, whose steps begin at 0.

    Args:
        logger: The user's logger, or the run's own.
        step: Steps that the federation has already taken.
        forwards: True if metrics are passed on; otherwise a fit can only use the logger's ``experiment``.
    """

    def __init__(self, logger: Logger, step: int = 0, forwards: bool = True) -> None:
        self.logger, self.step, self.forwards = logger, step, forwards

    @property
    def name(self) -> str | None:
        """Name of the shared logger."""
        return self.logger.name

    @property
    def version(self) -> int | str | None:
        """Version of the shared logger."""
        return self.logger.version

    @property
    def save_dir(self) -> str | None:
        """None, so that a fit's callbacks write below the Trainer's own root, not among the run's files."""
        return None

    @property
    def experiment(self) -> Any:
        """Object that the shared logger writes to."""
        return getattr(self.logger, "experiment", None)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Passes metrics on, with the federation's step."""
        if self.forwards:
            self.logger.log_metrics(metrics, step=self.step + (step or 0))

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the federation logs the hyperparameters once."""
