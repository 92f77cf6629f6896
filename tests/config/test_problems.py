"""What a person reads when a config is wrong, word for word."""

import pickle

import pytest

from vshift.config import load
from vshift.errors import ConfigError, VShiftError

POSITIONS = "before_last_bn, before_last_conv, before_bn, after_bn, before_pool, before_classifier"
DATA = (
    "cifar10, cifar100, imagefolder, shapes, patterns, torchvision:MNIST, "
    "torchvision:FashionMNIST, torchvision:KMNIST, torchvision:SVHN, file.py:object, "
    "package.module:object"
)
NETWORKS = (
    "preresnet, resnet, wrn, resnext, densenet, vgg, vit, mlp, autoencoder, torchvision:NAME, "
    "timm:NAME, file.py:object, package.module:object"
)


def test_every_problem_at_once_in_the_order_of_the_file(write, refused) -> None:
    write("configs/a.yaml", """\
name: a b
seeds: 3
data: {name: shapes, train: 1.5}
network:
  name: preresnet
  noize: 1
  noise: {kind: dropout, rate: 1.5, position: before_last_bm}
norm: {kind: batc}
optimizer: 3
schedule: {milestones: [3]}
measure: {eval_epochs: alle}
depth: 20
""")  # fmt: skip
    lines = refused(load, "configs/a.yaml")
    assert [line.removeprefix("configs/a.yaml:") for line in lines] == [
        " epochs: missing; passes over the training images",
        "1:7: name: a name becomes a folder: letters, digits, and . _ = + - after the first, at "
        "most "
        "120",
        "2:8: seeds: 3 is not a list; write the seeds themselves, such as [0, 1]",
        "3:29: data.train: 1.5 is not a whole number",
        "6:3: network.noize: unknown key of preresnet; did you mean `noise`? allowed here: bias, "
        "block, bottleneck, depth, name, noise",
        "7:32: network.noise.rate: 1.5 is not allowed; must be less than 1 (the DROP rate in [0, "
        "1), "
        "the paper's 1 − p)",
        "7:47: network.noise.position: 'before_last_bm' is not allowed; did you mean "
        f"`before_last_bn`? allowed: {POSITIONS}, a list",
        "8:14: norm.kind: 'batc' is not allowed; did you mean `batch`? allowed: batch, renorm, "
        "layer, rms, group, none, file.py:object, package.module:object",
        "9:12: optimizer: 3 is not a section of keys; write for instance {name: sgd}",
        "10:1: schedule.name: missing; allowed: constant, multistep, cosine, onecycle, "
        "file.py:object, package.module:object",
        "11:24: measure.eval_epochs: 'alle' is not allowed; did you mean `all`? allowed: all, a "
        "list",
        "12:1: depth: unknown key; did you mean `network.depth`? allowed here: arms, "
        "average, base, checkpoint, data, epochs, grid, hardware, is_base, loss, measure, name, "
        "network, norm, notes, optimizer, recalibration, schedule, seeds, zip",
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("epochs=ten", "epochs: 'ten' is not a whole number"),
        ("epochs='3'", "epochs: '3' is not a whole number; remove the quotes"),
        ("epochs=1e1", "epochs: 10.0 is not a whole number; write 10"),
        ("epochs=true", "epochs: true is not a whole number"),
        ("epochs=0", "epochs: 0 is not allowed; must be at least 1 (passes over the training "
         "images)"),
        ("seeds=2", "seeds: 2 is not a list; write the seeds themselves, such as [0, 1]"),
        ("seeds=[]", "seeds: empty; give at least one"),
        ("seeds=[1, 1]", "seeds: a seed is listed twice"),
        ("seeds=[-1]", "seeds.0: -1 is not allowed; must be at least 0"),
        ("name=5", "name: 5 is not text; in quotes it is: '5'"),
        ("data=null", "data: null is not a section of keys; write for instance {name: cifar10}"),
        ("norm=grup", "norm.kind: 'grup' is not allowed; did you mean `group`? allowed: batch, "
         "renorm, layer, rms, group, none, file.py:object, package.module:object"),
        ("optimizer.name=adma", "optimizer.name: 'adma' is not allowed; did you mean `adam`? "
         "allowed: sgd, adamw, adadelta, adafactor, adagrad, adam, adamax, asgd, nadam, radam, "
         "rmsprop, rprop, file.py:object, package.module:object"),
        ("network.noise={kind: 'odd.py:Odd', rate: 0.3}", "network.noise.rate: unknown key; what "
         "the object is called with goes into args: {rate: …}; allowed here: after, args, before, "
         "from, kind, over_depth, position, source, until"),
        ("norm=null", "norm: null is not a section of keys; write for instance {kind: batch}"),
        ("network.name=preresnt", "network.name: 'preresnt' is not a network; did you mean "
         f"`preresnet`? allowed: {NETWORKS}"),
        ("network.name=[1]", f"network.name: a list is not a network; allowed: {NETWORKS}"),
        ("network.name=null", f"network.name: null is not a network; allowed: {NETWORKS}"),
        ("data={'name:shapes': null}", "data.name: missing; a space goes after the colon, name: "
         f"shapes; allowed: {DATA}"),
        ("network={name: preresnet, 'depth:20': null}", "network.depth:20: unknown key of "
         "preresnet; a space goes after the colon, depth: 20; allowed here: bias, block, "
         "bottleneck, depth, name, noise"),
        ("network.preresnet=1", "network.preresnet: unknown key of preresnet; allowed here: bias, "
         "block, bottleneck, depth, name, noise"),
        ("network.base=x", "network.base: unknown key of preresnet; `base` is only allowed at the "
         "top of a file; allowed here: bias, block, bottleneck, depth, name, noise"),
        ("network.bias=yes", "network.bias: 'yes' is not true or false; write true"),
        ("network.bias=OFF", "network.bias: 'OFF' is not true or false; write false"),
        ("network.depth=21", "network.depth: 21 does not divide into three stages of basic blocks: "
         "the depth must be 6n + 2; the nearest is 20"),
        ("network.depth=null", "network.depth: null is not a whole number; leave the key out for "
         "its "
         "default"),
        ("network.noise=[]", "network.noise: empty; give at least one"),
        ("network.noise={}", "network.noise.kind: missing; allowed: dropout, gaussian, uniform, "
         "uout, stochastic_depth, classic_dropout, scaled_dropout, alpha_dropout, dropblock, "
         "file.py:object, package.module:object"),
        ("network.noise.unit=pixel", "network.noise.unit: 'pixel' is not allowed; allowed: "
         "element, channel, sample"),
        ("network.noise={kind: dropblock, rate: 0.1, size: 0, position: before_bn}",
         "network.noise.size: 0 is not allowed; must be at least 1 (side of a square in pixels)"),
        ("network.noise={kind: alpha_dropout, rate: 1, position: before_bn}",
         "network.noise.rate: 1 is not allowed; must be less than 1 (the DROP rate in [0, 1), the "
         "paper's 1 − p)"),
        ("network.noise={kind: stochastic_depth, rate: 0.1, unit: channel, position: before_bn}",
         "network.noise.unit: unknown key of stochastic_depth; it is a key of dropout, gaussian, "
         "uniform, uout; allowed here: after, before, from, kind, over_depth, position, rate, "
         "until"),
        ("norm.ghost=0", "norm.ghost: 0 is not allowed; must be at least 1 (images of a group)"),
        ("norm.eval_statistics=test", "norm.eval_statistics: 'test' is not allowed; "
         "allowed: running, batch"),
        ("norm.update_running_stats=no", "norm.update_running_stats: 'no' is not true or "
         "false; write false"),
        ("network.noise.position=null", "network: noise has no place: give it a position "
         f"({POSITIONS}), names of modules (before, after), or write `noise` in network.block"),
        ("network.noise.position=[before_bm]", "network.noise.position.0: 'before_bm' is not "
         "allowed; "
         f"did you mean `before_bn`? allowed: {POSITIONS}"),
        ("network.block=", None),
        ("network.block=bn relu conv noise2", "network.block: the block order says `noise2`, but "
         "network.noise has 1 entry; describe the noise there, for instance {kind: dropout, "
         "rate: 0.5}"),
        ("optimizer.learning_rate=.inf", "optimizer.learning_rate: inf is not allowed; must be a "
         "finite number"),
        ("optimizer.learning_rate='0.1'", "optimizer.learning_rate: '0.1' is not a number; "
         "remove the "
         "quotes"),
        ("optimizer.name=adm", "optimizer.name: 'adm' is not allowed; did you mean `adam`? "
         "allowed: sgd, adamw, adadelta, adafactor, adagrad, adam, adamax, asgd, nadam, radam, "
         "rmsprop, rprop, file.py:object, package.module:object"),
        ("optimizer.lr=0.1", "optimizer.lr: unknown key of sgd; did you mean `learning_rate`? "
         "allowed here: decay_norm_and_bias, learning_rate, momentum, name, nesterov, train, "
         "weight_decay"),
        ("optimizer={name: adam, betas: [0.8, 0.9]}", "optimizer.betas: unknown key of adam; what "
         "the object is called with goes into args: {betas: …}; allowed here: args, "
         "learning_rate, name, train"),
        ("optimizer={name: 'mine.py:Lion'}", "optimizer.learning_rate: missing; where schedules "
         "start"),
        ("optimizer={name: adam, args: {lr: 1.0}}", "optimizer.args: lr is the key learning_rate, "
         "beside args"),
        ("optimizer={name: adamw, betas: [0.9]}", "optimizer.betas: too short; give 2"),
        ("data.root=x", "data.root: unknown key of shapes; it is a key of cifar10, cifar100, "
         "imagefolder; allowed here: augment, batch_size, name, seed, target, test, test_limit, "
         "train, train_limit, validation"),
        ("data={name: imagefolder}", "data.root: missing; the tree's folder"),
        ("data={name: imagefolder, root: ''}", "data.root: empty; give at least one"),
        ("norm.groups=3", "norm.groups: unknown key of batch; it is a key of group; allowed "
         "here: affine, eps, eval_statistics, freeze_after, ghost, gn_groups, "
         "kind, momentum, scale_init, shift_init, update_running_stats"),
        ("norm={freeze_after: 1, update_running_stats: false}", "norm.freeze_after: "
         "update_running_stats is false, so there are no statistics to freeze; remove one"),
        ("norm={kind: renorm, rmax_steps: 10}", "norm.rmax_steps: 10 is before plain_steps, "
         "5000, after which limits grow"),
        ("norm={kind: renorm, rmax: 0.5}", "norm.rmax: 0.5 is not allowed; must be at least 1 "
         "(limit of r = (batch's / running standard deviation), from 1/rmax to rmax)"),
        ("measure.eval_epochs=[9]", "measure: eval_epochs names epoch 9, and there are 3"),
        ("schedule={name: multistep}", "schedule.milestones: missing; finished epochs after "
         "which the "
         "rate is multiplied by factor, increasing"),
        ("hardware=fast", "hardware: 'fast' is not a section of keys"),
        ("grid={epochs: 3}", "grid.epochs: 3 is not a list; write [3]"),
        ("grid=3", "grid: 3 is not a mapping"),
    ],
)  # fmt: skip
def test_each_message_and_where_set_is_named(text: str, line: str | None, write, refused) -> None:
    if line is None:
        load("good.yaml", [text])
        return
    (found,) = refused(load, "good.yaml", [text])
    if line.startswith("network: noise has no place"):
        assert found == f"good.yaml:3:3: {line}"
    else:
        assert found == f"--set {text}: {line}"


def test_a_key_that_is_missing_because_it_is_misspelt_is_one_problem(write, refused) -> None:
    text = "data: {nme: shapes}\nnetwork: {name: mlp, widths: [8]}\nepoch: 3\n"
    data, epoch = refused(load, write("a.yaml", text))
    assert data.startswith("a.yaml:1:1: data.name: missing; `nme` is no key here; allowed: ")
    assert epoch.startswith("a.yaml:3:1: epoch: unknown key; did you mean `epochs`? ")
    write("b.yaml", """\
data: {name: shapes}
network: {name: mlp, widths: [8], noise: {kind: dropout, position: before_bn, rte: 0.5}}
""")  # fmt: skip
    epoch, rate = refused(load, "b.yaml", ["epoch=3"])
    assert rate.startswith("b.yaml:2:79: network.noise.rte: unknown key of dropout; did you mean ")
    assert epoch.startswith("--set epoch=3: epoch: unknown key; did you mean `epochs`? ")


def test_missing_sections_stand_at_the_top(write, refused) -> None:
    lines = refused(load, write("a.yaml", "seeds: [1]\n"))
    assert lines == [
        f"a.yaml: data: missing; a section whose name is one of {DATA}",
        f"a.yaml: network: missing; a section whose name is one of {NETWORKS}",
        "a.yaml: epochs: missing; passes over the training images",
    ]


def test_a_problem_in_a_base_is_shown_there(write, refused) -> None:
    write("nets/a.yaml", "network:\n  name: preresnet\n  depth: 21\n")
    write("study/b.yaml", "base: ../nets/a.yaml\ndata: {name: shapes}\nepochs: 0\n")
    assert refused(load, "study/b.yaml") == [
        "nets/a.yaml:3:10: network.depth: 21 does not divide into three stages of basic blocks: "
        "the "
        "depth must be 6n + 2; the nearest is 20",
        "study/b.yaml:3:9: epochs: 0 is not allowed; must be at least 1 (passes over the training "
        "images)",
    ]


def test_a_problem_of_the_seed_option(write, refused) -> None:
    assert refused(load, "good.yaml", seed=-1) == [
        "--seed -1: seeds.0: -1 is not allowed; must be at least 0"
    ]


def test_values_are_short_and_safe_to_print(write, refused) -> None:
    write("a.yaml", 'base: good.yaml\nepochs: "\\e[31m' + "x" * 5000 + '"\n"\\nkey": 1\n')
    first, second = refused(load, "a.yaml")
    assert first == f"a.yaml:2:9: epochs: '\\x1b[31m{'x' * 54}…' is not a whole number"
    assert second.startswith("a.yaml:3:1: \\nkey: unknown key; ")


def test_thousands_of_problems_are_cut_short(write, refused) -> None:
    write("a.yaml", "base: good.yaml\n" + "".join(f"k{i}: 1\n" for i in range(5000)))
    lines = refused(load, "a.yaml")
    assert len(lines) == 51
    assert lines[0].startswith("a.yaml:2:1: k0: unknown key; ")
    assert lines[-1] == "… and 4,950 more"


def test_no_jargon(write, refused) -> None:
    write("a.yaml", "name: [1]\nseeds: {a: 1}\ndata: [1]\nnetwork: {name: mlp, widths: [a, null, "
    "0]}\n"
          "epochs: {}\nmeasure: []\nhardware: {device: gpu, threads: -1}\n")  # fmt: skip
    text = "\n".join(refused(load, "a.yaml"))
    for word in ("Input", "Value error", "pydantic", "http", "model", "dictionary", "instance of"):
        assert word not in text


def test_config_error_is_one_error_of_many_lines() -> None:
    error = ConfigError("a", "b")
    assert isinstance(error, VShiftError)
    assert (str(error), error.problems, error.exit_code) == ("a\nb", ("a", "b"), 2)
    assert pickle.loads(pickle.dumps(error)).problems == ("a", "b")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("schedule={name: onecycle, rise: 0.2}", "`schedule.rise` is now `schedule.pct_start`"),
        ("schedule={name: onecycle, start_divisor: 9}",
         "`schedule.start_divisor` is now `schedule.div_factor`"),
        ("schedule={name: onecycle, end_divisor: 9}",
         "`schedule.end_divisor` is now `schedule.final_div_factor`"),
        ("recalibration.own=0.3", "`recalibration.own` is now `recalibration.batch_weight`"),
        ("norm.cumulative=true", "`norm.cumulative` is now `norm.momentum`; null: the simple "
         "average over all batches"),
        ("norm.update=false", "`norm.update` is now `norm.update_running_stats`"),
        ("norm.evaluate=batch", "`norm.evaluate` is now `norm.eval_statistics`"),
        ("data={name: imagefolder, root: d, train: t}", "`data.train` is now `data.train_folder`"),
        ("data={name: imagefolder, root: d, test: t}", "`data.test` is now `data.test_folder`"),
    ],
)  # fmt: skip
def test_a_renamed_key_is_answered_with_its_new_name(text: str, line: str, write, refused) -> None:
    assert refused(load, "good.yaml", [text]) == [f"--set {text}: {line}"]


def test_a_renamed_key_of_another_section_is_only_unknown(write, refused) -> None:
    (line,) = refused(load, "good.yaml", ["data={name: cifar10, train: 5}"])
    assert "data.train: unknown key of cifar10; a number of images is `train_limit`;" in line
    (line,) = refused(load, "good.yaml", ["schedule={name: cosine, rise: 0.5}"])
    assert "schedule.rise: unknown key of cosine; allowed here" in line


def test_what_happens_within_a_run_needs_an_epoch(write, refused) -> None:
    assert refused(load, "good.yaml", ["norm.freeze_after=3"]) == [
        "good.yaml:6:9: epochs: norm.freeze_after 3 leaves no epoch to train with frozen "
        "statistics, of 3 epochs"
    ]
    (line,) = refused(load, "good.yaml", ["network.noise.until=0.1"])
    assert line.endswith("network.noise: until 0.1 of the run is no whole epoch, of 3 epochs")
    (line,) = refused(load, "good.yaml", ["network.noise.from=0.5", "network.noise.until=0.5"])
    assert line.endswith("network.noise: from 0.5 is not before until 0.5")
    one = "{name: mlp, widths: [8], noise: {kind: dropout, rate: 0.5, position: before_bn, "
    (line,) = refused(load, "good.yaml", [f"network={one}over_depth: linear}}}}"])
    assert line.endswith(
        "network: noise.over_depth: linear begins with no noise in the first block, and there is "
        "only one; leave it out"
    )


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("data={name: imagefolder, root: x, train: 500}", "a number of images is `train_limit`;"),
        ("data={name: cifar10, test: 500}", "a number of images is `test_limit`;"),
        ("data={name: imagefolder, root: x, train: y}", "`data.train` is now `data.train_folder`"),
        ("network.noise=none", "'none' is not a section of keys; write null"),
        ("network.noise=off", "'off' is not a section of keys; write null"),
        ("schedule=none", "write for instance {name: constant}"),
        ("lr=0.1", "did you mean `optimizer.learning_rate`?"),
        (r'data={name: imagefolder, root: "C:\data"}', r"single quotes, 'C:\data', or is written"),
        (r'data={name: imagefolder, root: "C:\temp"}', "a path with control characters: in double"),
        (r'data={name: imagefolder, root: "\\host\new"}', "a path with control characters: in"),
    ],
)
def test_slips_that_people_make(change: str, line: str, write, refused) -> None:
    (problem,) = refused(load, "good.yaml", [change])
    assert line in problem
