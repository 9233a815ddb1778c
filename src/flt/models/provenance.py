"""Where a model's weights come from: what no checkpoint has, an export has to bring along or to draw again."""

from __future__ import annotations

import dataclasses

from torch import nn

_PLACE = "flt_origin"


@dataclasses.dataclass(frozen=True)
class Origin:
    """How a model of transformers came about.

    Attributes:
        drawn: Names of its tensors that were drawn here: the head's, and those that the checkpoint lacks.
        seed: What all weights were drawn from, for ``model.random``; None: they are the checkpoint's.
        classes: Outputs of the head that was drawn with them, on which the other draws depend; None: no head.
        package: Folder of a Python package that has the checkpoint, too.
        use_cache: What the config said of generation before flt switched it off.
    """

    drawn: tuple[str, ...] = ()
    seed: int | None = None
    classes: int | None = None
    package: str | None = None
    use_cache: bool | None = None


def tell(model: nn.Module, origin: Origin) -> None:
    """Lets a model know its origin; copies of it know it, too."""
    setattr(model, _PLACE, origin)


def origin_of(model: nn.Module) -> Origin:
    """The origin of a model; of one that flt hasn't loaded nothing is known."""
    return getattr(model, _PLACE, Origin())


def drawn_in(module: nn.Module) -> set[str]:
    """Names in a module of all tensors that were drawn in the models that it holds, as before an adapter wrapped them.

    Example:
        >>> inner = nn.Linear(2, 2)
        >>> tell(inner, Origin(("weight",)))
        >>> drawn_in(nn.Sequential(inner))
        {'0.weight'}
    """
    found = ((name, origin_of(sub).drawn) for name, sub in module.named_modules())
    return {f"{name}.{key}" if name else key for name, drawn in found for key in drawn}
