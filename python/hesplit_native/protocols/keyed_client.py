"""The client's part of a served layer without hints: a key for each connection and layer."""

from __future__ import annotations

from dataclasses import dataclass

from hesplit_native.errors import ParameterError
from hesplit_native.layer.keyed import KeyedClient
from hesplit_native.protocols.frozen_messages import Description, key_for
from hesplit_native.protocols.messages import MessageType
from hesplit_native.protocols.replicas import Introduction


@dataclass(eq=False)
class LayerKey:
    """A layer with the key under which it is asked, and what tells servers of it."""

    described: Description
    client: KeyedClient
    introduction: Introduction


def layer_key(layer: Description) -> LayerKey:
    """With a fresh key."""
    if layer.keyed is None:
        raise ParameterError(f"{layer.name} is not asked under keys any more: connect again")
    client = KeyedClient(layer.keyed, bias=layer.bias)
    return LayerKey(layer, client, Introduction(MessageType.KEY, MessageType.DONE, key_for(layer, client.material())))
