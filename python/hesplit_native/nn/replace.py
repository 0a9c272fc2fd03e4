"""Encrypt the linear layers of a model in place, and make them plain again."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import torch
from torch import nn

from hesplit_native.errors import ParameterError, shortened
from hesplit_native.layer.weights import is_conv1d
from hesplit_native.nn.encrypted_linear import EncryptedLayer, EncryptedLinear
from hesplit_native.nn.engine import Uploads
from hesplit_native.nn.served_linear import Inputs, ServedLinear, chosen_layers
from hesplit_native.protocols.frozen_client import Connection

ModelT = TypeVar("ModelT", bound=nn.Module)
#: Names with the wildcards of shells, a type of module, or what says whether to take the module of that name; or several of these.
Selection = str | type[nn.Module] | Callable[[str, nn.Module], bool] | Iterable[Any]


def encrypt(
    model: ModelT,
    include: Selection = "*",
    *,
    exclude: Selection = (),
    server: Connection | None = None,
    calibrate: Any = None,
) -> ModelT:
    """Let linear layers of a model compute on ciphertexts, client and server in this process, or at a server that holds them.

    Layers of exactly the types `torch.nn.Linear` and `transformers.pytorch_utils.Conv1D` become `EncryptedLinear` and its like: the
    same objects, with their parameters, hooks and names, so that optimisers, tied weights and state dicts stay what they are. Layers
    that are fed by the same tensor (queries, keys and values) share one upload.

    Parameters
    ----------
    model
        Changed in place; also a single layer.
    include, exclude
        Which layers: a pattern for their names (``"encoder.*.fc?"``), a type, a predicate of name and module, or several of these.
    server
        A connection to a server with layers of these names (`hesplit_native.connect`), apart from what peft, `torch.compile` and
        `DistributedDataParallel` add to them. Those that it has become `ServedLinear`: their
        weights are dropped here, and may have been on the meta device; all others stay what they are.
    calibrate
        A batch on which the model is called once, without gradients: a tensor, a tuple of arguments or a mapping of them by name. It
        makes the keys and finds out which layers share uploads before the first real call, and warns of layers that the
        model does not call. Ranges need no batch: every row is scaled by its own norm.

    Returns
    -------
    nn.Module
        The model.

    Raises
    ------
    ParameterError
        When no layer is chosen, with the names of those that could be; for parametrised layers: encrypt first. When the server has a
        chosen layer in another shape, with both.
    """
    candidates = {name: kind for name, module in model.named_modules() if (kind := _encrypted_kind(module)) is not None}
    modules = dict(model.named_modules())
    chosen = [
        name
        for name in candidates
        if _selects(include, name, modules[name]) and not _selects(exclude, name, modules[name])
    ]
    if not chosen:
        parametrised = [name for name, module in modules.items() if torch.nn.utils.parametrize.is_parametrized(module)]
        hint = (
            f"; parametrised ones ({shortened(parametrised)}) are encrypted first, then parametrised"
            if parametrised
            else ""
        )
        raise ParameterError(f"no linear layer of the model is chosen; it has {shortened(candidates)}{hint}")
    if server is not None:
        chosen = _ask_server({name: modules[name] for name in chosen}, server)
    else:
        uploads = Uploads()
        for name in chosen:
            layer = modules[name]
            layer.__class__ = candidates[name]
            assert isinstance(layer, EncryptedLayer)
            layer.begin_encryption(uploads=uploads)
    for module in modules.values():
        _allow_fused_kernels(module, allowed=False)
    if calibrate is not None:
        _call_once(model, calibrate, {name: modules[name] for name in chosen})
    return model


def _ask_server(modules: Mapping[str, nn.Module], server: Connection) -> list[str]:
    """Replace the layers that the server has; their names."""
    served = chosen_layers(modules, server)
    if not served:
        raise ParameterError(
            f"the server has none of the chosen layers, {shortened(modules)}; it has {shortened(server.layers)}"
        )
    inputs = Inputs()
    for name, description in served.items():
        layer = modules[name]
        layer.__class__ = ServedLinear
        assert isinstance(layer, ServedLinear)
        layer.begin_serving(server, description, inputs)
    return list(served)


def decrypt(model: ModelT) -> ModelT:
    """Make the encrypted layers of a model plain ones again, in place; their keys are dropped.

    Raises
    ------
    ParameterError
        Where a server holds the weights of some.
    """
    served = [name for name, module in model.named_modules() if isinstance(module, ServedLinear)]
    if served:
        raise ParameterError(
            f"the weights of {shortened(served)} are at a server, not here: make the model anew, and load weights of one's own into it"
        )
    for layer in list(model.modules()):
        if isinstance(layer, EncryptedLayer) and layer.weight is not None:  # a server's stay there
            layer.end_encryption()
    for module in model.modules():
        _allow_fused_kernels(module, allowed=True)
    return model


def _encrypted_kind(module: nn.Module) -> type[EncryptedLayer] | None:
    if type(module) is nn.Linear:
        return EncryptedLinear
    if is_conv1d(type(module)):
        from hesplit_native.nn.conv1d import EncryptedConv1D

        return EncryptedConv1D
    return None


def _selects(selection: Selection, name: str, module: nn.Module) -> bool:
    if isinstance(selection, str):
        return fnmatchcase(name, selection)
    if isinstance(selection, type):
        return isinstance(module, selection)
    if callable(selection):
        return bool(selection(name, module))
    return any(_selects(one, name, module) for one in selection)


def _allow_fused_kernels(module: nn.Module, *, allowed: bool) -> None:
    """Torch's fused encoder layer reads the weights of its linear layers instead of calling them: it must not be taken."""
    if not isinstance(module, nn.TransformerEncoderLayer):
        return
    if not allowed and any(
        isinstance(part, EncryptedLayer | ServedLinear) for part in (module.linear1, module.linear2)
    ):
        module.__dict__.setdefault("_hesplit_fused", module.activation_relu_or_gelu)
        module.activation_relu_or_gelu = 0
    elif allowed and "_hesplit_fused" in module.__dict__:
        module.activation_relu_or_gelu = module.__dict__.pop("_hesplit_fused")


def _call_once(model: nn.Module, batch: Any, layers: Mapping[str, nn.Module]) -> None:
    called: set[str] = set()
    hooks = [layer.register_forward_hook(_noting(called, name)) for name, layer in layers.items()]
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad():
            # Twice: what shares an upload is known after the first.
            for _ in range(2):
                if isinstance(batch, Mapping):
                    model(**batch)
                elif isinstance(batch, tuple):
                    model(*batch)
                else:
                    model(batch)
    finally:
        for module, mode in training.items():
            module.training = mode
        for hook in hooks:
            hook.remove()
    unused = [name for name in layers if name not in called]
    if unused:
        warnings.warn(
            f"the model did not call these encrypted layers (it may read their weights instead): {shortened(unused)}",
            stacklevel=3,
        )


def _noting(called: set[str], name: str) -> Callable[..., None]:
    return lambda *_: called.add(name)
