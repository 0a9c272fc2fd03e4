"""What a session costs its server, known from its terms and the head of its public material before anything is done for it.

All in bytes, upper bounds, in Python's integers. What is admitted is held in a `budget.Budget`. What single messages take beyond a
session's reserve, its half at the server says before it answers them (`answers.Answers.work`).
"""

from __future__ import annotations

import math
import struct
import threading
from dataclasses import dataclass

from hesplit_native.choices import Served
from hesplit_native.errors import KeyMismatchError, ParameterError, WireError
from hesplit_native.layer.costs import serving_cost
from hesplit_native.layer.parameters import Parameters
from hesplit_native.protocols import PROTOCOLS
from hesplit_native.protocols.messages import HEADER_BYTES
from hesplit_native.protocols.terms import Terms
from hesplit_native.transport.channel import MAX_MESSAGE, SHORT_MESSAGE

#: Rows of one evaluation that a session has room for whatever else its server does; more take what is free at the moment.
EVALUATION_ROWS = 2048
_EVALUATION_BYTES = 1 << 25  # of these rows; fewer of wider layers

_FLOAT32, _FLOAT64 = 4, 8
_MATRIX_HEAD = 12
_STEP_MULTIPLICATIONS = 32  # of an optimiser's step, and of taking over the weights, for each of them
_MOMENTS = {"sgd": 0, "momentum": 1, "adam": 2}
_STORED_COPIES = 4  # of a state in memory: the last two, the one to be kept, and the one that is being stored
_WRITTEN_COPIES = 2  # of a state on its way to disk
_SEALED_SEARCH = 1 << 24  # layouts that are tried for sealed weights

# The core's public material begins with a header, the length of the parameters, and these (cpp/wire/format.h).
_CORE_HEADER = 64
_LENGTH = struct.Struct("<H")

# The tables of a ring, up to 60 MB that no budget knows of yet, are there for one handshake at a time.
_tables = threading.Lock()


@dataclass(frozen=True)
class Work:
    """What answering one request takes.

    `working`: bytes until it is answered, the reply included. `kept`: of that what stays until the next one, beside request and
    reply. `multiplications`: as of `ServingCost`; where nobody knows, any number.
    """

    working: int
    kept: int = 0
    multiplications: float = math.inf


@dataclass(frozen=True)
class SessionCosts:
    """What one session takes.

    `layer`: as long as it lives, for weights, optimiser and keys, and for storing a checkpoint. `reserve`: for its training steps
    and usual evaluations, with the last request and its reply. `checkpoints`: in memory. `opening`: the longest message that may
    open it. `request`: the longest one that it may send later.
    """

    layer: int
    reserve: int
    checkpoints: int
    opening: int
    request: int

    @property
    def held(self) -> int:
        """What it takes from its beginning, beside its checkpoints."""
        return self.layer + self.reserve


def session_costs(
    terms: Terms, material: memoryview, material_bytes: int, *, checkpoints_in_memory: bool
) -> SessionCosts:
    """The costs of a session on these terms.

    Parameters
    ----------
    material
        The public material, or as much of its beginning as has come: its parameters must be whole.
    material_bytes
        Its length.

    Raises
    ------
    WireError, KeyMismatchError, ParameterError
        The material does not begin with the parameters that the terms name, these cannot serve the layer, or there should be none.
    """
    protocol = PROTOCOLS[terms.protocol]
    if not protocol.encrypts:
        if material_bytes:
            raise WireError(f"handshake: {terms.protocol} has no public material")
        state, layer = _layers_in_clear(terms)
        reserve = max(_step_in_clear(terms, rows) for rows in _usual_rows(terms))
        opening, request = 0, _matrix(terms.max_rows, _width(terms) + 1)
    else:
        parameters = _read_parameters(terms, material)
        if parameters.packing not in protocol.packings:
            raise ParameterError(
                f"{terms.protocol} runs with packing {' or '.join(protocol.packings)}; these parameters are for {parameters.packing}"
            )
        parts = _sealed_parts if protocol.seals_weights else _encrypted_parts
        with _tables:
            state, layer, reserve, opening, request = parts(terms, parameters)
    stored = _STORED_COPIES * state if checkpoints_in_memory else 0
    return SessionCosts(
        layer=layer + (0 if checkpoints_in_memory else _WRITTEN_COPIES * state),
        reserve=reserve,
        checkpoints=stored,
        opening=min(MAX_MESSAGE, SHORT_MESSAGE + opening),
        request=min(MAX_MESSAGE, SHORT_MESSAGE + request),
    )


def matrix_work(terms: Terms, length: int, rows: int) -> Work:
    """A request of values in the clear, `length` bytes long: so many rows of activations or gradients."""
    layers = 4 if terms.hidden else 2  # values, and their gradients, of each layer that the rows go through
    products = (2 * rows + _STEP_MULTIPLICATIONS) * weight_count(terms)
    return Work(length + layers * _matrix(rows, _width(terms)), length, products)


def weight_count(terms: Terms) -> int:
    """Weights and biases of the layers that a server holds."""
    count = (terms.in_features + 1) * terms.out_features
    if terms.hidden and PROTOCOLS[terms.protocol].labels_at_server:
        count += (terms.out_features + 1) * terms.classes
    return count


# In the clear


def _width(terms: Terms) -> int:
    return max(terms.in_features, terms.out_features, terms.classes)


def _matrix(rows: int, columns: int) -> int:
    return HEADER_BYTES + 2 * _MATRIX_HEAD + _FLOAT32 * rows * columns


def usual_evaluation(terms: Terms) -> int:
    """Rows of an evaluation for which a session has room."""
    return max(1, min(EVALUATION_ROWS, terms.max_rows, _EVALUATION_BYTES // (_FLOAT32 * _width(terms))))


def _usual_rows(terms: Terms) -> tuple[int, int]:
    """Of a training step, and of an evaluation."""
    return terms.batch_size, usual_evaluation(terms)


def _layers_in_clear(terms: Terms) -> tuple[int, int]:
    """One checkpoint of the layers, and all that is held of them."""
    weights, moments = weight_count(terms), _MOMENTS[terms.server_optimizer]
    copies = 3 + moments  # the weights, their gradient, and dJ/dW as it comes
    if terms.members:
        copies += 2  # what the member offers, and the average
    return _FLOAT32 * (1 + moments) * weights, _FLOAT32 * copies * weights


def _step_in_clear(terms: Terms, rows: int) -> int:
    """Requests, replies and work of one batch, beside the request and the reply before."""
    length = _matrix(rows, terms.in_features + 1)
    work = matrix_work(terms, length, rows)
    return 3 * length + work.working + work.kept + _matrix(rows, _width(terms))


# On ciphertexts


def _read_parameters(terms: Terms, material: memoryview) -> Parameters:
    """The parameters with which public material begins."""
    begin = _CORE_HEADER + _LENGTH.size
    size = _LENGTH.unpack_from(material, _CORE_HEADER)[0] if len(material) >= begin else 0
    if not size or len(material) < begin + size:
        raise WireError("handshake: the public material ends before its parameters")
    parameters = Parameters.from_bytes(bytes(material[begin : begin + size]))
    if parameters.hash != terms.parameter_hash:
        raise KeyMismatchError(
            f"handshake: parameter_hash is {terms.parameter_hash!r}, that of the public material {parameters.hash!r}"
        )
    return parameters


def _encrypted_parts(terms: Terms, parameters: Parameters) -> tuple[int, int, int, int, int]:
    """State, layer, reserve, opening and longest request of a server that holds the weights in the clear."""
    gradients = PROTOCOLS[terms.protocol].releases > 1
    kind: Served = "training" if gradients else "forward"

    def cost(kind: Served, rows: int) -> tuple[int, int]:
        """Bytes of request and reply, and of the work."""
        found = serving_cost(parameters, terms.in_features, terms.out_features, rows, kind, weight_gradients=gradients)
        return found.request_bytes + found.reply_bytes, found.held_bytes + found.layer_bytes + found.working_bytes

    state, layer = _layers_in_clear(terms)
    keys = serving_cost(
        parameters, terms.in_features, terms.out_features, 1, "public_material", weight_gradients=gradients
    )
    # In float64, the new weights beside the old ones.
    layer += keys.held_bytes + keys.working_bytes + 4 * _FLOAT64 * weight_count(terms)
    training, evaluation = (cost(kind, rows) for rows in _usual_rows(terms))
    steps = [training, evaluation, (_step_in_clear(terms, terms.batch_size), 0)]
    if gradients:
        opened = cost("opened_gradient", terms.batch_size)
        messages, work = cost("weight_gradient", terms.batch_size)
        steps.append((messages + opened[0], training[1] + work + opened[1]))
    reserve = 2 * max(messages for messages, _ in steps) + training[1] + max(work for _, work in steps)
    # Other layouts than this one's, for other links, may be longer.
    longest = 4 * cost(kind, terms.max_rows)[0] + 2 * _FLOAT64 * weight_count(terms)
    return state, layer, reserve, keys.request_bytes, longest


def _sealed_parts(terms: Terms, parameters: Parameters) -> tuple[int, int, int, int, int]:
    """State, layer, reserve, opening and longest request of a server that holds the weights as ciphertexts."""
    if parameters.batch_size * terms.in_features > _SEALED_SEARCH:
        raise ParameterError(
            f"handshake: sealed batches of {parameters.batch_size} x {terms.in_features} have more layouts than a server tries"
        )

    def cost(kind: Served, rows: int = 1) -> tuple[int, int, int]:
        found = serving_cost(parameters, terms.in_features, terms.out_features, rows, kind)
        return found.request_bytes, found.reply_bytes, found.held_bytes + found.layer_bytes + found.working_bytes

    weight = cost("sealed_weight")
    usual = max(_usual_rows(terms))
    steps = [cost("sealed_forward", usual), cost("sealed_update", terms.batch_size), weight]
    reserve = max(2 * (request + reply) + work for request, reply, work in steps)
    longest = max(weight[0], cost("sealed_forward", terms.max_rows)[0], cost("sealed_update", terms.batch_size)[0])
    return weight[0], 2 * weight[2], reserve, weight[0], longest
