"""Three sites in FLARE's simulator: `hesplit-native serve`, then `python job.py` in this folder (docs/flower.md)."""

import argparse
import secrets
import tempfile
from pathlib import Path
from urllib.parse import quote

from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.recipe import SimEnv
from task import Network
from with_layer import WithLayer

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--sites", type=int, default=3)
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--epochs", type=int, default=1)
parser.add_argument("--protocol", choices=("plain", "splitways", "hesplit", "sealed"), default="splitways")
parser.add_argument("--server", default="localhost:7000")
parser.add_argument("--tls", type=Path, help="folder with every site's certificate")
parser.add_argument("--state", type=Path, default=Path("state"), help="folder for what sites keep from round to round")
parser.add_argument(
    "--workspace", default=str(Path(tempfile.gettempdir(), "hesplit-flare")), help="FLARE's own folder: no spaces"
)
asked = parser.parse_args()

group = secrets.token_hex(16)  # at the server, with a site's certificate, it gives access to the run's layers
arguments = f"--group {group} --sites {asked.sites} --epochs {asked.epochs} --protocol {asked.protocol}"
# FLARE splits them at spaces, which are %20 here.
arguments += f" --server {asked.server} --state {quote(str(asked.state.absolute()))}"
arguments += f" --tls {quote(str(asked.tls.absolute()))}" if asked.tls else ""

recipe = FedAvgRecipe(
    name="hesplit",
    model=Network(with_layer=asked.protocol == "sealed"),
    min_clients=asked.sites,
    num_rounds=asked.rounds + 1,
    train_script="client.py",
    train_args=arguments,
    aggregator=WithLayer(group, asked.rounds, asked.epochs),
)
recipe.add_client_file("task.py")
print(recipe.execute(SimEnv(num_clients=asked.sites, workspace_root=asked.workspace)).get_result())
