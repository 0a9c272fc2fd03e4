"""The papers' tables, regenerated with our figures beside theirs.

`tables` says which rows there are, `rows` runs one, `runner` runs all that are missing, `page` writes them down.
"""
