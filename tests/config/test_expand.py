"""Arms, zip and grid: the combinations that a config names, alone and together."""

import pytest

from vshift.config import config_hash, dump, expand, load, refuse_study
from vshift.errors import ConfigError

# ---- grid

GRID = "base: good.yaml\ngrid:\n  network.noise.rate: [0.1, 0.3]\n  epochs: [1, 2]\n"


def test_a_grid_makes_every_combination(write) -> None:
    points = expand(write("g.yaml", GRID), ["seeds=[3]"], seeds=[8, 9])
    assert [point.name for point in points] == [
        "g-rate=0.1-epochs=1",
        "g-rate=0.1-epochs=2",
        "g-rate=0.3-epochs=1",
        "g-rate=0.3-epochs=2",
    ]
    last = points[-1]
    assert last.assignments == {"network.noise.rate": 0.3, "epochs": 2}
    assert (last.config.name, last.config.epochs, last.config.grid) == (last.name, 2, None)
    assert last.config.network.noises[0].rate == 0.3  # type: ignore[union-attr]
    assert last.config.seeds == [8, 9]


def test_without_a_grid_there_is_one_point(write) -> None:
    (point,) = expand("good.yaml")
    assert (point.name, point.config, point.assignments) == ("good", load("good.yaml"), {})
    for text in ("grid=null", "grid={}"):
        (point,) = expand(write("g.yaml", GRID), [text])
        assert (point.name, point.config.grid) == ("g", None)


def test_a_grid_can_fill_in_what_the_config_lacks(write) -> None:
    write("g.yaml", "data: {name: shapes}\nnetwork: {name: mlp}\ngrid: {epochs: [1]}\n")
    assert expand("g.yaml")[0].config.epochs == 1


def test_a_grid_over_whole_sections_and_over_lists(write) -> None:
    write("g.yaml", "base: good.yaml\ngrid:\n  network.noise: [null, {kind: dropout, rate: 0.2, "
          "position: before_bn}]\n  norm: [{kind: none}]\n")  # fmt: skip
    with_none = expand("g.yaml", ["grid.norm=[{kind: batch}]"])
    assert [p.name for p in with_none] == [
        "g-noise=null-norm=batch",
        "g-noise=dropout_0.2_before_bn-norm=batch",
    ]


def test_point_names_differ(write) -> None:
    keys = (
        "data.seed: [1]",
        "data.train: [100]",
        "optimizer.momentum: [0.5]",
        "norm.momentum: [0.2]",
    )
    write("g.yaml", "base: good.yaml\ngrid:\n  " + "\n  ".join(keys) + "\n")
    assert expand("g.yaml")[0].name == (
        "g-seed=1-train=100-optimizer.momentum=0.5-norm.momentum=0.2"
    )
    write("g.yaml", "base: good.yaml\ngrid: {network.block: ['bn relu conv', 'bn  relu conv']}\n")
    assert [p.name for p in expand("g.yaml", ["network.noise=null"])] == [
        "g-block=bn_relu_conv",
        "g-block=bn_relu_conv-2",
    ]
    long = write(f"{'x' * 119}.yaml", GRID)
    names = [p.name for p in expand(long)]
    assert len(set(names)) == 4
    assert max(map(len, names)) <= 120


def test_point_names_of_list_entries(write) -> None:
    entry = "{kind: dropout, rate: 0.1, position: before_bn}"
    write("g.yaml", f"base: good.yaml\nnetwork: {{noise: [{entry}, {entry}]}}\n"
          "grid: {network.noise.0.rate: [0.2], network.noise.1.rate: [0.3]}\n")  # fmt: skip
    (point,) = expand("g.yaml")
    assert point.name == "g-network.noise.0.rate=0.2-network.noise.1.rate=0.3"
    assert [n.rate for n in point.config.network.noises] == [0.2, 0.3]  # type: ignore[union-attr]


def test_each_grid_problem_once_at_its_entry(write, refused) -> None:
    write("g.yaml", "base: good.yaml\ngrid:\n  network.noise.rate: [0.1, 1.5]\n"
          "  epochs: [1, 0, 2]\n")  # fmt: skip
    assert refused(expand, "g.yaml") == [
        "g.yaml:4:15: epochs: 0 is not allowed; must be at least 1 (passes over the training "
        "images)",
        "g.yaml:3:29: network.noise.rate: 1.5 is not allowed; must be less than 1 "
        "(the DROP rate in [0, 1), the paper's 1 − p)",
    ]
    write("g.yaml", "base: good.yaml\ngrid: {network.noize.rate: [0.1, 0.2]}\n")
    (line,) = refused(expand, "g.yaml")
    assert line.startswith(
        "g.yaml:2:8: network.noize: unknown key of preresnet; did you mean `noise`?"
    )
    write("g.yaml", "base: good.yaml\ngrid: {epoch: [1, 2]}\n")
    (line,) = refused(expand, "g.yaml")
    assert line.startswith("g.yaml:2:8: epoch: unknown key; did you mean `epochs`?")


@pytest.mark.parametrize(
    ("grid", "line"),
    [
        ("3", "g.yaml:2:7: grid: 3 is not a mapping of dotted keys to lists"),
        ("{epochs: 3}", "g.yaml:2:8: grid.epochs: 3 is not a list of values to try"),
        ("{epochs: []}", "g.yaml:2:8: grid.epochs: an empty list; give at least one value"),
        ("{epochs: [1, 1]}", "g.yaml:2:20: grid.epochs: 1 is listed twice"),
        ("{name: [a]}", "g.yaml:2:8: grid.name: not in a grid: every combination gets its own "
         "name"),
        ("{seeds: [[1]]}", "g.yaml:2:8: grid.seeds: not in a grid: every combination runs with all "
         "`seeds`"),
        ("{base: [a]}", "g.yaml:2:8: grid.base: not in a grid: `base` is read before the grid"),
        ("{a..b: [1]}", "g.yaml:2:8: `a..b` is not a dotted key such as network.noise.rate"),
        ("{epochs.x: [1]}", "g.yaml:2:8: `epochs` is 3, which has no keys"),
    ],
)  # fmt: skip
def test_malformed_grids(grid: str, line: str, write, refused) -> None:
    write("g.yaml", f"base: good.yaml\ngrid: {grid}\n")
    assert refused(expand, "g.yaml") == [line]


def test_a_huge_grid_is_refused_before_it_is_made(write, refused) -> None:
    values = list(range(1, 1001))
    write("g.yaml", "base: good.yaml\ngrid:\n" + "".join(f"  k{i}: {values}\n" for i in range(9)))
    (line,) = refused(expand, "g.yaml")
    assert line.startswith("g.yaml:3:3: grid: 1,000,000,000,000,000,000,000,000,000 combinations")
    assert line.endswith("at most 10,000, take values out")


def test_train_refuses_a_grid(write, refused) -> None:
    config = load(write("g.yaml", GRID))
    assert config.grid == {"network.noise.rate": [0.1, 0.3], "epochs": [1, 2]}
    assert refused(refuse_study, config, "g.yaml") == [
        "g.yaml: its grid names 4 combinations; `vshift sweep g.yaml` runs them all; or choose one "
        "with `--set grid=null --set network.noise.rate=0.1 --set epochs=1`"
    ]
    refuse_study(load("g.yaml", ["grid=null"]), "g.yaml")


def test_a_grid_can_be_changed_by_set(write) -> None:
    points = expand(write("g.yaml", GRID), ["grid.network.noise.rate=[0.7]"])
    assert [p.assignments["network.noise.rate"] for p in points] == [0.7, 0.7]


# ---- arms

ARMS = """\
base: good.yaml
arms:
  none: {network.noise: null}
  wide: {network: {name: wrn, depth: 10, width: 2}, norm.momentum: 0.05}
  as-it-is: {}
"""


def test_each_arm_is_a_named_point(write) -> None:
    points = expand(write("a.yaml", ARMS))
    assert [point.name for point in points] == ["a-none", "a-wide", "a-as-it-is"]
    none, wide, same = points
    assert none.assignments == {"network.noise": None}
    assert (none.config.network.noises, none.config.arms, none.of) == ((), None, ("arms",))
    assert (wide.config.network.name, wide.config.norm.momentum) == ("wrn", 0.05)
    assert list(wide.assignments) == ["network", "norm.momentum"]
    assert same.assignments == {}
    assert config_hash(same.config) == config_hash(load("good.yaml"))


def test_arms_and_grid_make_a_product(write) -> None:
    grid = "grid: {epochs: [1, 2]}\n"
    points = expand(write("a.yaml", ARMS + grid), ["network.depth=8"])
    assert [point.name for point in points] == [
        "a-none-epochs=1", "a-none-epochs=2", "a-wide-epochs=1", "a-wide-epochs=2",
        "a-as-it-is-epochs=1", "a-as-it-is-epochs=2",
    ]  # fmt: skip
    last = points[-1]
    assert (last.assignments, last.of) == ({"epochs": 2}, ("arms", "grid"))
    assert (last.config.epochs, last.config.network.depth) == (2, 8)  # type: ignore[union-attr]


def test_without_arms_there_is_one_point(write) -> None:
    for text in ("arms=null", "arms={}"):
        (point,) = expand(write("a.yaml", ARMS), [text])
        assert (point.name, point.assignments, point.config.arms) == ("a", {}, None)


def test_arms_can_be_changed_by_set(write) -> None:
    sets = ["arms.none.network.noise.rate=0.1", "arms.new={epochs: 1}"]
    points = expand(write("a.yaml", "base: good.yaml\narms: {none: {epochs: 2}}\n"), sets)
    assert [p.assignments for p in points] == [
        {"epochs": 2, "network.noise.rate": 0.1},
        {"epochs": 1},
    ]


def test_arms_of_a_base_are_joined_with_a_files_own(write) -> None:
    write("a.yaml", ARMS)
    points = expand(write("b.yaml", "base: a.yaml\narms: {none: {epochs: 1}, more: {}}\n"))
    assert [p.name for p in points] == ["b-none", "b-wide", "b-as-it-is", "b-more"]
    assert points[0].assignments == {"network.noise": None, "epochs": 1}


@pytest.mark.parametrize(
    ("arms", "line"),
    [
        ("3", "a.yaml:2:7: arms: 3 is not a mapping of names to arms"),
        ("{a: 3}", "a.yaml:2:8: arms.a: 3 is not a mapping of dotted keys to values; an arm that "
         "changes nothing is {}"),
        ("{a b: {}}", "a.yaml:2:8: arms.a b: an arm's name becomes part of a folder's: letters, "
         "digits, and . _ = + - after the first, at most 60"),
        ("{a: {name: b}}", "a.yaml:2:12: arms.a.name: not in an arm: every arm gets its own name"),
        ("{a: {seeds: [1]}}", "a.yaml:2:12: arms.a.seeds: not in an arm: every arm runs with all "
         "`seeds`"),
        ("{a: {grid.epochs: [1]}}", "a.yaml:2:12: arms.a.grid.epochs: not in an arm: arms and grid "
         "stand side by side"),
        ("{a: {b..c: 1}}", "a.yaml:2:12: `b..c` is not a dotted key such as network.noise.rate"),
        ("{a: {epochs.x: 1}}", "a.yaml:2:12: `epochs` is 3, which has no keys"),
        ("{a: {}}\ngrid: {arms: [3]}", "a.yaml:3:8: grid.arms: not in a grid: arms and grid stand "
         "side by side"),
        ("{a: {epochs: 1}, b: {}}\ngrid: {epochs: [2]}", "a.yaml:3:8: grid.epochs: the arm a sets "
         "it too; give it in one of the two"),
    ],
)  # fmt: skip
def test_malformed_arms(arms: str, line: str, write, refused) -> None:
    assert refused(expand, write("a.yaml", f"base: good.yaml\narms: {arms}\n")) == [line]


def test_each_arms_problem_once_at_its_entry(write, refused) -> None:
    write("a.yaml", "base: good.yaml\ngrid: {epochs: [1, 2]}\narms:\n"
          "  a: {network.noize: null}\n  b: {network.noise.rate: 1.5}\n")  # fmt: skip
    first, second = refused(expand, "a.yaml")
    assert first.startswith(
        "a.yaml:4:7: network.noize: unknown key of preresnet; did you mean `noise`?"
    )
    assert second.startswith("a.yaml:5:27: network.noise.rate: 1.5 is not allowed")


def test_malformed_arms_and_grid_in_one_error(write, refused) -> None:
    write("a.yaml", "base: good.yaml\ngrid: {epochs: 1}\narms: {a: 1, b: {x..y: 2}}\n")
    assert [line.split(": ")[0] for line in refused(expand, "a.yaml")] == [
        "a.yaml:3:8", "a.yaml:3:18", "a.yaml:2:8",
    ]  # fmt: skip


def test_train_refuses_arms(write, refused) -> None:
    config = load(write("a.yaml", ARMS))
    assert refused(refuse_study, config, "a.yaml") == [
        "a.yaml: its arms name 3 combinations; `vshift sweep a.yaml` runs them all; or choose one "
        "with `--set arms=null --set network.noise=null`"
    ]
    both = load("a.yaml", ["grid={epochs: [1, 2]}"])
    (line,) = refused(refuse_study, both, "a.yaml")
    assert "its arms and grid name 6 combinations" in line
    assert line.endswith(
        "`--set arms=null --set grid=null --set network.noise=null --set epochs=1`"
    )
    refuse_study(load("a.yaml", ["arms=null"]), "a.yaml")


def test_arms_are_written_out_and_read_again(write) -> None:
    config = load(write("a.yaml", ARMS))
    assert load(write("again.yaml", dump(config))) == config


def test_set_of_a_key_that_a_grid_sets_is_refused(write) -> None:
    """The grid would overrule it without a word."""
    path = write("a.yaml", GRID_OF_RATES)
    key = "network.noise.rate"
    with pytest.raises(ConfigError, match=f"--set {key}: the config's grid, zip or arms set"):
        expand(path, [f"{key}=0.7"])
    points = expand(path, ["grid=null", "network.noise.rate=0.7"])
    assert points[0].config.network.noises[0].variance == pytest.approx(0.7 / 0.3)


GRID_OF_RATES = """
data: {name: shapes}
network: {name: preresnet, depth: 8, noise: {kind: dropout, rate: 0.5, position: before_last_bn}}
epochs: 1
grid: {network.noise.rate: [0.1, 0.3]}
"""


def test_set_of_the_section_around_a_grids_key_is_welcome(write) -> None:
    noise = "{kind: gaussian, rate: 0.5, position: before_last_bn}"
    points = expand(write("a.yaml", GRID_OF_RATES), [f"network.noise={noise}"])
    assert [type(point.config.network.noises[0]).__name__ for point in points] == ["Gaussian"] * 2


def test_an_arm_and_a_grid_that_do_not_fit_are_named_together(write, refused) -> None:
    """No entry is wrong by itself: a rate of no noise."""
    text = ARMS + "grid: {network.noise.rate: [0.1, 0.3]}\n"
    (line,) = [
        line for line in refused(expand, write("a.yaml", text)) if "noise.kind: missing" in line
    ]
    assert line.endswith("(in the combination none-rate=0.1 and 3 more)")


# ---- zip

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
         "listed twice"),
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
