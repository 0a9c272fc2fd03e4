"""What travels: bytes of a step by protocol, and of each ciphertext message of one."""

from __future__ import annotations

import numpy as np

import hesplit_native as hn
from hesplit_native.data import synthetic_ecg
from hesplit_native.training import RunConfig, train

PROTOCOLS = {
    "plain": {"protocol": "plain"},
    "splitways, flooding off": {"protocol": "splitways", "flooding": "off"},
    "splitways": {"protocol": "splitways"},
    "splitways, one key per run": {"protocol": "splitways", "flooding": "run"},
    "hesplit": {"protocol": "hesplit"},
    "sealed": {"protocol": "sealed"},
}


class StepBytes:
    params = [list(PROTOCOLS), [4, 64]]
    param_names = ["protocol", "batch size"]
    timeout = 120

    def setup(self, protocol, batch_size):
        hn.set_num_threads(1)
        self.data = synthetic_ecg(train=12 * batch_size, test=5)  # three times the steps between sealed weights

    def track_bytes_per_step(self, protocol, batch_size):
        result = train(RunConfig(**PROTOCOLS[protocol], batch_size=batch_size, epochs=1, accept_leak=True), self.data)
        return (result.bytes_up + result.bytes_down) / result.batches


StepBytes.track_bytes_per_step.unit = "bytes"


class MessageBytes:
    """Batch 4, 256 -> 5, with the parameters of `train`; weights as they are after it, rows of l2 norm 8."""

    params = ["splitways: request", "splitways: reply", "sealed: request", "sealed: logits", "sealed: dJ/dy",
              "sealed: dJ/dy with weights", "sealed: dJ/da"]  # fmt: skip
    param_names = ["message"]

    def setup(self, message):
        rng = np.random.default_rng(0)
        shape = {"in_features": 256, "out_features": 5, "batch_size": 4}
        x, gradient = rng.normal(size=(4, 256)), rng.normal(size=(4, 5)) / 4
        weight, bias = rng.normal(size=(5, 256)) / 2, rng.normal(size=5)
        found = {}
        client = hn.LinearClient(hn.SecretKey.generate(hn.Parameters.recommend(**shape)), 256, 5)
        request = client.encrypt(x)
        found["splitways: request"] = len(request)
        found["splitways: reply"] = len(hn.LinearServer(client.public_material(), weight, bias).forward(request))
        sealed = hn.SealedClient(hn.SecretKey.generate(hn.Parameters.recommend_sealed(**shape)), 256, 5)
        server = hn.SealedServer(sealed.seal(weight, bias))
        request = sealed.encrypt(x)
        found["sealed: request"] = len(request)
        found["sealed: logits"] = len(server.forward(request))
        updates = [sealed.update(gradient, weight, bias) for _ in range(sealed.parameters.updates)]
        found["sealed: dJ/dy"], found["sealed: dJ/dy with weights"] = len(updates[0]), len(updates[-1])
        found["sealed: dJ/da"] = len(server.update(updates[0]))
        self.found = found

    def track_bytes_of_a_message(self, message):
        return self.found[message]


MessageBytes.track_bytes_of_a_message.unit = "bytes"
