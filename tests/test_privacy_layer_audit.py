"""What the audit says of a layer's weights: every attack finds what is planted, and nothing where there is nothing."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from typer.testing import CliRunner

from hesplit_native.cli import app
from hesplit_native.data import synthetic_ecg
from hesplit_native.privacy import layer_audit, page
from hesplit_native.privacy.layer_audit import AskedLayer, LayerSetting


@pytest.fixture(scope="module")
def data():
    return synthetic_ecg(train=400, test=300)


@pytest.fixture
def small():
    return LayerSetting("small", 12, 1)


@pytest.mark.parametrize(("features", "outputs"), [(12, 1), (20, 1), (12, 3)])
def test_replies_as_they_are_give_small_layers_away(data, features, outputs):
    pytest.importorskip("fpylll")
    found = layer_audit.audit_layer(LayerSetting("", features, outputs), data).findings
    assert found["reply"].value == 1
    assert found["head"].value == 1
    assert found["answers"].value == 1
    assert max(finding.chance for finding in found.values()) <= 0.5
    assert found["budget"].value <= 0.65  # half of the columns, and weights near zero
    assert f"{features + 1} answers" in found["answers"].text
    assert f"{features // 2} answers" in found["budget"].text


def test_replies_that_say_nothing_give_nothing(data, small, monkeypatch):
    """What the attacks find where every reply has one head, another's c1 and answers to nothing that was asked."""
    pytest.importorskip("fpylll")
    rng = np.random.default_rng(0)

    def elsewhere(self, x, server=None):
        fixed = self.server(rng.normal(size=self.weight.shape))
        fixed.set_weight(*(np.sign(rng.normal(size=shape)) for shape in (self.weight.shape, self.bias.shape)))
        request = self.client.encrypt(x)
        return request, fixed.forward(request)

    monkeypatch.setattr(AskedLayer, "exchange", elsewhere)
    found = layer_audit.audit_layer(small, data).findings
    for name in ("reply", "answers", "budget"):
        assert found[name].value < 0.4
    assert found["head"].value == 0.5


def test_layers_that_are_too_large_for_lattices_say_so(data):
    found = layer_audit.audit_layer(LayerSetting("large", 256, 5), data).findings
    assert found["reply"].value is None
    assert re.search(r"has \d{4} dimensions; up to 400 are tried", found["reply"].text)
    assert found["answers"].value == 1


def test_both_sides_are_made_as_the_row_says(data):
    setting = LayerSetting("", 12, 1, parameters={"error_bound": 0.02}, server={"max_batch": 2})
    layer = AskedLayer(setting, data)
    assert layer.client.parameters.error_bound == 0.02
    assert layer.server(layer.weight).forward(layer.client.encrypt(layer.x[:2]))
    with pytest.raises(Exception, match="takes 1 to 2"):
        layer.exchange(layer.x[:3])


def test_the_layer_is_one_that_was_trained(data):
    layer = AskedLayer(LayerSetting("", 20, 5), data)
    y = layer.answers(layer.x)
    assert (y.argmax(1) == data.test_y).mean() > 0.4


@pytest.mark.parametrize(("features", "outputs"), [(12, 1), (20, 1), (12, 5)])
def test_private_replies_say_answers_and_nothing_else(data, features, outputs):
    found = {}
    for setting in layer_audit.settings():
        if (setting.in_features, setting.out_features) == (features, outputs):
            found[bool(setting.server)] = layer_audit.audit_layer(setting, data).findings
    assert (found[False]["reply"].value, found[False]["head"].value) == (1, 1)
    assert (found[True]["reply"].value, found[True]["head"].value) == (0, 0.5)
    assert found[True]["answers"].value == 1  # which is why they are counted


def test_noise_slows_least_squares_and_the_budget_is_before_w_is_determined(data):
    found = layer_audit.curve(LayerSetting("", 20, 2), data, deviations=(0.0, 4.0), most=2000)
    assert (found.budget, found.solving) == (10, 21)
    exact, noisy = (dict(zip(found.counts, found.errors[deviation], strict=True)) for deviation in (0.0, 4.0))
    assert exact[found.budget] > 0.3
    assert exact[2000] < 1e-3
    assert noisy[2000] > 10 * exact[2000]
    # Where it is determined, four times the answers halve the error.
    far = [count for count in found.counts if count > 4 * found.solving]
    slope = np.polyfit(np.log(far), np.log([noisy[count] for count in far]), 1)[0]
    assert -0.8 < slope < -0.3


def test_page_and_numbers_hold_the_layers(data, small):
    report = page.Report("title", "here", layers=[layer_audit.audit_layer(small, data)])
    report.curve = layer_audit.curve(small, data, most=64)
    assert "| small |" in page.markdown(report)
    assert page.page(report).count("data:image/png;base64,") == 1
    values = json.loads(report.to_json())
    assert values["layers"][0]["findings"]["answers"]["value"] == 1
    assert values["curve"]["counts"] == report.curve.counts


def test_the_command_has_rows_for_layers(tmp_path):
    listed = CliRunner().invoke(app, ["audit", "--rows", "list"])
    assert "weights of 40 -> 1, replies as they are" in listed.output
    done = CliRunner().invoke(app, ["audit", "--quick", "--rows", "weights of 12", "--output", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "weights of 12 -> 1, replies as they are" in done.output
    assert "weights of 12 -> 1, private replies" in done.output
    assert "recovers of the server's weights" in (tmp_path / "audit.md").read_text(encoding="utf-8")
    values = json.loads((tmp_path / "audit.json").read_text(encoding="utf-8"))
    assert (len(values["rows"]), len(values["layers"])) == (0, 2)
    assert values["curve"]["solving"] == 13
