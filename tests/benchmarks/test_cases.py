"""Names of networks and noises on the command line, and what they stand for."""

import pytest

from benchmarks.cases import (
    KINDS,
    NOISES,
    PAPER,
    Case,
    check_known,
    make_cases,
    make_config,
    numbers,
)
from vshift.errors import ConfigError


def test_every_combination_network_by_network():
    cases = make_cases(["resnet-20", "paper"], [128, 512], ["none", "dropout"])
    assert len(cases) == 5 * 2 * 2
    assert cases[:2] == [Case("resnet-20", 128, "none"), Case("resnet-20", 128, "dropout")]
    assert list(dict.fromkeys(case.network for case in cases)) == ["resnet-20", *PAPER]


def test_numbers_of_a_name_are_the_familys_keys():
    assert make_config(Case("wrn-16-4", 128, "none")).network.width == 4
    assert make_config(Case("densenet-40-24", 128, "none")).network.growth_rate == 24
    resnext = make_config(Case("resnext-29-4-32", 128, "none")).network
    assert (resnext.cardinality, resnext.base_width) == (4, 32)


@pytest.mark.parametrize("kind", [kind for kind in NOISES if kind != "none"])
def test_all_noises_are_equally_strong(kind):
    (noise,) = make_config(Case("preresnet-20", 128, kind)).network.noises
    assert (noise.kind, noise.variance) == (kind, 1.0)


def test_logging_is_the_configs_own_key():
    case = Case("preresnet-20", 128, "none")
    assert make_config(case, log=True).measure.every == 1
    assert make_config(case, log=False).measure.every == 0


def refused(*arguments):
    with pytest.raises(ConfigError) as caught:
        make_cases(*arguments)
    return caught.value.problems


def test_every_mistake_is_named_with_what_is_allowed():
    problems = refused(["preresnt-20", "wrn-27-10"], [128, 2], ["dropuot"])
    text = "\n".join(problems)
    assert len(problems) == 4
    assert "--noise dropuot: not known; did you mean `dropout`? allowed: none, dropout" in text
    assert "--batch 2: a batch holds at least 4 images" in text
    assert "--networks preresnt-20: not known; did you mean `preresnet-20`?" in text
    assert "--networks wrn-27-10" in text
    assert "6n + 4" in text


@pytest.mark.parametrize("name", ["mlp-2", "resnet-18-2", "wrn-x", ""])
def test_what_is_no_network(name):
    (problem,) = refused([name], [128], ["none"])
    assert "a family and its numbers, such as preresnet-20" in problem


def test_unknown_kind_of_step():
    check_known("--kinds", ["eager", "auto"], KINDS)
    with pytest.raises(ConfigError, match="--kinds eagre: not known; did you mean `eager`"):
        check_known("--kinds", ["eagre"], KINDS)


def test_batches_are_numbers():
    assert numbers("--batch", "128, 512") == [128, 512]
    with pytest.raises(ConfigError, match="--batch 128,x: comma-separated whole numbers"):
        numbers("--batch", "128,x")


def test_a_network_by_reference(tmp_path, monkeypatch):
    (tmp_path / "my_model.py").write_text("class Net: pass\n")
    monkeypatch.chdir(tmp_path)
    (case,) = make_cases(["my_model.py:Net"], [128], ["dropout"])
    network = make_config(case).network
    assert network.name == f"{tmp_path}/my_model.py:Net"
    assert network.source is not None
    with pytest.raises(ConfigError, match=r"--networks my_model.py:Nat: network.name: .*no 'Nat'"):
        make_cases(["my_model.py:Nat"], [128], ["none"])
