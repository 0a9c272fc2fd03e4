"""The split-learning protocols: what travels, in which order, and what each side does with it."""
