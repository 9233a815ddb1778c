"""Modules into which peft has put adapters: their names without peft, and the features of peft that flt refuses."""

from __future__ import annotations

from collections.abc import Iterator

from peft import PeftConfig, PeftMixedModel, PeftModel, PeftType
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import nn
from transformers.pytorch_utils import Conv1D

from flt.core.errors import InputError
from flt.protocol.layout import Layout

HARMLESS_STARTS = ("gaussian", "eva", "orthogonal", "mica")
"""peft's initialisations that leave the weights of the base as they are. The others, such as PiSSA, change them."""
CHANGES = "the recipe changes frozen weights, and the trained ones are merged into them"
PLAIN_LORA = "plain LoRA with one active adapter on linear and convolutional layers"


def plain_names(module: nn.Module) -> dict[str, str]:
    """Returns, for each submodule, its name before peft wrapped the module or parts of it.

    Submodules that only peft has, such as LoRA's factors, are left out. So are the frozen originals of the modules in
    ``modules_to_save``: their active copies have the originals' names.

    Example:
        >>> from peft import LoraConfig, get_peft_model
        >>> model = get_peft_model(nn.Sequential(nn.Linear(2, 2)), LoraConfig(target_modules=["0"]))
        >>> plain_names(model)["base_model.model.0.base_layer"]
        '0'
    """
    return dict(_walk(module, "", ""))


def _walk(module: nn.Module, name: str, plain: str) -> Iterator[tuple[str, str]]:
    yield name, plain
    inner = _wrapped(module)
    for key, child in module._modules.items():  # named_children leaves out a child's second name
        if child is None:
            continue
        full = _joined(name, key)
        if inner is None:
            yield from _walk(child, full, _joined(plain, key))
        elif inner.partition(".")[0] == key:
            rest = inner.partition(".")[2]
            yield from _walk(child.get_submodule(rest), _joined(full, rest), plain)


def _wrapped(module: nn.Module) -> str | None:
    """Returns the name, in a module of peft, of the module that it wraps. None for any other module."""
    if isinstance(module, PeftModel | PeftMixedModel):
        return "base_model"
    if isinstance(module, BaseTuner):
        return "model"
    if isinstance(module, BaseTunerLayer):
        return "base_layer"
    if isinstance(module, ModulesToSaveWrapper):
        active = [name for name in module.active_adapters if name in module.modules_to_save]
        return f"modules_to_save.{active[0]}" if active else "original_module"
    return None


def _joined(name: str, key: str) -> str:
    return ".".join(part for part in (name, key) if part)


def plain_tensor_name(names: dict[str, str], tensor: str) -> str | None:
    """Returns a tensor's name before peft wrapped the module, or None if only peft has the tensor.

    Args:
        names: The result of :func:`plain_names`.
        tensor: Name of the tensor in the module.
    """
    owner, _, key = tensor.rpartition(".")
    return _joined(names[owner], key) if owner in names else None


def saved_copies(module: nn.Module) -> list[str]:
    """Returns the names of the active copies of the modules that peft's setting ``modules_to_save`` lists."""
    wrappers = {name: sub for name, sub in module.named_modules() if isinstance(sub, ModulesToSaveWrapper)}
    inner = {name: _wrapped(sub) for name, sub in wrappers.items()}
    return [_joined(name, key) for name, key in inner.items() if key and key != "original_module"]


def innermost(module: nn.Module, name: str) -> str:
    """Returns the name of the module that peft has wrapped: the base layer, or the copy that is trained.

    Args:
        module: The whole module.
        name: Name of a submodule, either its full name or its name before peft wrapped the module. A name that is
            neither is returned as it is.

    Raises:
        InputError: The submodule holds LoRA layers, or other wrappers of peft.
    """
    names = plain_names(module)
    plain = names.get(name, name)
    alike = [full for full, other in names.items() if other == plain]
    if not alike:
        return name
    for inside, sub in module.get_submodule(alike[-1]).named_modules():
        if isinstance(sub, BaseTunerLayer | AuxiliaryTrainingWrapper):
            why = f"peft has wrapped {inside}, which lies in it"
            raise InputError.of("adapter.head", name, "a module in which peft has wrapped nothing", why)
    if any(isinstance(module.get_submodule(full), BaseTunerLayer) for full in alike):
        raise InputError.of("adapter.head", name, "a module without an adapter", "peft has put an adapter on it")
    return alike[-1]


def without_peft(module: nn.Module) -> nn.Module:
    """Removes everything of peft from a module, in place, and returns the module.

    The modules in ``modules_to_save`` are their originals again. Nothing is merged.
    """
    while isinstance(module, PeftModel | PeftMixedModel | BaseTuner | BaseTunerLayer | AuxiliaryTrainingWrapper):
        inner = "original_module" if isinstance(module, AuxiliaryTrainingWrapper) else _wrapped(module)
        module = module.get_submodule(str(inner))
    for key, child in module._modules.items():
        if child is not None:
            module._modules[key] = without_peft(child)
    if isinstance(vars(module).get("peft_config"), dict):
        del module.peft_config
    if getattr(module, "_hf_peft_config_loaded", False):  # set by add_adapter of transformers
        module._hf_peft_config_loaded = False  # type: ignore[assignment]  # transformers' own attribute
    return module


def check_peft(module: nn.Module) -> None:
    """Refuses a module that holds an adapter of peft other than plain LoRA.

    Without this check, a run would give wrong results or a wrong export, and no error.

    Raises:
        InputError: The module holds another method of peft, or a feature of LoRA that flt doesn't support.
    """
    for name, sub in module.named_modules():
        for adapter, config in _configs(sub).items():
            _check_config(_joined("module", name), adapter, config)
    parents = dict(module.named_modules())
    for name, sub in parents.items():
        if isinstance(sub, AuxiliaryTrainingWrapper):
            problem = _auxiliary_problem(sub)
        elif isinstance(sub, BaseTunerLayer):
            problem = _layer_problem(parents[name.rpartition(".")[0]], sub)
        else:
            continue
        if problem:
            raise InputError.of(_joined("module", name), problem, PLAIN_LORA)


def _configs(module: nn.Module) -> dict[str, PeftConfig]:
    """Returns adapter -> its configuration, for a module that peft has made or changed."""
    configs = getattr(module, "peft_config", None)
    by_peft = type(module).__module__.startswith("peft.")  # else the configurations may be left over from earlier
    if not isinstance(configs, dict) or not (
        by_peft or any(isinstance(sub, BaseTunerLayer) for sub in module.modules())
    ):
        return {}
    return {name: config for name, config in configs.items() if isinstance(config, PeftConfig)}


def _check_config(name: str, adapter: str, config: PeftConfig) -> None:
    kind = getattr(config.peft_type, "value", config.peft_type)
    if config.peft_type != PeftType.LORA:
        raise InputError.of(f"{name}.peft_config[{adapter}]", kind, f"a module without peft, or {PLAIN_LORA}")
    start = getattr(config, "init_lora_weights", True)
    if not isinstance(start, bool) and start not in HARMLESS_STARTS:
        why = "it changes the weights of the base, and the adapter would fit no other copy of the base"
        allowed = ("true", "false", *HARMLESS_STARTS)
        raise InputError.of(f"{name}.peft_config[{adapter}].init_lora_weights", start, allowed, why)
    if getattr(config, "layer_replication", None):
        why = "the base has no such layers"
        replicated = config.layer_replication  # type: ignore[attr-defined]  # only LoRA's configuration has it
        raise InputError.of(f"{name}.peft_config[{adapter}].layer_replication", replicated, "null", why)


def _auxiliary_problem(wrapper: AuxiliaryTrainingWrapper) -> str:
    if not isinstance(wrapper, ModulesToSaveWrapper):
        return type(wrapper).__name__
    if wrapper.disable_adapters:
        return "adapters that are disabled"
    return "several active adapters" if len(wrapper.active_adapters) > 1 else ""


def _layer_problem(parent: nn.Module, layer: BaseTunerLayer) -> str:
    """Returns what flt doesn't support in a layer of peft, or an empty text."""
    # AdaLoRA's layers are LoRA layers that hold more tensors.
    if not isinstance(layer, LoraLayer) or type(layer).adapter_layer_names != LoraLayer.adapter_layer_names:
        return type(layer).__name__
    if isinstance(layer, ParamWrapper):
        return "LoRA on a parameter instead of a layer"
    if layer.merged:
        return "an adapter that is merged into the weights"
    if layer.disable_adapters or not layer.active_adapters:
        return "adapters that are disabled"
    if len(layer.active_adapters) > 1:
        return "several active adapters"
    if isinstance(layer.base_layer, BaseTunerLayer):
        return "an adapter on another adapter"
    adapter = layer.active_adapters[0]
    if adapter in layer.lora_variant:
        return "DoRA or another variant of LoRA"
    if layer.lora_bias.get(adapter, False):
        return "a bias of LoRA"
    return unfit(parent, layer.get_base_layer())


def unfit(parent: nn.Module, layer: nn.Module) -> str:
    """Returns why LoRA can't adapt a layer, or an empty text if it can.

    Args:
        parent: The module that the layer is an attribute of.
        layer: The layer, without an adapter.

    Example:
        >>> unfit(nn.Sequential(), nn.Linear(2, 2)), unfit(nn.Sequential(), nn.ReLU())
        ('', 'ReLU, which is neither linear nor a convolution')
    """
    if isinstance(parent, nn.MultiheadAttention):
        return "a layer that is never called, because torch's attention reads its weight"
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        settings = (layer.groups, set(layer.dilation), layer.padding_mode)
        # peft's factors have neither dilation nor another padding, and their rank would be divided by the groups.
        return "" if settings == (1, {1}, "zeros") else "a convolution with groups, dilation or a padding mode"
    if isinstance(layer, nn.Linear | Conv1D):
        return ""
    return f"{type(layer).__name__}, which is neither linear nor a convolution"


def check_mergeable(module: nn.Module, layout: Layout) -> None:
    """Refuses a module in which the change of a weight couldn't be merged into the weight.

    Raises:
        InputError: The weight of a layer with LoRA is quantised, or one of the weights that LoRA or ``modules_to_save``
            change is that of another layer, too.
    """
    owners: dict[int, set[str]] = {}
    parameters = dict(module.named_parameters(remove_duplicate=False))
    for name, parameter in parameters.items():
        owners.setdefault(id(parameter), set()).add(name)
    changed = [layer.base for layer in layout.layers.values()]
    for name, sub in module.named_modules():
        if isinstance(sub, ModulesToSaveWrapper):
            changed += [f"{name}.original_module.{key}" for key, _ in sub.original_module.named_parameters()]
    for name in changed:
        if (weight := parameters.get(name)) is None:
            raise InputError.of(f"module.{name}", "a computed weight", "a weight that is a parameter", CHANGES)
        if not weight.is_floating_point():
            raise InputError.of(f"module.{name}", weight.dtype, "weights that aren't quantised", CHANGES)
        if others := owners[id(weight)] - {name}:
            why = f"it is also {min(others)}; {CHANGES}"
            raise InputError.of(f"module.{name}", "a tied weight", "a weight of one layer alone", why)
