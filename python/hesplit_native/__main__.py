"""`python -m hesplit_native`: the command line where its script is not on the path."""

from hesplit_native.cli import app

app(prog_name="hesplit-native")
