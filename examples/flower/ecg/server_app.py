"""What runs where the rounds are organised."""

from flwr.serverapp.strategy import FedAvg

from ecg.task import make_network
from hesplit_native.flower import server_app

# Two hospitals are enough for a round; whoever is there takes part.
app = server_app(make_network, strategy=FedAvg(min_available_nodes=2, min_train_nodes=2, min_evaluate_nodes=2))
