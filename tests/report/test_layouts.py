"""Configs in words, from the config alone."""

from __future__ import annotations

import colorsys
from pathlib import Path
from typing import Any

import pytest

from tests.factory import config_of, dropout, make_run, summary_of
from vshift.compare.groups import Group
from vshift.report.layouts import (
    GREY,
    in_words,
    layouts,
    noise_in_words,
    norm_in_words,
    shared,
    terms,
)
from vshift.report.page import layer_note, render, vega_script
from vshift.report.study import Study, collect
from vshift.runs import find_runs

LAST_BN = "right before each block’s last batch norm (before_last_bn"
DROPOUT_A = f"{LAST_BN}; Dropout-(a) of Li et al. 2019)"


def of(noise: Any, name: str = "preresnet", **network: Any) -> str:
    config = {"network": {"name": name, "noise": noise, **network}}
    return str(noise_in_words(Group("a", None, "a", (), [], [], config)))


def test_a_networks_own_noise_is_not_called_no_noise(tmp_path: Path) -> None:
    make_run(tmp_path, summary=summary_of(noise_modules=2))
    groups = collect(find_runs([tmp_path])).groups
    assert in_words(groups) == {"a": "noise of its own"}
    assert shared(groups) == "mlp, 3 epochs, 1 seed each"


@pytest.mark.parametrize(
    ("noise", "text"),
    [
        (None, "no noise"),
        (dropout(0.0), "no noise"),
        (dropout(0.3), f"dropout at rate 0.3 {DROPOUT_A}"),
        ({**dropout(0.3), "position": "before_bn"},
         "dropout at rate 0.3 right before every batch norm of each block (before_bn)"),
        ({**dropout(0.3), "unit": "channel"},
         f"dropout at rate 0.3 on whole channels, {DROPOUT_A}"),
        ({"kind": "gaussian", "sigma": 1.0, "position": "before_last_bn"},
         f"Gaussian noise with σ 1 {LAST_BN})"),
        ({"kind": "uniform", "beta": 0.3, "position": ["before_last_bn", "before_classifier"]},
         f"uniform noise (Uout) with β 0.3 {LAST_BN}) and once, before the classifier, after all "
         "batch norms (before_classifier)"),
        ({"kind": "gaussian", "rate": 0.5, "position": "before_last_conv"},
         "Gaussian noise as strong as dropout at rate 0.5 right before each block’s last "
         "convolution (before_last_conv)"),
        ([dropout(0.5), {**dropout(0.1), "position": "after_bn"}],
         f"dropout at rate 0.5 {DROPOUT_A} and dropout at rate 0.1 "
         "after every batch norm of each block and its activation (after_bn)"),
        ({**dropout(0.3), "position": "before_pool"},
         "dropout at rate 0.3 once, before the global pooling, after all batch norms "
         "(before_pool)"),
        ({"kind": "dropout", "rate": 0.3, "position": None, "before": "layer*.bn2"},
         "dropout at rate 0.3 right before each module layer*.bn2"),
        ({"kind": "dropout", "rate": 0.3, "before": ["a.bn", "b.bn"], "after": "conv\x1b1"},
         "dropout at rate 0.3 right before each module a.bn, right before each module b.bn and "
         "right after each module conv\\x1b1"),
        ({**dropout(0.3), "until": 0.3},
         f"dropout at rate 0.3 {DROPOUT_A}, until 0.3 of the run"),
        ({**dropout(0.3), "over_depth": "linear", "from": 0.2, "until": 0.6},
         f"dropout at rate 0.3 {DROPOUT_A}, growing linearly over the blocks, from 0.2 until 0.6 "
         "of the run"),
        ({"kind": "dropout", "rate": 0.3, "position": "between_blocks"},
         "dropout at rate 0.3 at between_blocks"),
    ],
)  # fmt: skip
def test_noise(noise: Any, text: str) -> None:
    assert of(noise) == text


def test_noise_in_other_networks_and_orders() -> None:
    conv = {**dropout(0.5), "position": "before_last_conv"}
    assert of(conv, "mlp") == (
        "dropout at rate 0.5 right before each block’s last linear layer (before_last_conv)"
    )
    noise = {"kind": "dropout", "rate": 0.5}
    assert of(noise, block="bn noise conv3x3") == (
        "dropout at rate 0.5 where the block order says noise: bn noise conv3x3"
    )


@pytest.mark.parametrize(
    ("norm", "text"),
    [
        ({"kind": "batch", "momentum": 0.1}, "batch norm, momentum 0.1"),
        ({"kind": "batch", "momentum": None},
         "batch norm, running statistics as the simple average of all batches"),
        ({"kind": "batch", "ghost": 16, "momentum": 0.1, "scale_init": 0.5, "shift_init": -1.0},
         "batch norm in groups of 16 images, momentum 0.1, γ starts at 0.5, β starts at −1"),
        ({"kind": "batch", "update_running_stats": False},
         "batch norm, running statistics never updated"),
        ({"kind": "batch", "momentum": 0.1, "eval_statistics": "batch"},
         "batch norm, momentum 0.1, tested with each test batch’s own statistics"),
        ({"kind": "group", "groups": 8}, "group norm of 8 groups"),
        ({"kind": "batch", "momentum": 0.1, "freeze_after": 80},
         "batch norm, momentum 0.1, frozen after epoch 80"),
        ({"kind": "renorm", "momentum": 0.01, "rmax": 3.0, "dmax": 0.0},
         "batch renorm, momentum 0.01, rmax 3, dmax 0"),
        ({"kind": "layer"}, "layer norm"),
        ({"kind": "rms", "scale_init": 0.5}, "RMS norm, γ starts at 0.5"),
        ({"kind": "none"}, "no normalisation"),
        (3, ""),
    ],
)  # fmt: skip
def test_norm(norm: Any, text: str) -> None:
    assert norm_in_words(norm) == text


@pytest.fixture
def arms(tmp_path: Path) -> Study:
    make_run(tmp_path, "group", config=config_of(noise=dropout(0.3)) | {"norm": {"kind": "group"}})
    for rate in (0.5, 0.3):
        make_run(tmp_path, f"rate-{rate}", config=config_of(noise=dropout(rate)))
    make_run(tmp_path, "bias", config=config_of() | {"network": {"name": "mlp", "bias": True}})
    make_run(tmp_path, "plain")
    return collect(find_runs([tmp_path]), "plain")


def test_configs_that_differ_in_strength_only_stand_together(arms: Study) -> None:
    found = {tuple(g.label for g in layout.groups): layout.text for layout in layouts(arms.groups)}
    assert next(iter(found)) == ("plain",)
    rates = found["rate-0.3", "rate-0.5"]
    assert rates.startswith(f"dropout at rate 0.3 and 0.5 {LAST_BN}); batch norm, momentum 0.1")
    assert found["group",].startswith(f"dropout at rate 0.3 {LAST_BN}); group norm of 8 groups")
    assert "bias true" in found["bias",]
    alone = in_words(arms.groups)
    assert alone["rate-0.5"].startswith(f"dropout at rate 0.5 {LAST_BN}); batch norm")
    assert set(alone) == {group.label for group in arms.groups}


def test_hashes_and_defaults_of_parts_that_others_lack_are_not_told(tmp_path: Path) -> None:
    def own(source: str, **keys: Any) -> dict[str, Any]:
        return config_of() | {"network": {"name": "n.py:Net", "source": source * 16, **keys}}

    make_run(tmp_path, "plain")
    make_run(tmp_path, "own", config=own("a"))
    make_run(tmp_path, "args", config=own("b", args={"width": 8}))
    told = in_words(collect(find_runs([tmp_path])).groups)
    assert told["own"] == "name n.py:Net"
    assert "source" not in told["args"]
    assert "width" in told["args"]
    assert told["plain"] == "name mlp; widths [8, 8]"
    make_run(tmp_path, "changed", config=own("c"))
    told = in_words(collect(find_runs([tmp_path])).groups)
    assert "source aaaaaaaaaaaaaaaa" in told["own"]


def test_what_all_have_in_common_and_what_words_mean(arms: Study, study: Study) -> None:
    assert shared(arms.groups) == "mlp, 3 epochs, 1 seed each"
    assert [term.split(":")[0] for term in terms(study.groups, measured=True)] == [
        "Shift ratio",
        "s²",
    ]


def test_the_page_has_every_layout_on_top(study: Study) -> None:
    page = render(study, "t", vega_script())
    top = page[: page.index('id="card-loss"')]
    for layout in layouts(study.groups):
        assert layout.text in top
    assert "arm-none</b> (baseline), " in top
    assert f'title="{in_words(study.groups)["arm-bn-0.3"]}"' in page


def test_short_names_of_layers_are_explained_and_stay_on_axes(study: Study) -> None:
    note = layer_note(study)
    assert note == (
        "On axes and in the table of configs, layers have short names: s1.b1.bn1 is "
        "stage1.block1.branch.bn1."
    )
    page = render(study, "t", vega_script())
    before_data = page[: page.index('id="study"')]
    assert note in before_data


def test_a_hue_is_a_layout_and_a_shade_a_rate_whatever_their_number(tmp_path: Path) -> None:
    make_run(tmp_path, "none")
    for rate in (0.1, 0.5):
        for position in ("before_last_bn", "before_last_conv"):
            noise = {"kind": "dropout", "rate": rate, "position": position}
            make_run(tmp_path, f"{position}-{rate}", config=config_of(noise=noise))
    groups = {group.label: group for group in collect(find_runs([tmp_path])).groups}

    def hue(label: str) -> float:
        red, green, blue = (int(groups[label].colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        return colorsys.rgb_to_hls(red, green, blue)[0]

    bn, conv = ([f"{place}-{rate}" for rate in (0.1, 0.5)] for place in
                ("before_last_bn", "before_last_conv"))  # fmt: skip
    for pair in (bn, conv):
        assert hue(pair[0]) == pytest.approx(hue(pair[1]), abs=0.02)
        assert groups[pair[0]].colour != groups[pair[1]].colour
    assert abs(hue(bn[0]) - hue(conv[0])) > 0.1
    assert groups["none"].colour == GREY
