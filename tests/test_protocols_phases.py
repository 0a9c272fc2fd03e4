from __future__ import annotations

from hesplit_native.protocols import phases as module
from hesplit_native.protocols.phases import Phases


def test_every_moment_belongs_to_one_phase(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module, "perf_counter", lambda: now[0])
    phases = Phases()

    def after(seconds, name):
        now[0] += seconds
        return phases.enter(name)

    assert after(5, "a") is None  # nothing was counted before the first phase
    back = after(1, "b")
    assert back == "a"
    assert after(2, back) == "b"
    assert after(4, None) == "a"
    assert after(8, "b") is None
    assert after(16, None) == "b"
    assert phases.seconds == {"a": 5.0, "b": 18.0}
