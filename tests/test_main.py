"""The start of the command: how many cores there are, how threads wait, and which packages are missing."""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fer_nb.__main__ import missing_package, set_threads, start, usable_cores

WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}


def group(root: Path, version: int, quota: str, period: str = "100000") -> Path:
    "A group's files as Linux shows them."
    if version == 2:
        (root / "cpu.max").write_text(f"{quota} {period}\n")
    else:
        (root / "cpu").mkdir()
        (root / "cpu/cpu.cfs_quota_us").write_text(f"{quota}\n")
        (root / "cpu/cpu.cfs_period_us").write_text(f"{period}\n")
    return root


@pytest.mark.parametrize("version, quota, cores", [(2, "200000", 2), (2, "150000", 2), (2, "10000", 1), (2, "max", 64), (2, "9900000", 64),
                                                   (1, "200000", 2), (1, "-1", 64), (1, "none", 64)])
def test_a_containers_quota_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int, quota: str, cores: int) -> None:
    "Two of 64 cores are two, whichever version of the groups says so; without a quota all that the affinity allows."
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    assert usable_cores(group(tmp_path, version, quota)) == cores
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3}, raising=False)
    assert usable_cores(tmp_path) == 1


def test_a_quota_without_a_period_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    assert usable_cores(group(tmp_path, 2, "200000", "0")) == 64
    (tmp_path / "cpu.max").unlink()
    assert usable_cores(group(tmp_path, 1, "200000", "0")) == 64


def test_affinity_counts_where_there_are_no_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 5, 6}, raising=False)
    assert usable_cores(tmp_path / "none") == 3
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert usable_cores(tmp_path / "none") == (os.cpu_count() or 1)


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    for given, expected in (({}, WAITING | {"OMP_NUM_THREADS": "2"}), ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE", "OMP_NUM_THREADS": "2"}),
                            ({"GOMP_SPINCOUNT": "9"}, WAITING | {"GOMP_SPINCOUNT": "9", "OMP_NUM_THREADS": "2"}),
                            ({"OMP_NUM_THREADS": "7"}, WAITING | {"OMP_NUM_THREADS": "7"})):
        set_threads(env := dict(given), cores=2)
        assert env == expected
    set_threads(env := {}, cores=64)
    assert env == WAITING  # all cores: PyTorch counts them itself


def test_the_command_sets_threads_before_pytorch_is_loaded(tmp_path: Path) -> None:
    "Within the command: the variables are there, and PyTorch has as many threads as they say."
    code = ("import os, sys; import fer_nb.cli as cli, fer_nb.__main__ as m; m.usable_cores = lambda: 1; early = 'torch' in sys.modules\n"
            "def main(argv): import torch; print(early, os.environ['OMP_WAIT_POLICY'], os.environ.get('OMP_NUM_THREADS'), torch.get_num_threads()); return 0\n"
            "cli.main = main; m.start(['demo'])")
    env = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", *WAITING)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=env)
    threads = "1 1" if (os.cpu_count() or 1) > 1 else "None 1"
    assert done.stdout.split() == ["False", "PASSIVE", *threads.split()], done.stderr


def test_a_bug_is_not_called_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    from fer_nb import cli

    def main(argv: list[str]) -> int:
        raise ModuleNotFoundError("No module named 'fer_nb.gone'", name="fer_nb.gone")

    monkeypatch.setattr(cli, "main", main)
    with pytest.raises(ModuleNotFoundError):
        start(["demo"])
    assert "the package timm is not installed" in missing_package("timm.models")
