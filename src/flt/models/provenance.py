"""The origin of a model's weights: pre-trained, or drawn at random.

Weights that were drawn at random can't be loaded from the files of the pre-trained model. An export must therefore
contain these weights, or they must be drawn again when the export is loaded.
"""

from __future__ import annotations

import dataclasses

from torch import nn

_ATTRIBUTE = "flt_origin"


@dataclasses.dataclass(frozen=True)
class Origin:
    """The origin of the weights of a transformers model.

    Attributes:
        drawn: Names of the tensors that were drawn at random: the tensors of the head, and all other tensors for which
            the pre-trained model has no values.
        seed: Seed from which all weights were drawn, if ``model.random`` is true. If None, all weights except those in
            ``drawn`` are pre-trained.
        classes: Number of outputs of the head when the weights were drawn. The values of all drawn weights depend on
            this number. None if no head was drawn.
        package: Folder inside a Python package. If the package is installed, the pre-trained model is loaded from this
            folder. None if no package is configured.
        use_cache: Value of ``use_cache`` in the model's config before flt changed the value. This setting switches the
            cache of keys and values in text generation on or off. None if the config has no such setting.
    """

    drawn: tuple[str, ...] = ()
    seed: int | None = None
    classes: int | None = None
    package: str | None = None
    use_cache: bool | None = None


def set_origin(model: nn.Module, origin: Origin) -> None:
    """Stores a model's origin in the model. Copies of the model keep the origin."""
    setattr(model, _ATTRIBUTE, origin)


def origin_of(model: nn.Module) -> Origin:
    """Returns the origin of a model. For a model that flt didn't load, all fields have their defaults."""
    return getattr(model, _ATTRIBUTE, Origin())


def drawn_tensor_names(module: nn.Module) -> set[str]:
    """Returns the names of the tensors that were drawn at random, for all models inside a module.

    A tensor is listed under the name that it had before an adapter wrapped its layer.

    Example:
        >>> inner = nn.Linear(2, 2)
        >>> set_origin(inner, Origin(("weight",)))
        >>> drawn_tensor_names(nn.Sequential(inner))
        {'0.weight'}
    """
    drawn_by_module = ((name, origin_of(submodule).drawn) for name, submodule in module.named_modules())
    return {f"{name}.{key}" if name else key for name, drawn in drawn_by_module for key in drawn}
