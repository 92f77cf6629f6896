"""Bases, merging, --set, names, grids, and writing a config out again."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vshift.config import (
    Config,
    config_hash,
    dump,
    expand,
    load,
)
from vshift.config.load import MAX_BYTES, folder_name, is_base, read_file
from vshift.errors import ConfigError


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


def test_a_norm_may_be_its_kind_alone(write) -> None:
    write("word.yaml", "base: good.yaml\nname: good\nnorm: layer\n")
    section = load("good.yaml", ["norm={kind: layer}"])
    assert load("word.yaml") == load("good.yaml", ["norm=layer"]) == section
    assert config_hash(load("word.yaml")) == config_hash(section) != config_hash(load("good.yaml"))
    write("c.yaml", "base: word.yaml\nnorm: {eps: 1e-3}\n")
    merged = load("c.yaml", ["norm.scale_init=0.5"]).norm
    assert (merged.kind, merged.eps, merged.scale_init) == ("layer", 1e-3, 0.5)
    write("d.yaml", "base: good.yaml\ngrid: {norm: [batch, rms]}\n")
    points = expand("d.yaml")
    assert [point.config.norm.kind for point in points] == ["batch", "rms"]


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


def test_a_base_only_is_not_run_by_itself_and_does_not_pass_that_on(write, refused) -> None:
    write("half.yaml", "is_base: true\nepochs: 7\n")
    assert refused(load, "half.yaml") == [
        "half.yaml:1:10: is_base: this file is a base of others and is not run by itself; "
        "run a config with `base: half.yaml`, or write one"
    ]
    write("c.yaml", "base: [good.yaml, half.yaml]\n")
    assert load("c.yaml").epochs == 7
    assert is_base(Path("half.yaml"))
    assert not is_base(Path("c.yaml"))
    assert not is_base(Path("no-such-file.yaml"))
    write("d.yaml", "base: good.yaml\nis_base: maybe\n")
    assert refused(load, "d.yaml") == ["d.yaml:2:10: is_base: 'maybe' is not true or false"]
    assert (
        "--set is_base=true: `is_base` is read before --set"
        in refused(load, "c.yaml", ["is_base=true"])[0]
    )


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
        ("x={a: 1, a: 2}", "--set x={a: 1, a: 2}: duplicate key `a`"),
        ("x=*a", "--set x=*a: unknown alias `*a`: there is no anchor `&a` above; text "
         "that starts with `*` needs quotes: '\"*a\"'"),
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
    [
        ("a b!c", "a_b_c"),
        ("-x.y", "x.y"),
        ("versuch ä", "versuch_a"),
        ("a" * 200, "a" * 120),
        ("a=1+2", "a=1+2"),
    ],
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


def test_files_that_are_not_there(write, refused) -> None:
    assert refused(load, "god.yaml") == ["god.yaml: no such file; did you mean `good.yaml`?"]
    assert refused(load, "good") == ["good: no such file; did you mean `good.yaml`?"]
    assert refused(load, "zzzzzzzz") == ["zzzzzzzz: no such file; the folder holds good.yaml"]
    assert refused(load, "no/x.yaml") == ["no/x.yaml: no such file; there is no folder no"]
    assert refused(load, ".") == [
        ".: a folder, not a config file; it holds good.yaml; vshift sweep takes folders"
    ]
    assert refused(load, "good.yaml/x") == ["good.yaml/x: cannot be read: Not a directory"]
    assert refused(load, "a\0b") == ["a\\x00b: not a file name"]
    Path("empty").mkdir()
    assert refused(load, "empty") == [
        "empty: a folder, not a config file; vshift sweep takes folders"
    ]


def test_no_permission(write, refused, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)  # root may read everything, so the mode is no test
    assert refused(load, "good.yaml") == ["good.yaml: may not be read (permission denied)"]


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"", "x.yaml: the file is empty; a config holds at least data, network, epochs"),
        (b"# only this\n", "x.yaml: the file is empty; a config holds at least data, network, "
         "epochs"),
        (b"a: 1\nb: \xe9", "x.yaml:2:4: byte 0xe9 is not UTF-8; save the file as UTF-8"),
        ("a: 1".encode("utf-16"), "x.yaml: the text is UTF-16; save it as UTF-8"),
        (b"a: \x00", "x.yaml:1:4: the character U+0000 is not allowed in YAML; remove it"),
        (b"- 1", "x.yaml:1:1: a config is a mapping (`key: value` lines), not a list"),
        (b"hello", "x.yaml:1:1: a config is a mapping (`key: value` lines), not 'hello'"),
        (b" " * (MAX_BYTES + 1), "x.yaml: larger than 1 MB; is it a config?"),
    ],
)  # fmt: skip
def test_files_that_are_no_config(data: bytes, line: str, write, refused) -> None:
    Path("x.yaml").write_bytes(data)
    assert refused(read_file, Path("x.yaml")) == [line]


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="needs /dev/zero")
def test_an_endless_file(refused) -> None:
    assert refused(load, "/dev/zero") == ["/dev/zero: larger than 1 MB; is it a config?"]


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


def test_a_byte_order_mark_is_read_over(write) -> None:
    good = Path("good.yaml")
    Path("bom.yaml").write_bytes(b"\xef\xbb\xbf" + good.read_bytes())
    assert load("bom.yaml", ["name=x"]) == load(good, ["name=x"])
    Path("wrong.yaml").write_bytes(b"\xef\xbb\xbfseed: [1]\n")
    with pytest.raises(ConfigError, match=r"wrong.yaml:1:1: seed: unknown key"):
        load("wrong.yaml")


def test_a_file_name_that_would_lose_letters_asks_for_a_name(write, refused) -> None:
    """Two of them would be one run folder."""
    path = write("实验.yaml", "base: good.yaml\n")
    assert "cannot name a run folder, for the sake of `实验`" in refused(load, path)[0]
    assert load(path, ["name=first"]).name == "first"
