"""Zip: lists of values that go in step, alone and combined with a grid and arms."""

import pytest

from vshift.config import config_hash, dump, expand, load, refuse_study

ZIP = """\
base: good.yaml
zip:
  network.depth: [8, 20, 56]
  epochs: [2, 5, 10]
"""


def test_a_zip_takes_the_first_values_together_then_the_second_ones(write) -> None:
    points = expand(write("z.yaml", ZIP))
    assert [point.name for point in points] == [
        "z-depth=8-epochs=2", "z-depth=20-epochs=5", "z-depth=56-epochs=10",
    ]  # fmt: skip
    last = points[-1]
    assert (last.assignments, last.of) == ({"network.depth": 56, "epochs": 10}, ("zip",))
    assert (last.config.network.depth, last.config.epochs, last.config.zip) == (56, 10, None)


def test_zip_grid_and_arms_make_a_product(write) -> None:
    more = "arms: {a: {}, b: {network.noise: null}}\ngrid: {norm.momentum: [0.1, 0.2]}\n"
    points = expand(write("z.yaml", ZIP + more))
    assert len(points) == 2 * 3 * 2
    assert points[1].name == "z-a-depth=8-epochs=2-momentum=0.2"
    assert points[-1].of == ("arms", "zip", "grid")
    assert list(points[-1].assignments) == [
        "network.noise", "network.depth", "epochs", "norm.momentum"
    ]  # fmt: skip


def test_a_value_may_come_again_in_another_row(write) -> None:
    points = expand(write("z.yaml", ZIP), ["zip.network.depth=[8, 8, 20]"])
    assert [(p.config.network.depth, p.config.epochs) for p in points] == [(8, 2), (8, 5), (20, 10)]


def test_keys_of_zip_and_grid_that_end_alike_are_told_apart(write) -> None:
    zipped = "base: good.yaml\nzip: {network.noise.rate: [0.1, 0.2], network.depth: [8, 20]}\n"
    noise = "[{kind: dropout, rate: 0.5, position: before_last_bn}]"
    points = expand(write("z.yaml", zipped + "grid: {norm.momentum: [0.1]}\n"))
    assert points[0].name == "z-rate=0.1-depth=8-momentum=0.1"
    text = "base: good.yaml\nzip: {network.noise.0.rate: [0.2]}\ngrid: {network.noise.0.rate: [1]}"
    write("two.yaml", text.replace("noise.0.rate: [1]", "depth: [8]"))
    assert expand("two.yaml", [f"network.noise={noise}"])[0].name == "two-rate=0.2-depth=8"
    write("both.yaml", "base: good.yaml\nzip: {data.seed: [1]}\ngrid: {optimizer.momentum: [0.5], "
          "norm.momentum: [0.1]}\n")  # fmt: skip
    assert expand("both.yaml")[0].name == "both-seed=1-optimizer.momentum=0.5-norm.momentum=0.1"


def test_without_a_zip_there_is_one_point(write) -> None:
    for text in ("zip=null", "zip={}"):
        (point,) = expand(write("z.yaml", ZIP), [text])
        assert (point.name, point.config.zip) == ("z", None)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("zip: 3", "z.yaml:2:6: zip: 3 is not a mapping of dotted keys to lists"),
        ("zip: {epochs: 3}", "z.yaml:2:7: zip.epochs: 3 is not a list of values to try"),
        ("zip: {epochs: []}", "z.yaml:2:7: zip.epochs: an empty list; give at least one value"),
        ("zip: {epochs: [1, 2], network.depth: [8]}", "z.yaml:2:23: zip.network.depth: 1 value, "
         "and zip.epochs has 2; the lists of a zip go in step, the first value with the first "
         "value"),
        ("zip: {epochs: [1, 2, 1], network.depth: [8, 8, 8]}", "z.yaml:2:22: zip: 1 with 8 is "
         "there twice"),
        ("zip: {name: [a]}", "z.yaml:2:7: zip.name: not in a zip: every row gets its own name"),
        ("zip: {seeds: [[1]]}", "z.yaml:2:7: zip.seeds: not in a zip: every row runs with all "
         "`seeds`"),
        ("zip: {grid.epochs: [1]}", "z.yaml:2:7: zip.grid.epochs: not in a zip: zip and grid stand "
         "side by side"),
        ("zip: {a..b: [1]}", "z.yaml:2:7: `a..b` is not a dotted key such as network.noise.rate"),
        ("grid: {zip: [1]}", "z.yaml:2:8: grid.zip: not in a grid: zip and grid stand side "
         "by side"),
        ("zip: {epochs: [1]}\ngrid: {epochs: [2]}", "z.yaml:3:8: grid.epochs: the zip sets it too; "
         "give it in one of the two"),
        ("arms: {a: {epochs: 1}}\nzip: {epochs: [2]}", "z.yaml:3:7: zip.epochs: the arm a sets it "
         "too; give it in one of the two"),
    ],
)  # fmt: skip
def test_malformed_zips(text: str, line: str, write, refused) -> None:
    assert refused(expand, write("z.yaml", f"base: good.yaml\n{text}\n")) == [line]


def test_a_value_that_is_not_allowed_is_named_at_its_entry(write, refused) -> None:
    write("z.yaml", "base: good.yaml\nzip:\n  epochs: [1, 0]\n  network.depth: [8, 9]\n")
    lines = refused(expand, "z.yaml")
    assert lines[0].startswith("z.yaml:3:15: epochs: 0 is not allowed")
    assert any(line.startswith("z.yaml:4:22: network.depth: ") for line in lines)


def test_set_of_a_key_that_a_zip_sets_is_refused(write, refused) -> None:
    (line,) = refused(expand, write("z.yaml", ZIP), ["epochs=3"])
    assert line.startswith("--set epochs: the config's grid, zip or arms set this key")


def test_train_refuses_a_zip(write, refused) -> None:
    config = load(write("z.yaml", ZIP))
    assert refused(refuse_study, config, "z.yaml") == [
        "z.yaml: its zip names 3 combinations; `vshift sweep z.yaml` runs them all; or choose one "
        "with `--set zip=null --set network.depth=8 --set epochs=2`"
    ]
    (line,) = refused(refuse_study, load("z.yaml", ["grid={norm.momentum: [0.1, 0.2]}"]), "z.yaml")
    assert "its zip and grid name 6 combinations" in line


def test_a_zip_is_written_out_and_counts_in_no_hash(write) -> None:
    config = load(write("z.yaml", ZIP))
    assert load(write("again.yaml", dump(config))) == config
    assert config_hash(config) == config_hash(load("good.yaml"))
