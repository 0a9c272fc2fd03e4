"""The client's part of a served layer whose weights stay the server's: a key for each connection and layer."""

from __future__ import annotations

from dataclasses import dataclass

from hesplit_native.errors import ParameterError
from hesplit_native.layer.private import PrivateClient
from hesplit_native.protocols.frozen_messages import Description, key_for
from hesplit_native.protocols.messages import MessageType
from hesplit_native.protocols.replicas import Introduction


@dataclass(eq=False)
class KeyedLayer:
    """A layer with the key under which it is asked, and what tells servers of it."""

    described: Description
    client: PrivateClient
    introduction: Introduction


def keyed_layer(layer: Description) -> KeyedLayer:
    """With a fresh key."""
    if layer.private is None:
        raise ParameterError(f"the weights of {layer.name} are not private any more: connect again")
    client = PrivateClient(layer.private, bias=layer.bias)
    return KeyedLayer(layer, client, Introduction(MessageType.KEY, MessageType.DONE, key_for(layer, client.material())))
