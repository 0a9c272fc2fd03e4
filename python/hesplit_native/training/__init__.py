"""Training runs: configuration, the client, the loop, checkpoints, defences and reports."""
