"""An audit as object, text, Markdown, HTML and JSON; its rows and its notes."""

import copy
import json
import math
import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from examples.broken_models import FAULTS, examine
from examples.patients import data, trained
from vshift import audit
from vshift.auditing.findings import CHECKS
from vshift.auditing.findings.base import CandidateFinding
from vshift.auditing.report import Audit, NoiseReport
from vshift.auditing.severity import Gain


def test_labels_that_cannot_be_used_are_told():
    model, batches = trained(0)
    result = audit(model, [(x, y + 10) for x, y in batches])
    assert result.scores["eval mode"]["loss"] is None
    assert any("and the model has 4 classes): without labels" in note for note in result.notes)


def test_json_holds_what_the_contract_names():
    patient = FAULTS["nonfinite"](0, True)
    found = json.loads(examine(patient).to_json())
    assert list(found["findings"][0]) == ["code", "layer", "severity", "message", "evidence"]
    assert [row["layer"] for row in found["layers"]] == ["bn1", "bn2", "bn3"]
    assert found["layers"][1]["eval_variance"] is not None


def test_the_frame_has_a_row_for_each_layer(shifted):
    frame = audit(*shifted).frame()
    assert list(frame["layer"]) == ["bn1", "bn2", "bn3"]
    assert (frame["running_variance"] > 0).all()


def test_the_fixed_state_is_better_and_differs_in_statistics_only():
    patient = FAULTS["never_updated"](0, True)
    result = examine(patient)
    fixed = copy.deepcopy(patient.model)
    fixed.load_state_dict(result.fixed_state(patient.model))
    assert examine(type(patient)(fixed, patient.loader)).findings == []
    changed = {
        name
        for name, old in patient.model.state_dict().items()
        if not torch.equal(old, fixed.state_dict()[name])
    }
    assert changed == {f"bn{i}.running_{k}" for i in (1, 2, 3) for k in ("mean", "var")}


def test_roles_are_codes_of_findings_that_are_there():
    """Off by a little, without harm: no finding, and so no finding's code."""
    model, batches = trained(0)
    result = audit(model, [(1.25 * x, y) for x, y in batches])
    assert result.findings == []
    assert {row["role"] for row in result.layers} == {"off", "inherits"}
    text = " ".join(result.to_text().split())
    assert "off: its running statistics are not those of training mode, and that does no" in text
    assert "inherits: it is right itself" in text
    assert "frozen: " not in text


def test_a_reference_is_asked_for_only_where_drift_explains_something():
    model, batches = trained(0)
    assert not any("--reference" in note for note in audit(model, batches).notes)
    model.bn1.requires_grad_(False)
    assert any("--reference" in note for note in audit(model, batches).notes)
    patient = FAULTS["stale"](7, True)
    assert any("--reference" in note for note in examine(patient).notes)


def test_batch_norm_as_a_function_is_said_to_be_unjudged():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.zeros(3))
            self.register_buffer("variance", torch.ones(3))

        def forward(self, x):
            return F.batch_norm(x, self.mean, self.variance, training=self.training)

    model = nn.Sequential(Functional(), nn.Flatten(), nn.Linear(192, 4))
    notes = audit(model, data(0, 64)).notes
    assert any("as a function" in note and 'in "0":' in note for note in notes)
    norm = nn.Sequential(nn.InstanceNorm2d(3), nn.Flatten(), nn.Linear(192, 4))
    assert not any("as a function" in note for note in audit(norm, data(0, 64)).notes)


def test_inputs_and_outputs_that_are_not_finite_are_told():
    model, batches = trained(0)
    notes = audit(model, [(x * math.nan, y) for x, y in batches]).notes
    assert any("inputs hold inf or NaN" in note for note in notes)
    with torch.no_grad():
        model.fc.weight[0] = math.nan
    notes = audit(model, batches).notes
    assert any("outputs hold inf or NaN in training mode too" in note for note in notes)


def test_the_page_is_escaped_and_loads_nothing(vshift, tmp_path):

    vshift("audit", "mine.py:net", "--data", "mine.py:loader", "--report", "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "never_updated" in page
    body = page.partition("<body>")[2]
    assert "`" not in body
    assert "<code>strict=False</code>" in body
    headings = re.findall(r"<h2>(.*?)</h2>(.{12})", body)
    assert [heading for heading, _ in headings] == ["Findings", "Scores", "Layers", "Notes"]
    assert all("</section>" not in after for _, after in headings)
    assert "http" not in page
    foot = body.partition("<footer>")[2]
    assert "<p>Data: <code>mine.py:loader</code>.</p>" in foot
    made = "vshift audit mine.py:net --data mine.py:loader --report page.html"
    assert f"<p>Made by <code>{made}</code>.</p>" in foot
    assert re.search(r"<p>\d+ samples in batches of \d+, on cpu with torch 2\.\d+", foot)
    assert "<script" not in page
    empty = Audit([], [], NoiseReport([], [], []), None, {}, ["<b>&"])
    assert "&lt;b&gt;&amp;" in empty.to_html("<script>alert(1)</script>")
    assert "Findings" not in empty.to_html("x")
    assert "<script>" not in empty.to_html("<script>alert(1)</script>")


def test_the_verdict_comes_first_with_its_standard_error():
    lines = examine(FAULTS["stale"](7, True)).to_text().splitlines()
    number = r"\d+\.\d"
    assert re.fullmatch(
        f"Eval mode loses {number}\xa0±\xa0{number} points against train mode; repairs give back "
        rf"{number}\.",
        lines[0],
    )
    assert lines[1:3] == ["1 finding:", ""]
    healthy = examine(FAULTS["stale"](7, False))
    assert re.match(
        r"Eval mode is not measurably worse than train mode: loss \S+ against \S+ \(±\xa0\S+\),\sa",
        healthy.to_text(),
    )
    assert "\nNo findings.\n" in healthy.to_text()
    assert "eval mode, repaired" not in healthy.scores


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_text_fits_and_has_a_sentence_per_line(width):
    patient = FAULTS["variance_shift"](7, True)
    patient.model.norm_of_the_stage_with_a_long_name = patient.model.bn1
    found = examine(patient)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", found.to_text(width, terminal=True))
    assert max(map(len, shown.splitlines())) <= width
    lines = found.to_text(width).splitlines()
    text = lines[: next(i for i, line in enumerate(lines) if line.startswith("mode "))]
    assert max(map(len, text)) <= width
    starts = [line.strip().split(":")[0] for line in text]
    assert {"Usual causes", "What to do"} <= set(starts)
    assert any(start.startswith("Tried re-estimating") for start in starts)
    assert found.findings[0].message == " ".join(found.findings[0].sentences)


def test_layers_of_compiled_parts_have_their_names_and_can_be_fixed():
    model, batches = trained(0)
    model.bn2.running_var *= 20
    model.conv2 = torch.compile(model.conv2, backend="eager")
    model.bn2 = torch.compile(model.bn2, backend="eager")
    result = audit(model, batches)
    (finding,) = result.findings
    assert (finding.code, finding.layer) == ("stale", "bn2")
    assert "_orig_mod" not in result.to_json()
    assert "as given" not in result.scores
    assert not any("restored" in note for note in result.notes)
    changed = {
        name
        for name, tensor in result.fixed_state(model).items()
        if not torch.equal(tensor, model.state_dict()[name])
    }
    assert changed == {"bn2._orig_mod.running_mean", "bn2._orig_mod.running_var"}


def test_a_repair_that_harms_is_advised_against():
    gain = Gain("doing it", 0.1, 0.5, 0.01, 99.0, 80.0, 1.0, 0.3, True, True)
    finding = CandidateFinding(CHECKS[0], "bn1", "something.").to_finding(gain)
    assert finding.sentences[1:3] == [
        "Tried doing it: the loss rises from 0.100 to 0.500 (± 0.010), the accuracy falls from "
        "99.0 to 80.0 % (± 1.0).",
        "Repairing it makes eval worse: leave it.",
    ]
    assert not any(sentence.startswith("What to do") for sentence in finding.sentences)


def test_what_to_do_leaves_out_what_the_trial_ruled_out():
    """And a repair that makes a grave finding's scores worse is not the advice to leave it."""
    none = Gain("doing it", 0.5, 0.5, 0.01, 80.0, 80.0, 1.0, 0.3, True, True)
    some = replace(none, loss_after=0.3)
    worse = replace(none, loss_after=0.7)
    checks = {check.code: check for check in CHECKS}

    def advice(code, gain, **more):
        found = CandidateFinding(checks[code], "bn1", "something.", **more).to_finding(gain)
        (line,) = [s for s in found.sentences if s.startswith("What to do: ")]
        return line

    assert "`vshift.recalibrate(model, loader)`" in advice("stale", some)
    assert advice("stale", none).startswith("What to do: nothing, as it makes no measurable")
    assert "vshift.recalibrate" in advice("polluted", some)
    assert advice("polluted", none) == "What to do: call eval() before such forwards."
    found = CandidateFinding(checks["batch_dependent"], "bn1", "x.", least="medium")
    sentences = found.to_finding(worse).sentences
    assert "That alone makes eval mode worse." in sentences
    assert "What to do: normalise within a sample." in sentences


def test_only_columns_that_are_shown_are_explained_and_numbers_have_the_digits_they_support(
    shifted,
):
    found = audit(*shifted)
    wide, narrow = (
        re.sub(r"\x1b\[[0-9;]*m", "", found.to_text(width, terminal=True)) for width in (100, 32)
    )
    for heading in ("shift", "local", "inherited"):
        for text in (wide, narrow):
            (head,) = [line for line in text.splitlines() if re.match(r"layer +role", line)]
            assert (heading in head.split()) == (f"{heading}: " in " ".join(text.split()))
    assert "inherited: " in wide
    assert "inherited: " not in narrow
    assert "--verbose" not in narrow
    (row,) = [line.split() for line in wide.splitlines() if line.startswith("bn2 ")]
    assert re.fullmatch(r"\d\.\d{1,2}", row[-3])


def test_nothing_is_called_most_harmful_where_nothing_is_harmful():
    gain = Gain("doing it", 0.5, 0.5, 0.01, None, None, None, 0.3, True, True)
    found = [CandidateFinding(check, "bn1", "something.").to_finding(gain) for check in CHECKS[:2]]
    result = Audit(found, [], NoiseReport([], [], []), None, {}, [])
    assert result.count == "2 findings:"
    result.findings[0] = replace(found[0], severity="low")
    assert result.count == "2 findings, the most harmful first:"
