"""What a server can learn from its transcript, and what makes it learn less (docs/security.md).

`transcript` records what the server of a run received, sent and held; `attacks` estimate from that alone what it should not know;
`metrics` say how close an estimate is; `audit` lays all of it side by side, with the defences of `training.defences` and without.
"""
