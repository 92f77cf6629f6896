"""Bases, merging, --set, names, grids, and writing a config out again."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vshift.config import (
    Config,
    config_hash,
    differences,
    dump,
    expand,
    json_schema,
    load,
    refuse_study,
)
from vshift.config.load import folder_name


def test_loading_imports_no_torch(write) -> None:
    code = (
        "import sys, vshift.config as c; c.expand('good.yaml'); c.json_schema();"
        "sys.exit(any(m in sys.modules for m in ('torch', 'pandas', 'rich', 'numpy')))"
    )
    path = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": path})


def test_a_file_and_its_defaults(write) -> None:
    config = load("good.yaml")
    assert (config.name, config.seeds, config.epochs) == ("good", [0], 3)
    assert config.norm.kind == "batch"
    assert load(Path("good.yaml"), seed=7).seeds == [7]
    assert load("good.yaml", ["seeds=[1, 2]"], seed=7).seeds == [7]


def test_base_is_relative_to_the_file_and_deeply_merged(write) -> None:
    write("nets/net.yaml", "network: {name: preresnet, depth: 32, bias: true}\nseeds: [1, 2]\n")
    write("a/b/c.yaml", "base: ../../nets/net.yaml\ndata: {name: shapes}\nepochs: 2\n"
          "network: {depth: 44}\nseeds: [5]\n")  # fmt: skip
    config = load("a/b/c.yaml")
    assert (config.name, config.network.depth, config.network.bias) == ("c", 44, True)
    assert config.seeds == [5], "a list replaces"


def test_later_bases_win_and_the_file_over_all(write) -> None:
    write("one.yaml", "base: good.yaml\nepochs: 5\nseeds: [1]\nhardware: {threads: 1}\n")
    write("two.yaml", "epochs: 6\nseeds: [2]\n")
    write("c.yaml", "base: [one.yaml, two.yaml]\nseeds: [3]\n")
    config = load("c.yaml")
    assert (config.epochs, config.seeds, config.hardware.threads) == (6, [3], 1)


def test_null_removes_what_a_base_says(write) -> None:
    write("c.yaml", "base: good.yaml\nnetwork: {noise: null}\n")
    assert load("c.yaml").network.noises == ()
    write("c.yaml", "base: null\nepochs: 3\ndata: {name: shapes}\nnetwork: {name: vgg}\n")
    assert load("c.yaml").network.name == "vgg"


def test_another_name_or_kind_replaces_the_section(write) -> None:
    write("c.yaml", "base: good.yaml\nname: other\nnetwork: {name: wrn}\nnorm: {kind: none}\n")
    config = load("c.yaml")
    assert (config.network.name, config.network.depth) == ("wrn", 28)
    assert config.epochs == 3, "the config's own name is no kind"
    write("d.yaml", "base: good.yaml\nnetwork: {name: preresnet}\n")
    assert load("d.yaml").network.noises, "the same name merges"
    write(
        "e.yaml",
        "base: good.yaml\nnetwork: {noise: {kind: gaussian, sigma: 1, position: before_bn}}",
    )
    assert load("e.yaml").network.noises[0].variance == 1


def test_a_later_base_of_another_name_wins_over_the_earlier_one(write) -> None:
    write("one.yaml", "network: {name: resnet, depth: 110}\n")
    write("two.yaml", "network: {name: wrn, width: 2}\n")
    write("c.yaml", "base: [good.yaml, one.yaml, two.yaml]\nnetwork: {depth: 16}\n")
    config = load("c.yaml")
    assert (config.network.name, config.network.depth, config.network.width) == ("wrn", 16, 2)


def test_a_name_is_not_inherited(write) -> None:
    write("base.yaml", "base: good.yaml\nname: mine\n")
    write("c.yaml", "base: base.yaml\n")
    assert load("base.yaml").name == "mine"
    assert load("c.yaml").name == "c"


def test_circles_are_named(write, refused) -> None:
    write("a.yaml", "base: b.yaml\n")
    write("b.yaml", "epochs: 1\nbase: [good.yaml, d/../a.yaml]\n")
    assert refused(load, "a.yaml") == [
        "b.yaml:2:19: base: the files name each other in a circle: a.yaml → b.yaml → a.yaml"
    ]
    write("self.yaml", "base: self.yaml\n")
    assert "self.yaml → self.yaml" in refused(load, "self.yaml")[0]
    Path("link.yaml").symlink_to("self2.yaml")
    write("self2.yaml", "base: link.yaml\n")
    assert "in a circle" in refused(load, "self2.yaml")[0]


def test_bases_have_limits(write, refused) -> None:
    for i in range(30):
        write(f"n{i}.yaml", f"base: n{i + 1}.yaml\n")
    assert "more than 20 files, each the base of the next" in refused(load, "n0.yaml")[0]
    write("c.yaml", f"base: [{', '.join(['good.yaml'] * 21)}]\n")
    assert refused(load, "c.yaml") == ["c.yaml:1:7: base: 21 files; at most 20"]
    for i in range(19):  # read once each, or this takes 2^19 readings
        write(f"m{i}.yaml", f"base: [m{i + 1}.yaml, m{i + 1}.yaml]\n")
    write("m19.yaml", "base: good.yaml\n")
    assert load("m0.yaml").epochs == 3


def test_base_problems(write, refused) -> None:
    write("c.yaml", "base: goood.yaml\n")
    assert refused(load, "c.yaml") == [
        "c.yaml:1:7: base: goood.yaml: no such file; did you mean `good.yaml`?"
    ]
    write("c.yaml", "base: [3, good.yaml, '']\n")
    assert refused(load, "c.yaml") == [
        "c.yaml:1:8: base: 3 is not a path; write one path or a list",
        "c.yaml:1:22: base: '' is not a path; write one path or a list",
    ]
    write("broken.yaml", "a: [\n")
    write("c.yaml", "base: broken.yaml\n")
    assert refused(load, "c.yaml")[0].startswith("broken.yaml:2:1: not valid YAML: ")


def test_set_wins_over_everything(write) -> None:
    config = load("good.yaml", ["epochs=9", "network.noise.rate=1e-1", "hardware.threads = 2"])
    assert config.epochs == 9
    assert config.network.noises[0].variance == pytest.approx(0.1 / 0.9)
    assert config.hardware.threads == 2
    assert load("good.yaml", ["norm.momentum=0.05"]).norm.momentum == 0.05
    assert load("good.yaml", ["optimizer.learning_rate=1"]).optimizer.learning_rate == 1
    assert load("good.yaml", ["network={name: mlp, widths: [8]}"]).network.widths == [8]
    assert load("good.yaml", ["network.noise="]).network.noise is None
    assert load("good.yaml", ["epochs=4", "epochs=5"]).epochs == 5


def test_set_reaches_into_lists(write) -> None:
    entry = "{kind: dropout, rate: 0.1, position: before_bn}"
    sets = [f"network.noise=[{entry}, {entry}]", "network.noise.1.rate=0.2"]
    assert [n.rate for n in load("good.yaml", sets).network.noises] == [0.1, 0.2]


def test_set_creates_sections_and_keeps_noise_when_the_kind_changes(write) -> None:
    config = load("good.yaml", ["network.name=resnet"])
    assert (config.network.name, len(config.network.noises)) == ("resnet", 1)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("epochs", "--set epochs: no `=`; write --set key=value, for instance --set epochs=5"),
        ("=3", "--set =3: no dotted key such as network.noise.rate"),
        ("a..b=3", "--set a..b=3: `a..b` is not a dotted key such as network.noise.rate"),
        ("base=x", "--set base=x: `base` is read before --set; write it in a file"),
        ("epochs.x=3", "--set epochs.x=3: `epochs` is 3, which has no keys"),
        ("seeds.x=3", "--set seeds.x=3: `seeds` is a list; say which entry, for instance "
         "`seeds.0`"),
        ("seeds.1=3", "--set seeds.1=3: `seeds` has entries 0 to 0; there is no 1"),
        ("x={a: 1, a: 2}", "--set x={a: 1, a: 2}: the key `a` is there twice"),
        ("x=*a", "--set x=*a: `*a` stands for nothing: no `&a` above"),
        (".".join("a" * 60) + "=1", "--set " + ".".join("a" * 60)[:113] + "…: a key of 60 parts; "
         "at most 50"),
    ],
)  # fmt: skip
def test_malformed_sets(text: str, line: str, write, refused) -> None:
    write("c.yaml", "base: good.yaml\nseeds: [1]\n")
    assert refused(load, "c.yaml", [text])[0] == line


def test_all_malformed_sets_at_once(write, refused) -> None:
    assert len(refused(load, "good.yaml", ["a", "b=[", "epochs=5", "c..=1"])) == 3


@pytest.mark.parametrize(
    ("stem", "name"),
    [("a b!c", "a_b_c"), ("-x.y", "x.y"), ("é", "run"), ("a" * 200, "a" * 120), ("a=1+2", "a=1+2")],
)
def test_a_default_name_is_a_folder_name(stem: str, name: str, write) -> None:
    assert folder_name(stem) == name
    assert load(write(f"{stem}.yaml", "base: good.yaml\n")).name == name


def test_root_is_kept_absolute(write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    here = Path.cwd()
    assert load("good.yaml", ["data={name: imagefolder, root: d}"]).data.root == str(here / "d")
    assert load("good.yaml", ["data={name: cifar10, root: ~/d}"]).data.root == "/home/me/d"
    assert load("good.yaml", ["data={name: cifar10}"]).data.root is None


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
        ("{epochs: [1, 1]}", "g.yaml:2:20: grid.epochs: 1 is there twice"),
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


def test_dump_quotes_what_would_be_read_as_something_else(write) -> None:
    for text in ("no", "1e-3", "012", "0o17", "null", "~", "true", "2024-01-31", "é: [", " a", "#"):
        config = load("good.yaml").model_copy()
        data = {"name": "imagefolder", "root": "/d", "train_folder": text, "test_folder": "t"}
        config = Config.model_validate({**config.model_dump(), "data": data})
        again = load(write("again.yaml", dump(config)))
        assert again == config
        assert again.data.train_folder == text


def test_dump_is_whole_and_begins_sections_with_their_name(write) -> None:
    text = dump(load("good.yaml", ["norm.eps=1e-5"]))
    assert text.startswith("name: good\nseeds: [0]\ndata:\n  name: shapes\n")
    assert "eps: 1.0e-05\n" in text
    assert load(write("again.yaml", text)).norm.eps == 1e-5


def test_the_hash_ignores_name_seeds_grid_and_arms_only(write) -> None:
    first = config_hash(load("good.yaml"))
    assert len(first) == 16
    assert int(first, 16) >= 0
    same = ["name=x", "seeds=[4]", "grid={epochs: [1]}", "arms={a: {}}", "network.noise.rate=5e-1"]
    assert config_hash(load("good.yaml", same)) == first
    for other in ("epochs=4", "network.noise.rate=0.4", "norm.eps=1e-4"):
        assert config_hash(load("good.yaml", [other])) != first


def test_differences(write) -> None:
    a = load("good.yaml")
    sets = ["name=x", "seeds=[4]", "network.noise=null", "norm={kind: none}", "data.train_limit=5"]
    found = differences(a, load("good.yaml", sets))
    assert found["data.train_limit"] == (None, 5)
    assert found["norm.kind"] == ("batch", "none")
    assert found["norm.momentum"] == (0.1, None)
    assert found["network.noise"][1] is None
    assert not {"name", "seeds"} & set(found)
    assert differences(a, load("good.yaml", ["name=x"])) == {}


def _fields(schema: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    sections = [schema, *schema["$defs"].values()]
    return [item for section in sections for item in section.get("properties", {}).items()]


def test_json_schema() -> None:
    schema = json_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["title"] == "vshift config"
    assert {"base", "name", "network", "grid"} <= set(schema["properties"])
    assert not [key for key, field in _fields(schema) if not field.get("description")]
    assert '"required"' not in json.dumps(schema)
    assert '"oneOf"' not in json.dumps(schema)
