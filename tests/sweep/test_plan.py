"""Which runs a sweep has, and which of them are a shard's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.configs import spelled
from vshift.errors import ConfigError, VShiftError
from vshift.sweep.plan import plan, shard

jobs_and_parts = st.tuples(st.lists(st.integers(), max_size=60, unique=True), st.integers(1, 70))


@given(jobs_and_parts)
def test_shards_are_disjoint_complete_and_even(drawn):
    jobs, count = drawn
    parts = [shard(jobs, f"{i}/{count}") for i in range(1, count + 1)]
    assert sorted(job for part in parts for job in part) == sorted(jobs)
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_a_shard_takes_every_nth_run_so_that_seeds_spread():
    assert shard("abcdefg", "2/3") == ["b", "e"]
    assert shard("ab", "1/1") == ["a", "b"]


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2", "1/2/3", "", "1\n/2"])
def test_malformed_shards_say_what_to_write(text):
    with pytest.raises(VShiftError, match="write i/n with 1 ≤ i ≤ n") as error:
        shard([1, 2], text)
    assert error.value.exit_code == 2
    assert "\n" not in str(error.value)


def test_the_plan_is_the_same_each_time_and_holds_zips_grids_and_seeds(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(
        "data: {name: shapes}\nnetwork: {name: mlp}\nepochs: 1\nseeds: [0, 1]\n"
        "grid: {norm.momentum: [0.1, 0.2]}\nzip: {epochs: [1, 2], data.batch_size: [32, 64]}\n"
    )
    labels = [job.label for job in plan([path], [])]
    assert labels == [job.label for job in plan([path], [])]
    assert len(labels) == 8
    assert labels[0] == "a-epochs=1-batch_size=32-momentum=0.1 seed 0"
    words = spelled(plan([path], [])[0].point)
    assert {"zip=null", "grid=null", "data.batch_size=32"} <= set(words)


def test_problems_of_all_configs_come_together(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.yaml").write_text("epochs: 0\n")
    with pytest.raises(ConfigError) as error:
        plan([tmp_path], [])
    assert {line.split(":")[0].rpartition("/")[2] for line in error.value.problems} == {
        "a.yaml", "b.yaml"
    }  # fmt: skip


SMALL = "name: small\ndata: {name: shapes}\nnetwork: {name: mlp}\nepochs: 1\n"


def test_a_folders_bases_are_no_runs(tmp_path):
    (tmp_path / "base.yaml").write_text("is_base: true\nepochs: 1\n")
    with pytest.raises(ConfigError, match="in this folder is a base of others only"):
        plan([tmp_path], [])
    (tmp_path / "a.yaml").write_text(SMALL)
    assert [job.config.name for job in plan([tmp_path], [])] == ["small"]
    with pytest.raises(ConfigError, match="is not run by itself"):
        plan([tmp_path / "base.yaml"], [])


def test_a_run_that_two_studies_share_is_one_job(tmp_path):
    (tmp_path / "a.yaml").write_text(SMALL + "arms: {none: {}, low: {norm.eps: 1e-3}}\n")
    (tmp_path / "b.yaml").write_text(SMALL + "arms: {none: {}, high: {norm.eps: 1}}\n")
    names = [job.config.name for job in plan([tmp_path], [])]
    assert names == ["small-none", "small-low", "small-high"]
