"""Arms: named settings, alone and combined with a grid."""

import pytest

from vshift.config import config_hash, dump, expand, load, refuse_study
from vshift.errors import ConfigError

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
