"""Check that a fit changes only the weights that the plan trains."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from flt.core.errors import ModuleError

_log = logging.getLogger(__name__)

PROBES = 16
"""Number of values of each tensor that are compared, because a write through ``.data`` leaves the version unchanged."""
ADVICE = "a fit that changes nothing but what the plan trains (plan.train, or algo=fedavg for the whole model)"


class FrozenWeights:
    """Parameters of a module that a fit must not change, because no install would undo the change.

    A parameter counts as changed if two things differ after the fit: its mark (storage, version, and some of its
    values), and its sums (of all values, by row and by column). The sums are computed again only if the mark differs,
    which it does as soon as something writes to the parameter. A write that leaves the values as they were, like that
    of Lightning's ``StochasticWeightAveraging``, is therefore no change.

    Args:
        module: The resident module.
        foreign: Whether code that isn't flt's runs in the fits: a user's module or callbacks. If False, values aren't
            compared, because none of flt's code writes through ``.data`` in a fit.
    """

    def __init__(self, module: nn.Module, foreign: bool) -> None:
        self.module, self.foreign = module, foreign
        self._has_warned = False
        self._sums: dict[str, tuple[object, bytes]] = {}
        """Name -> mark of the parameter, and the digest of its sums when it had this mark."""

    @contextlib.contextmanager
    def kept(self, client: int, before: Mapping[str, nn.Parameter]) -> Iterator[None]:
        """Context manager of a fit. Those parameters must not change that don't require a gradient at its start.

        Args:
            client: Number of the client, for the error message.
            before: Name -> parameter of the module.

        Raises:
            ModuleError: A parameter has been changed, made, replaced or removed. The fit may have ended with another
                error, which is the context of this one.
        """
        frozen = {name: parameter for name, parameter in before.items() if not parameter.requires_grad}
        versions = {name: parameter._version for name, parameter in before.items() if name not in frozen}
        marks = self._marks(frozen)
        for name, parameter in frozen.items() if self.foreign else ():
            if self._sums.get(name, (None,))[0] != marks[name]:
                self._sums[name] = marks[name], _digest(parameter)
        try:
            yield
        except Exception:  # a tolerated failure must not leave anything behind either
            self._check(client, before, marks)
            raise
        self._check(client, before, marks)
        idle = [name for name, version in versions.items() if before[name]._version == version]
        self._warn([name for name in idle if not before[name].requires_grad])

    def _warn(self, idle: Sequence[str]) -> None:
        if idle and self.foreign and not self._has_warned:
            self._has_warned = True
            kind = type(self.module).__name__
            _log.warning("%s or a callback freezes %s, which the plan trains: it stays as it was", kind, idle[0])

    def _check(self, client: int, before: Mapping[str, nn.Parameter], marks: Mapping[str, object]) -> None:
        after = self._marks({name: before[name] for name in marks})
        for name in (name for name in marks if after[name] != marks[name]):
            if not self.foreign or _digest(before[name]) != self._sums[name][1]:
                raise ModuleError.of(f"client {client}", name, ADVICE, "the frozen weights have changed in the fit")
        now = dict(self.module.named_parameters()) if self.foreign else before
        # FSDP2 puts other objects for the same weights into the module while it computes.
        replaced = [
            name for name in now if name in before and now[name] is not before[name] and not _is_split(before[name])
        ]
        if changed := [*sorted(before.keys() ^ now.keys()), *replaced]:
            allowed = "a module whose parameters are made in __init__ or configure_model, and stay"
            raise ModuleError.of(f"client {client}", changed[0], allowed, "the fit has made, replaced or removed it")

    def _marks(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, object]:
        """Returns name -> an object that tells whether something has written to the parameter."""
        here = {name: _here(parameter) for name, parameter in parameters.items()}
        written: dict[str, object] = {name: (tensor.data_ptr(), tensor._version) for name, tensor in here.items()}
        if not self.foreign or not here:
            return written
        probes = [_probes(tensor) for tensor in here.values()]
        values = torch.cat([probe.double() for probe in probes]).cpu().split([len(probe) for probe in probes])
        return {name: (written[name], own.numpy().tobytes()) for name, own in zip(here, values, strict=True)}


def _is_split(parameter: nn.Parameter) -> bool:
    return hasattr(parameter, "_local_tensor")


def _here(parameter: nn.Parameter) -> Tensor:
    """Returns a parameter, or the part of it that this process holds, without the graph."""
    return getattr(parameter, "_local_tensor", parameter).detach()


def _probes(tensor: Tensor) -> Tensor:
    flat = tensor.reshape(-1)
    return flat[:: max(1, flat.numel() // PROBES)]


def _digest(parameter: nn.Parameter) -> bytes:
    """Returns a digest of the sums of a parameter's values by row and by column.

    A single sum would be the same if values have changed places.
    """
    tensor = _here(parameter)
    matrix = tensor.flatten(1) if tensor.dim() > 1 else tensor.reshape(1, -1)
    sums = (matrix.sum(dim, dtype=torch.float64).cpu().numpy().tobytes() for dim in (0, 1))
    return hashlib.blake2b(b"".join(sums)).digest()  # of bytes, because NaN isn't equal to itself
