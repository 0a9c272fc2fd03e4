"""What runs at every site: FLARE says when, the encrypted steps go straight to `hesplit-native serve`."""

import argparse
from dataclasses import asdict
from pathlib import Path
from urllib.parse import unquote

import nvflare.client as flare
from task import OUTPUTS, SEED, Network, make_data

from hesplit_native.federation import Plan, Site, SiteRun, Stored

parser = argparse.ArgumentParser()
parser.add_argument("--group", required=True)
parser.add_argument("--sites", type=int, required=True)
parser.add_argument("--epochs", type=int, required=True)
parser.add_argument("--protocol", required=True)
parser.add_argument("--server", required=True)
parser.add_argument("--tls", type=unquote)
parser.add_argument("--state", type=unquote, required=True)
asked = parser.parse_args()

flare.init()
name = flare.get_site_name()  # site-1, site-2, ...: under TLS also the name in its certificate
site = Site(name, asked.server, asked.tls, Path(asked.state, name))
data, validation = make_data(int(name.rsplit("-", 1)[1]) - 1, asked.sites)


def part(plan):
    how = {"outputs": OUTPUTS, "batch_size": 32, "protocol": asked.protocol, "seed": SEED}
    return SiteRun(site, plan, Network(), data, validation, **how)


while flare.is_running():
    model = flare.receive()
    if model is None:
        break
    rounds = model.total_rounds - 1  # that train; in the one after them all sites take the last average
    first = Plan(asked.group, rounds, asked.epochs, whole=False)
    plan = Plan.of(model.meta) if model.current_round > 0 else first
    metrics = part(plan).evaluate(model.params)[1] if model.current_round > 0 else {}
    if model.current_round < rounds:
        found = part(plan).train(model.params)
        state, stored = found.state, found.stored
    else:
        part(plan).end(model.params)
        state, stored = model.params, Stored("", 0, len(data[0]))
    print(f"{name}: round {model.current_round}, the average so far: {metrics}", flush=True)
    flare.send(flare.FLModel(params=state, metrics=metrics, meta={"stored": asdict(stored)}))
