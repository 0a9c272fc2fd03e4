"""A search in a table that a server holds, by queries that it never sees: `python examples/08_search.py`."""

import numpy as np
import torch

import hesplit_native as hn

random = np.random.default_rng(0)
table = random.normal(size=(20_000, 96)).astype(np.float32)  # embeddings of documents, say
table /= np.linalg.norm(table, axis=1, keepdims=True)
queries = table[[5, 17_000]] + 0.05 * random.normal(size=(2, 96)).astype(np.float32)

server = hn.serve({"documents.weight": torch.from_numpy(table)}, hints=False, precision="bfloat16", port=0)
with server, hn.connect(server.address) as connection:
    hn.search(connection, queries[:1])  # the first one sends keys, too
    before = connection.bytes_up, connection.bytes_down
    rows, products = hn.search(connection, queries[1], k=3)
    up, down = connection.bytes_up - before[0], connection.bytes_down - before[1]

exact = table @ queries[1]
print(f"found {rows.tolist()}, in the clear {np.argsort(-exact)[:3].tolist()}")
print(f"inner products {products.round(3).tolist()}, in the clear {exact[rows].round(3).tolist()}")
print(f"{up} bytes up, {down} down")
