"""What runs at every hospital."""

from ecg.task import OUTPUTS, make_data, make_network, make_validation
from hesplit_native.flower import client_app

app = client_app(
    make_network, make_data, make_validation=make_validation, outputs=OUTPUTS, batch_size=32, protocol="splitways"
)
