"""Context managers that silence libraries and adapt them to a run with hundreds of Trainers, one for each local fit."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import logging
import signal
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars
from lightning.fabric.utilities import registry
from transformers.utils import logging as transformers_logging

_LOGGERS = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")

# Lightning repeats these warnings for each Trainer. A run with a thousand fits would print them a thousand times.
_ADVICE = (
    r".*does not have many workers.*",
    r".*`validation_step` but have no `val_dataloader`.*",
    r".*`val_dataloader` but have no `validation_step`.*",
    r".*number of training batches.*smaller than the logging interval.*",
    r".*GPU available but not used.*",
    r".*LeafSpec.*",
    r".*`isinstance\(treespec.*",
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*No `?device id`? is provided.*",
    r".*find_unused_parameters=True was specified.*",
    r".*found \d+ module\(s\) in eval mode.*",
    r".*Found \d+ module\(s\) in eval mode.*",
    # Only a fit without held-out examples lacks such a metric and still goes on.
    r".*conditioned on metric.*not available.*",
)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences the log messages of Lightning below the level ERROR, and the warnings that match ``_ADVICE``."""
    # Filters are used because a change of a logger's level clears the cache of every logger, which costs 4 ms per fit.
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    for logger in loggers:
        logger.addFilter(_is_error)
    try:
        with warnings.catch_warnings():
            for pattern in _ADVICE:
                warnings.filterwarnings("ignore", pattern)
            yield
    finally:
        for logger in loggers:
            logger.removeFilter(_is_error)


_entry_points: Any = functools.cache(importlib.metadata.entry_points)


@contextlib.contextmanager
def cached_entry_points() -> Iterator[None]:
    """Caches the list of the installed packages' entry points. Every Trainer looks for callbacks in this list.

    Reading the list takes several milliseconds, which is as long as a few optimiser steps. The function behind an entry
    point makes the callbacks and is still called for each Trainer.
    """
    found = registry.entry_points
    registry.entry_points = _entry_points
    try:
        yield
    finally:
        registry.entry_points = found


@contextlib.contextmanager
def single_process() -> Iterator[None]:
    """Hides the other processes of the run from a Trainer.

    Otherwise the Trainer would average its metrics with the metrics of processes that train other clients, or would
    wait for these processes forever.
    """
    known = torch.distributed.is_initialized
    torch.distributed.is_initialized = lambda: False
    try:
        yield
    finally:
        torch.distributed.is_initialized = known


@contextlib.contextmanager
def quiet_launch() -> Iterator[None]:
    """Silences the messages of Lightning Fabric about the processes that Fabric starts."""
    loggers = [logging.getLogger(name) for name in ("lightning.fabric", "lightning.pytorch")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def keyboard_interrupts_pass() -> Iterator[None]:
    """Raises ``KeyboardInterrupt`` if Ctrl-C stops a Trainer.

    Lightning turns the ``KeyboardInterrupt`` into a ``SystemExit``. This context manager turns it back.
    """
    try:
        yield
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning leaves SIGINT ignored
        raise type(error.__context__)() from error


@contextlib.contextmanager
def without_fast_path() -> Iterator[None]:
    """Disables the fast path of torch's transformer layers.

    In evaluation mode, the fast path reads the weights of the linear layers directly and would ignore LoRA.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silences the logs and progress bars of transformers, and restores the user's settings afterwards."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    hub_bars = not are_progress_bars_disabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
            if not hub_bars:
                disable_progress_bars()
