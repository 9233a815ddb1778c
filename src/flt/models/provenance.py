"""The origin of a model's weights: a checkpoint, or random draws.

An export has to contain the drawn weights or to draw them again, because no checkpoint has them.
"""

from __future__ import annotations

import dataclasses

from torch import nn

_ATTRIBUTE = "flt_origin"


@dataclasses.dataclass(frozen=True)
class Origin:
    """The origin of the weights of a transformers model.

    Attributes:
        drawn: Names of the tensors that flt drew at random: the head's, and any that the checkpoint lacks.
        seed: Seed from which all weights were drawn, with ``model.random``. None: the weights are the checkpoint's.
        classes: Number of outputs of the head when the weights were drawn. The values of all drawn weights depend on
            this number. None: no head.
        package: Folder of a Python package that also has the checkpoint.
        use_cache: ``use_cache`` (of keys and values, in generation) in the model's config, before flt set it to False.
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
    """Returns the origin of a model; an empty one for a model that flt didn't load."""
    return getattr(model, _ATTRIBUTE, Origin())


def drawn_tensor_names(module: nn.Module) -> set[str]:
    """Returns the names of the tensors that were drawn at random, for all models inside a module.

    The names are those from before an adapter wrapped the layers.


    Example:
        >>> inner = nn.Linear(2, 2)
        >>> set_origin(inner, Origin(("weight",)))
        >>> drawn_tensor_names(nn.Sequential(inner))
        {'0.weight'}
    """
    drawn_by_module = ((name, origin_of(submodule).drawn) for name, submodule in module.named_modules())
    return {f"{name}.{key}" if name else key for name, drawn in drawn_by_module for key in drawn}
