"""The encrypted linear layer: parameters, keys, client and server, and which layout pays."""
