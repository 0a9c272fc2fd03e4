"""What runs where the rounds are organised: an average of networks, and whose layers at the server go with it."""

from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.aggregators.model_aggregator import ModelAggregator

from hesplit_native.federation import Plan, Stored


class WithLayer(ModelAggregator):
    """Averages by rows, networks here and layers at the server."""

    def __init__(self, group, rounds, epochs):
        super().__init__()
        self.group, self.rounds, self.epochs = group, rounds, epochs  # FLARE makes this anew from them
        self.found = []

    def accept_model(self, model):
        self.found.append((model.params, Stored(**model.meta["stored"]), model.metrics))

    def aggregate_model(self):
        rows = sum(stored.rows for _, stored, _ in self.found)

        def average(dicts):
            return {
                name: sum(values[name] * (stored.rows / rows) for values, (_, stored, _) in zip(dicts, self.found, strict=True))
                for name in dicts[0]
            }  # fmt: skip

        plan = Plan(self.group, self.rounds, self.epochs, whole=False).after(stored for _, stored, _ in self.found)
        return FLModel(
            params=average([params for params, _, _ in self.found]),
            params_type=ParamsType.FULL,
            metrics=average([metrics or {} for _, _, metrics in self.found]),
            meta=plan.record(),
        )

    def reset_stats(self):
        self.found = []
