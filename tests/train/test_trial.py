"""What `hardware.precision: auto` becomes: the trial, its cache, and what a run records."""

import random
import time
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from tests.configs import make_config
from vshift.config import load as load_config
from vshift.data import load
from vshift.errors import ConfigError
from vshift.runs import RunFolder
from vshift.train import trial
from vshift.train.progress import Reporter
from vshift.train.run import train_seeds
from vshift.train.trial import PINNED, Trial, choose, measure

AUTO = {"device": "cpu", "threads": 1}
NOISE = {"kind": "dropout", "rate": 0.5, "position": "before_last_bn"}
NOISY = {"name": "preresnet", "depth": 8, "noise": NOISE}
STEPS = {"auto": "fused", "eager": "eager"}
CPU = torch.device("cpu")
FEW = {
    "data": {"name": "shapes", "train": 100, "test": 40, "batch_size": 64},
    "measure": {"eval_batches": 1, "explain_batches": 1},
    "recalibration": {"methods": []},
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """The kernels stay where they are, as compiling them takes seconds."""
    monkeypatch.delenv(PINNED, raising=False)
    monkeypatch.setattr(trial, "cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache" / "trials"


def auto(**sections):
    return make_config(**{"hardware": AUTO, **FEW, **sections})


def images_of(config):
    return load(config.data, CPU)


def chosen(config, said=None, **more):
    return choose(config, images_of(config), (said if said is not None else []).append, **more)


def trial_of(**seconds):
    """A kept trial, from the seconds of each setting's steps, `bf16_auto=[…]`."""
    times = {name.replace("_", " "): values for name, values in seconds.items()}
    return Trial(images=64, seconds=times, steps=STEPS)


# ---- the clock


class Machine:
    """A clock that steps advance: a step takes so many seconds per image, longer while busy."""

    def __init__(self, busy=lambda: 1.0, **per_image):
        self.now, self.counts, self.busy = 0.0, [], busy
        self.work = {name.replace("_", " "): self.step(s) for name, s in per_image.items()}

    def step(self, seconds):
        def work(count):
            self.counts.append(count)
            self.now += seconds * count * self.busy()

        return work

    def measured(self, batch=128, seconds=6.0):
        count, times = measure(self.work, batch, seconds, lambda: self.now)
        return Trial(images=count, seconds=times, steps=STEPS)


def settings(kept, step="auto"):
    found = kept.choose(auto(hardware={**AUTO, "step": step}).hardware)
    return found.precision, found.step


@pytest.mark.parametrize("faster", ["bf16", "float32"])
def test_the_faster_precision_wins(faster):
    slower = "float32" if faster == "bf16" else "bf16"
    times = {f"{faster}_auto": 1e-3, f"{slower}_auto": 2e-3}
    machine = Machine(**dict(sorted(times.items())), bf16_eager=3e-3, float32_eager=3e-3)
    kept = machine.measured()
    assert settings(kept) == (faster, "auto")
    assert 64 <= kept.images <= 128
    assert kept.speeds[f"{faster} fused"] == pytest.approx(1000)
    assert machine.now < 9


def test_a_busy_machine_favours_nobody():
    """Other programs come and go; each step takes up to three times as long."""
    draws = random.Random(0)
    for _ in range(50):
        machine = Machine(
            lambda: 1 + 2 * draws.random() ** 3, bf16_auto=2e-3, float32_auto=1e-3,
            bf16_eager=2e-3, float32_eager=1e-3,
        )  # fmt: skip
        assert settings(machine.measured())[0] == "float32"


def test_a_near_tie_keeps_the_default_precision():
    draws = random.Random(0)
    for _ in range(50):
        machine = Machine(
            lambda: 1 + 0.02 * draws.random(), bf16_auto=1e-3, float32_auto=0.98e-3,
            bf16_eager=1e-3, float32_eager=0.98e-3,
        )  # fmt: skip
        assert settings(machine.measured()) == ("bf16", "auto")


def test_one_lucky_round_decides_nothing():
    assert settings(trial_of(bf16_auto=[1, 1, 1, 1, 9], float32_auto=[1, 1, 1, 1, 1])) == (
        "bf16", "auto",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("step", "found"), [("auto", "bf16"), ("fused", "bf16"), ("eager", "float32")]
)
def test_the_step_that_was_asked_for_stays(step, found):
    kept = trial_of(
        bf16_auto=[2.0] * 5, float32_auto=[3.0] * 5, bf16_eager=[1.0] * 5, float32_eager=[0.5] * 5
    )
    assert settings(kept, step=step) == (found, step)


def test_a_slow_processor_gets_an_answer_from_few_images():
    machine = Machine(bf16_auto=0.5, float32_auto=0.1, bf16_eager=0.5, float32_eager=0.1)
    kept = machine.measured()
    assert set(machine.counts) == {trial.FIRST}
    assert list(kept.seconds) == ["bf16 auto", "float32 auto"]
    assert settings(kept) == ("float32", "auto")
    assert machine.now < 10


def test_a_batch_is_never_exceeded():
    machine = Machine(bf16_auto=1e-6, float32_auto=1e-6)
    assert machine.measured(batch=3).images == 3
    assert set(machine.counts) == {3}


# ---- the real trial


def test_a_real_trial_changes_nothing_and_is_kept(own_cache, monkeypatch):
    config, said = auto(network=NOISY), []
    torch.manual_seed(7)
    random.seed(7)
    np.random.seed(7)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state(legacy=False)
    began = time.perf_counter()
    first = chosen(config, said)
    assert time.perf_counter() - began < 60  # seconds on a quiet machine
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    now = np.random.get_state(legacy=False)
    np.testing.assert_array_equal(before[2]["state"]["key"], now["state"]["key"])
    assert first.hardware.precision in ("bf16", "float32")
    assert first.trial is not None
    assert {"bf16 fused", "float32 fused"} <= set(first.trial.speeds)
    assert all(speed > 0 for speed in first.trial.speeds.values())
    assert len(said) == 1
    assert "images/s in a trial" in said[0]
    (kept,) = own_cache.glob("*.json")

    monkeypatch.setattr(trial, "_try", None)  # would fail
    assert chosen(config, said) == first
    assert len(said) == 1
    kept.write_text("{")  # damaged: tried again, which fails here
    assert chosen(config, said).trial is None
    assert "the trial failed, TypeError" in said[1]


def key_of(config):
    return trial._path(trial._subject(config), images_of(config)).name


def test_the_arms_of_a_study_share_a_trial_and_other_work_does_not(monkeypatch):
    plain = auto()
    arms = [
        auto(network=NOISY),
        auto(network={**NOISY, "noise": {"kind": "gaussian", "rate": 0.1, "position": "after_bn"}}),
        auto(norm={"kind": "group"}),
        auto(optimizer={"name": "adamw"}, epochs=9, measure={"every": 0}),
    ]
    assert {key_of(config) for config in arms} == {key_of(plain)}
    written = {"name": "preresnet", "depth": 8, "block": "bn relu conv3x3 noise bn relu conv3x3"}
    with_noise = {**written, "noise": {"kind": "dropout", "rate": 0.5}}
    bare = {**written, "block": "bn relu conv3x3 bn relu conv3x3"}
    assert key_of(auto(network=with_noise)) == key_of(auto(network=bare))
    others = [
        auto(network={"name": "preresnet", "depth": 14}),
        auto(data={**plain.data.model_dump(), "batch_size": 32}),
        auto(data={**plain.data.model_dump(), "target": "angle"}),
    ]
    keys = {key_of(config) for config in [plain, *others]}
    assert len(keys) == 4
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    keys.add(key_of(plain))
    monkeypatch.setattr(trial.kernels, "machine", lambda: ["another processor"])
    keys.add(key_of(plain))
    monkeypatch.setattr(torch, "__version__", "9.9")
    keys.add(key_of(plain))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    keys.add(key_of(plain))
    assert len(keys) == 8


def test_a_failed_trial_is_one_line_and_the_default(own_cache, monkeypatch):
    def fail(*_):
        raise RuntimeError("out of memory\nand more")

    monkeypatch.setattr(trial, "measure", fail)
    said = []
    choice = chosen(auto(), said)
    assert (choice.hardware.precision, choice.hardware.step, choice.trial) == ("bf16", "auto", None)
    assert said == [
        "warning: hardware.precision: auto: the trial failed, RuntimeError: out of memory; "
        "using bf16"
    ]
    assert not list(own_cache.glob("*.json"))


def test_who_waited_for_another_process_uses_its_trial(own_cache, monkeypatch):
    """Of a sweep's runs one tries, and the others wait for it."""
    theirs, config = trial_of(bf16_auto=[2.0] * 5, float32_auto=[1.0] * 5), auto()

    @contextmanager
    def locked(folder, seconds):
        assert folder == own_cache
        (folder / key_of(config)).write_text(theirs.model_dump_json())
        yield

    monkeypatch.setattr(trial, "locked", locked)
    monkeypatch.setattr(trial, "_try", None)
    said = []
    assert chosen(config, said).hardware.precision == "float32"
    assert said == []


def test_a_precision_in_the_config_or_the_environment_needs_no_trial(monkeypatch):
    monkeypatch.setattr(trial, "_try", None)
    explicit = make_config()
    assert chosen(explicit).hardware == explicit.hardware
    monkeypatch.setenv(PINNED, "float32")
    assert chosen(auto()).hardware.precision == "float32"
    monkeypatch.setenv(PINNED, "bfloat16")
    with pytest.raises(ConfigError, match=r"VSHIFT_PRECISION=bfloat16: allowed: bf16 or float32"):
        chosen(auto())


# ---- runs


def keep(config, **seconds):
    path = trial._path(trial._subject(config), images_of(config))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(trial_of(**seconds).model_dump_json())


FASTER = {"bf16_auto": [2.0] * 5, "float32_auto": [1.0] * 5, "float32_eager": [0.5] * 5}


def train(config, runs):
    train_seeds(config, runs, False, Reporter(quiet=True))
    return RunFolder(runs / config.name / "seed-0")


def weights(folder):
    return folder.load_checkpoint()["model"]


@pytest.mark.parametrize("noise", [None, NOISE])
def test_the_recorded_settings_train_the_same_bits(noise, tmp_path):
    network = {"name": "preresnet", "depth": 8, "noise": noise}
    config = auto(network=network, epochs=1)
    keep(config, bf16_eager=[2.0] * 5, **FASTER)
    folder = train(config, tmp_path / "auto")
    run = folder.run
    assert {key: run[key] for key in ("precision", "precision_asked", "step", "step_asked")} == {
        "precision": "float32", "precision_asked": "auto", "step": "fused", "step_asked": "auto",
    }  # fmt: skip
    assert run["trial"] == {
        "bf16 fused": 32.0, "float32 fused": 64.0, "float32 eager": 128.0, "bf16 eager": 32.0,
    }  # fmt: skip
    saved = load_config(folder.path / "config.yaml")
    assert saved.hardware.precision == "float32"
    recorded = {**AUTO, "precision": "float32", "step": "fused"}
    by_hand = train(config.model_copy(update={"hardware": saved.hardware.model_validate(recorded)}),
                    tmp_path / "by-hand")  # fmt: skip
    from_file = train(saved, tmp_path / "from-file")
    for again in (by_hand, from_file):
        for name, tensor in weights(folder).items():
            assert torch.equal(tensor, weights(again)[name]), name
        assert again.run["step"] == "fused"


def test_a_run_resumes_as_it_began_though_the_cache_now_says_otherwise(tmp_path):
    config = auto(epochs=2)
    keep(config, bf16_eager=[2.0] * 5, **FASTER)
    whole = train(config, tmp_path / "whole")
    folder = train(config.model_copy(update={"epochs": 1}), tmp_path / "cut")
    # As a run of two epochs that was stopped after one.
    path = folder.path / "config.yaml"
    path.write_text(path.read_text().replace("epochs: 1\n", "epochs: 2\n"))
    folder.update_run(status="interrupted")
    (folder.path / "summary.json").unlink()
    keep(config, bf16_auto=[1.0] * 5, float32_auto=[2.0] * 5)
    again = train(config, tmp_path / "cut")
    assert (again.run["precision"], again.run["step"]) == ("float32", "fused")
    assert again.run["resumes"] == 1
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(again)[name]), name
    # A run of a version before `auto` had bf16 in its config.yaml; it is the run of this config.
    path.write_text(path.read_text().replace("precision: float32", "precision: bf16"))
    assert train(config, tmp_path / "cut").status == "done"


def test_a_run_that_resumes_on_another_device_names_both(tmp_path, capsys):
    """As if its first epoch had been trained on a GPU, whose step does not work here."""
    config = auto(epochs=1)
    keep(config, bf16_eager=[2.0] * 5, **FASTER)
    folder = train(config, tmp_path)
    path = folder.path / "config.yaml"
    path.write_text(path.read_text().replace("epochs: 1\n", "epochs: 2\n"))
    here = folder.run["device"]
    folder.update_run(status="interrupted", device="cuda: NVIDIA H200", step="captured")
    (folder.path / "summary.json").unlink()
    train_seeds(config.model_copy(update={"epochs": 2}), tmp_path, False, Reporter())
    again = RunFolder(folder.path)
    assert again.status == "done"
    assert again.run["device"] == f"cuda: NVIDIA H200, then {here}"
    assert again.run["step"] == "fused"
    said = capsys.readouterr().err
    assert f"began on cuda: NVIDIA H200, resumes on {here}: other last bits than there" in said
    assert "began with the captured step, which does not work here" in said
