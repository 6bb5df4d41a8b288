"""CPU quotas of containers, from folders as both versions of control groups have them."""

import os

import pytest

from saghog_jax.input_pipeline.processes import workers
from saghog_jax.input_pipeline.processes.quota import cpu_quota


def write(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        # Version 2, as docker --cpus=1.5 shows it inside of the container.
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        # The smallest quota of the group and those above it counts.
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "200000 100000\n"}, 2.0),
        ("0::/a/b\n", {"a/b/cpu.max": "50000 100000\n", "a/cpu.max": "200000 100000\n"}, 0.5),
        # The path of the host, of which the container sees its own group alone.
        ("0::/kubepods/pod1/x\n", {"cpu.max": "300000 100000\n"}, 3.0),
        ("0::/../../x\n", {"cpu.max": "300000 100000\n"}, 3.0),
        # Version 1.
        (
            "4:memory:/x\n2:cpu,cpuacct:/x\n",
            {
                "cpu,cpuacct/x/cpu.cfs_quota_us": "250000\n",
                "cpu,cpuacct/x/cpu.cfs_period_us": "100000\n",
            },
            2.5,
        ),
        (
            "2:cpuacct,cpu:/docker/1\n0::/\n",
            {"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "50000\n"},
            2.0,
        ),
        (
            "1:cpu:/\n",
            {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
            None,
        ),
        # Another controller, and files that cannot be read as numbers.
        ("1:cpuset:/\n", {"cpuset/cpu.cfs_quota_us": "1\n"}, None),
        ("0::/\n", {"cpu.max": "nonsense\n"}, None),
    ],
)
def test_quotas_of_both_versions(tmp_path, groups, files, cores):
    write(tmp_path / "mount", files)
    (tmp_path / "groups").write_text(groups)
    assert cpu_quota(tmp_path / "groups", tmp_path / "mount") == cores


def test_no_control_groups(tmp_path):
    assert cpu_quota(tmp_path / "none", tmp_path) is None


@pytest.mark.parametrize(("quota", "cores"), [(None, 8), (0.5, 1), (1.5, 2), (3.0, 3), (64.0, 8)])
def test_usable_cores_count_the_quota(monkeypatch, quota, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setattr(workers, "cpu_quota", lambda: quota)
    assert workers.usable_cores() == cores
