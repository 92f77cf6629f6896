"""Wrong command lines: what is wrong, the nearest word, what to write; exit code 2."""

import re

import pytest
import typer.main

from vshift.cli import app

MESSAGES = {
    "compare --format latx runs": "--format latx is not allowed; did you mean `latex`?",
    "train a.yaml b.yaml": "takes one CONFIG, and `b.yaml` is too much; several: "
    "`vshift sweep a.yaml b.yaml`",
    "train a.yaml --epochs 3": "there is no option --epochs; write --set epochs=3;",
    "train a.yaml --lr=0.1": "write --set optimizer.learning_rate=0.1;",
    "train a.yaml --depth": "write --set network.depth=…;",
    "train a.yaml --seeds 3": "there is no option --seeds; did you mean `--seed`?",
    "train a.yaml epochs=3": "a change of the config is written --set epochs=3",
    "train a.yaml --device gpu": "--device gpu is not allowed; did you mean `cuda`?",
    "train a.yaml --seed": "--seed: its value is missing",
    "train a.yaml --seed x": "--seed x is not a whole number",
    "train a.yaml --fresh=2": "--fresh takes no value",
    "sweep a.yaml --jobs 0": "--jobs 0 is too small; at least 1",
    "watch runs --every 0": "--every 0 is too small; at least 0.2",
    "watch runs --every x": "--every x is not a number",
    "train": "CONFIG is missing (A YAML file);",
    "audit model.pt2": "--data SOURCE is missing (An image folder,",
    "schema x": "takes no argument, and was given x",
    "trian a.yaml": "there is no such command; did you mean `train`?",
    "a.yaml": "to train a config: `vshift train a.yaml`;",
    "data ftch": "there is no such command; did you mean `fetch`? there are: list, fetch",
    "--versoin": "there is no option --versoin; did you mean `--version`?",
}  # fmt: skip


@pytest.mark.parametrize("words", MESSAGES)
def test_usage_errors_say_what_to_write(vshift, words):
    code, out, err = vshift(*words.split())
    assert (code, out) == (2, "")
    assert err.startswith("error: vshift")
    assert MESSAGES[words] in err
    assert len(err.splitlines()) == 1
    assert "?;" not in err


@pytest.mark.parametrize("words", [(), ("data",)])
def test_without_a_command_there_is_the_help(vshift, words):
    _, out, err = vshift(*words)
    assert "Commands:" in out + err
    assert "error:" not in err


def commands(group, name=()):
    for each, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*name, each))
        else:
            yield (*name, each), command


@pytest.mark.parametrize(("name", "command"), [*commands(typer.main.get_command(app))])
def test_help_describes_every_argument_and_option(vshift, name, command):
    assert all(parameter.help for parameter in command.params), name
    valued = [each for each in command.params if not getattr(each, "is_flag", False)]
    assert all(each.metavar for each in valued), name  # else it would be a type of Python's
    code, out, _ = vshift(*name, "-h")
    assert code == 0
    assert out.startswith(f"Usage: vshift {' '.join(name)} ")
    assert not re.search(r"<(list|int|str|float|path)\b|\b(INTEGER|FLOAT|TEXT|PATH)\b", out)
