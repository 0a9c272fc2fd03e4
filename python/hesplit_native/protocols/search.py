"""Search in a table that a server holds, by queries that it does not see."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from hesplit_native.errors import ParameterError, shortened
from hesplit_native.layer.frozen import checked_matrix
from hesplit_native.protocols.frozen_client import Connection


def search(
    connection: Connection, queries: npt.NDArray[Any], k: int = 10, *, table: str | None = None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The k rows of a table that have the largest inner products with each query.

    All products come back encrypted, and are ranked here: the server learns neither query nor result. Of vectors of one length the
    inner product ranks as the cosine does. A table is a layer, ``serve({"papers.weight": vectors}, hints=False)``, whose rows a
    client can learn from its replies (docs/security.md).

    Parameters
    ----------
    connection
        Of `hesplit_native.connect`.
    queries
        float32 or float64 [n, features], or [features]: one query.
    k
        From 1 to the rows of the table.
    table
        The name of the layer; None where the server has only one.

    Returns
    -------
    rows : ndarray of int64 [n, k], or [k] for one query
        Best first; of equal ones those with the smaller number.
    products : ndarray of float64, in the same shape
        As exact as the layer is.

    Raises
    ------
    ParameterError
        No such table, another shape or dtype, or another k.
    RangeError
        For NaN or infinity.
    HESplitError
        What `Connection.multiply` raises.
    """
    if table is None:
        if len(connection.layers) != 1:
            raise ParameterError(f"say which table is searched: there are {shortened(list(connection.layers))}")
        (table,) = connection.layers
    rows = connection.describe(table).out_features
    if not 1 <= k <= rows:
        raise ParameterError(f"k must be between 1 and the {rows} rows of {table}, got {k}")
    single = np.ndim(queries) == 1
    products = connection.multiply(table, checked_matrix(np.atleast_2d(queries), "queries"))
    best = np.argsort(-products, axis=1, kind="stable")[:, :k]
    found = np.take_along_axis(products, best, axis=1)
    return (best[0], found[0]) if single else (best, found)
