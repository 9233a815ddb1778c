"""The origin of a model's weights: a checkpoint, or random draws.

Weights that were drawn at random are in no checkpoint. An export must therefore contain them, or draw them again when
it is loaded.
"""

from __future__ import annotations

import dataclasses

from torch import nn

_ATTRIBUTE = "flt_origin"


@dataclasses.dataclass(frozen=True)
class Origin:
    """The origin of the weights of a transformers model.

    Attributes:
        drawn: Names of the tensors that were drawn at random: those of the head, and any others that are missing from
            the checkpoint.
        seed: Seed from which all weights were drawn if ``model.random`` is true. None: all other weights come from a
            checkpoint.
        classes: Number of outputs of the head when the weights were drawn. The values of all drawn weights depend on
            this number. None: no head was drawn.
        package: Folder inside a Python package that also contains the checkpoint. None: no package is configured.
        use_cache: Value of ``use_cache`` in the model's config before flt changed it. The setting switches the cache of
            keys and values in generation on or off. None: the config doesn't have it.
    """

    drawn: tuple[str, ...] = ()
    seed: int | None = None
    classes: int | None = None
    package: str | None = None
    use_cache: bool | None = None


def set_origin(model: nn.Module, origin: Origin) -> None:
    """Stores a model's origin in the model. Copies of the model keep it."""
    setattr(model, _ATTRIBUTE, origin)


def origin_of(model: nn.Module) -> Origin:
    """Returns the origin of a model. For a model that flt didn't load, all fields have their defaults."""
    return getattr(model, _ATTRIBUTE, Origin())


def drawn_tensor_names(module: nn.Module) -> set[str]:
    """Returns the names of the tensors that were drawn at random, for all models inside a module.

    These are the names that the tensors had before an adapter wrapped their layers.

    Example:
        >>> inner = nn.Linear(2, 2)
        >>> set_origin(inner, Origin(("weight",)))
        >>> drawn_tensor_names(nn.Sequential(inner))
        {'0.weight'}
    """
    drawn_by_module = ((name, origin_of(submodule).drawn) for name, submodule in module.named_modules())
    return {f"{name}.{key}" if name else key for name, drawn in drawn_by_module for key in drawn}
