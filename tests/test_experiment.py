"""The engine of the studies: cells made once, resumed exactly, counted, compared in pairs."""
import subprocess
import sys
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fer_nb.compare import holm
from fer_nb.config import Fit, Preset
from fer_nb.core import ConfigError, DataError
from fer_nb.experiment import (HELD_OUT, STUDIES, Study, cell_name, comparisons, grid, paired_differences, reported, study, with_options)
from fer_nb.store import Store, StoreError


def run_of(made=None, last=None):
    "A run that counts itself and may be killed."
    made = [] if made is None else made

    def run(arm, seed, *fold):
        if len(made) == last:
            raise KeyboardInterrupt
        made.append((arm, seed, *fold))
        values = np.random.default_rng([seed, len(str(arm)), *fold]).normal(size=3) / 7
        return pd.DataFrame({"split": ["valid", "valid", "holdout"], "subset": "all", "value": [*values[:2], values[2]],
                             "metric": ["accuracy", "f1:sad", "accuracy"], "n": [9, 9, 4]})
    return run


@pytest.mark.parametrize("arms", [("0010", "0020"), ("1e-3", "1e-4"), ("1", "01"), ("NA", "nan")])
def test_what_is_compared_is_counted_by_the_names_given(arms, tmp_path):
    for seeds in ([0], [0, 1]):
        grid(run_of(), arms, seeds, tmp_path)
    assert sorted(comparisons(tmp_path).arm) == sorted(arms)


def test_cells_come_seed_by_seed_with_their_names():
    made = []
    table = grid(run_of(made), ["a", "b"], (0, 5))
    assert made == [("a", 0), ("b", 0), ("a", 5), ("b", 5)] and len(table) == 12
    assert list(table.columns[-2:]) == ["arm", "seed"] and table.arm.tolist()[::3] == ["a", "b", "a", "b"]
    folded = grid(run_of(made), [("new", True), ("old", False)], (1,), over=("weights", "votes"), folds=range(2))
    assert made[4:] == [(("new", True), 1, 0), (("new", True), 1, 1), (("old", False), 1, 0), (("old", False), 1, 1)]
    assert folded[["weights", "votes", "seed", "fold"]].drop_duplicates().values.tolist() == [
        ["new", True, 1, 0], ["new", True, 1, 1], ["old", False, 1, 0], ["old", False, 1, 1]]


@pytest.mark.parametrize("arms, seeds, says", [((), (0,), "0 arms"), (("a",), (), "0 seeds"), ({}, (), "0 arms and 0 seeds")])
def test_nothing_to_run_is_refused(arms, seeds, says):
    with pytest.raises(ConfigError, match=says):
        grid(run_of(), arms, seeds)


@pytest.mark.parametrize("arms, seeds", [(["+ flip", "- flip"], [0]), (["a"], [0, 0])])
def test_cells_of_one_name_are_refused_before_the_first_runs(arms, seeds, tmp_path):
    ran = []
    with pytest.raises(ConfigError, match="each seed once"):
        grid(lambda *cell: ran.append(cell), arms, seeds, tmp_path)
    assert not ran and cell_name("表情", 0) == "表情-0" and cell_name("w/o_SQS") == "w-o-sqs"


def test_rows_that_are_no_pairs_are_refused_by_name():
    runs = pd.DataFrame([(arm, seed, eps, .5) for arm in "ab" for seed in (0, 1) for eps in (1, 2)], columns=["arm", "seed", "eps", "value"])
    with pytest.raises(ConfigError, match="rows of one eps expected"):
        paired_differences(runs, {"x": ("a", "b")})
    with pytest.raises(DataError, match="nowhere"):
        reported(runs.assign(metric="accuracy"), nowhere=1)


def test_runs_that_share_training_images_have_wider_intervals():
    runs = pd.DataFrame([(arm, k, v) for arm, vs in (("a", (.5, .6, .7)), ("b", (.4, .55, .5))) for k, v in enumerate(vs)], columns=["arm", "fold", "value"])
    plain, folds = (paired_differences(runs, {"x": ("a", "b")}, by="fold", rho=rho).iloc[0] for rho in (0, 1 / 2))
    assert (folds.high - folds.low) / (plain.high - plain.low) == pytest.approx(((1 / 3 + 1 / 2) / (1 / 3)) ** .5) and folds.p > plain.p


@pytest.mark.parametrize("last", range(6))
def test_a_grid_goes_on_where_it_was_killed_to_the_last_bit(tmp_path, last):
    whole = grid(run_of(), ["a", "bb", "c c"], (0, 1))
    with pytest.raises(KeyboardInterrupt):
        grid(run_of([], last), ["a", "bb", "c c"], (0, 1), tmp_path)
    made = []
    again = grid(run_of(made), ["a", "bb", "c c"], (0, 1), tmp_path)
    assert len(made) == 6 - last
    pd.testing.assert_frame_equal(again, whole, check_exact=True)
    pd.testing.assert_frame_equal(grid(run_of([], 0), ["a", "bb", "c c"], (0, 1), tmp_path), whole, check_exact=True)


@dataclass(frozen=True)
class Setting:
    lr: float = 0.1
    names: tuple = ("x",)


def test_cells_of_other_settings_are_refused(tmp_path):
    store = Store(tmp_path, {"data": "these"})
    grid(run_of(), {"a": Setting()}, (0,), store)
    grid(run_of([], 0), {"a": Setting()}, (0,), store)  # as it was
    with pytest.raises(StoreError, match=r"a-0.csv.*arm_settings.lr is 0.1 there and 0.2 here"):
        grid(run_of(), {"a": Setting(0.2)}, (0,), store)
    with pytest.raises(StoreError, match="arm is 'w/o a' there and 'w o a' here"):  # the same file name
        grid(run_of(), ["w/o a"], (0,), store)
        grid(run_of(), ["w o a"], (0,), store)
    with pytest.raises(StoreError, match="data is 'these' there"):
        grid(run_of(), ["a"], (0,), Store(tmp_path, {"data": "others"}))


def test_every_arm_that_is_compared_is_counted_once(tmp_path):
    grid(run_of(), ["a", "b"], (0, 1), tmp_path)
    grid(run_of(), ["a", "c"], (0,), tmp_path)
    grid(run_of(), [1, 2], (0,), Store(tmp_path).part("inner"), over="teachers")
    table = comparisons(tmp_path)
    assert table.values.tolist() == [[".", "a", "valid", "accuracy"], [".", "b", "valid", "accuracy"],
                                     [".", "c", "valid", "accuracy"], ["inner", "1", "valid", "accuracy"],
                                     ["inner", "2", "valid", "accuracy"]]
    assert len(comparisons(tmp_path / "nothing")) == 0


def test_what_was_seen_is_counted_where_a_study_stops_and_where_a_fit_leaves_two_networks(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        grid(run_of([], 2), ["a", "b", "c"], (0,), tmp_path)
    assert comparisons(tmp_path).arm.tolist() == ["a", "b"]
    both = lambda arm, seed: pd.concat([run_of()(arm, seed).assign(chosen=c) for c in ("clean", "robust")])  # noqa: E731
    grid(both, ["a", "b"], (0,), tmp_path / "two")
    assert comparisons(tmp_path / "two").arm.tolist() == ["a, clean", "a, robust", "b, clean", "b, robust"]
    for empty in ("", None, np.nan):   # read back, empty text is NaN
        for _ in range(2):
            grid(lambda arm, seed, e=empty: run_of()(arm, seed)[:2].assign(metric="accuracy", chosen=e, model=["net", e]), ["a"], (0,), tmp_path / f"-{empty}")
        assert comparisons(tmp_path / f"-{empty}").arm.tolist() == ["a, net, ", "a, , "]


def test_progress_says_which_how_many_and_how_long(tmp_path):
    lines = []
    grid(run_of(), ["a", "b"], (0,), tmp_path, say=lines.append)
    grid(run_of(), ["a", "b"], (0, 3), tmp_path, say=lines.append, folds=())
    assert lines[0] == "a, seed 0 (1 of 2)" and lines[1].startswith("b, seed 0 (2 of 2, 0:00:0")
    assert lines[2] == "a, seed 3 (1 of 2)" and len(lines) == 4


def test_a_checkpoint_goes_when_its_cell_is_stored(tmp_path):
    store = Store(tmp_path)

    def run(arm, seed):
        file = store.checkpoint(arm, seed)
        file.parent.mkdir()
        file.write_text("half")
        if arm == "b":
            raise KeyboardInterrupt
        return pd.DataFrame({"metric": ["accuracy"], "value": [1.0]})
    with pytest.raises(KeyboardInterrupt):
        grid(run, ["a", "b"], (0,), store)
    assert [p.parent.name for p in tmp_path.rglob("*.ckpt")] == ["b-0.work"]


def made_up(values, **more):
    return pd.DataFrame([{"arm": a, "seed": s, "split": "test", "subset": "all", "metric": "accuracy", "value": v, "n": 50} | more
                         for (a, s), v in values.items()])


def test_differences_are_scipys_paired_intervals_and_one_holm_family():
    rng = np.random.default_rng(0)
    lucky = rng.normal(0, .1, 6)
    runs = made_up({(a, s): .5 + lucky[s] + g + rng.normal(0, .01) for a, g in zip("abc", (0, .02, .05)) for s in range(6)})
    table = paired_differences(runs.sample(frac=1, random_state=0), {"b": ("b", "a"), "c": ("c", "a"), "c-b": ("c", "b")})
    wide = 100 * runs.pivot(index="seed", columns="arm", values="value")
    for name, (x, y) in {"b": "ba", "c": "ca", "c-b": "cb"}.items():
        test = stats.ttest_rel(wide[x], wide[y])
        row, interval = table.loc[name], test.confidence_interval()
        assert (row.difference, row.low, row.high, row.p) == pytest.approx(((wide[x] - wide[y]).mean(), *interval, test.pvalue))
    assert table.p_holm.tolist() == pytest.approx(holm(table.p.to_numpy()).tolist()) and (table.n == 6).all()


def test_what_cannot_be_paired_is_refused():
    runs = made_up({(a, s): .5 + s / 9 for a in "ab" for s in range(3)})
    with pytest.raises(ConfigError, match="the same runs of 'a' and 'z' expected, there are runs of a, b"):
        paired_differences(runs, {"x": ("a", "z")})
    with pytest.raises(ConfigError, match=r"seed \[2\] of one arm only"):
        paired_differences(runs[:-1], {"x": ("a", "b")})
    with pytest.raises(ConfigError, match="numbers of test images"):
        paired_differences(runs.assign(n=[50] * 5 + [40]), {"x": ("a", "b")})
    one = paired_differences(runs[runs.seed == 1], {"x": ("a", "b")}).iloc[0]
    assert one.difference == 0 and np.isnan([one.low, one.high, one.p, one.p_holm]).all() and one.n == 1


@pytest.mark.parametrize("old", HELD_OUT)
def test_what_selected_is_never_reported(old):
    runs = pd.concat([made_up({("a", 0): .5}), made_up({("a", 0): .9}, split=old)])
    assert reported(runs).value.tolist() == [.5] and reported(runs, split="test", arm="a").value.tolist() == [.5]
    with pytest.raises(DataError, match=f"split='{old}'; here .*split: test"):
        reported(runs, split=old)
    with pytest.raises(DataError, match="metric='loss'.*metric: accuracy"):
        reported(runs, "loss")


def test_a_study_is_known_by_its_name_and_stays_a_function(monkeypatch):
    monkeypatch.setitem(STUDIES, "toy", Study("nothing", "experiment", {"--n": {}}, votes="for fun"))

    @study("toy", lambda ds, out, args: {"ds": ds}, str)
    def toy(ds, out=None, say=print):
        return ds

    found = STUDIES["toy"].load()
    assert found.run is toy and toy(3) == 3 and (found.file, found.votes) == ("{what}.csv", "for fun")
    assert found.show(found.run(**found.call(7, Path(), None))) == "7"


def test_options_change_settings(tmp_path):
    args = Namespace(epochs=None, config=None, set=[])
    assert with_options(preset := Preset(), args) is preset and with_options(fit := Fit(), args) is fit
    (tmp_path / "a.json").write_text('{"student": {"epochs": 3}}')
    both = Namespace(epochs=None, config=tmp_path / "a.json", set=["student.lr=0.5"])
    assert with_options(Preset(student=Fit(bs=7)), both) == Preset(student=Fit(epochs=3, lr=0.5))
    with pytest.raises(ConfigError, match="student.depth"):
        with_options(preset, Namespace(epochs=2, config=None, set=["student.depth=3"]))


def test_names_of_cells_are_names_of_files():
    assert cell_name("EfficientNet-Lite0 & small Swin", 3) == "efficientnet-lite0-small-swin-3"
    assert cell_name("tau = 0.1", 0, 2) == "tau-0.1-0-2"


def test_every_study_is_bound_in_a_fresh_process():
    "The command loads a study's module itself; nothing else has imported it before."
    code = ("from fer_nb.experiment import STUDIES\n"
            "for name, study in STUDIES.items(): loaded = study.load(); assert loaded.run and loaded.call and loaded.show, name")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]


def test_a_cost_names_the_device_that_computed(tmp_path, monkeypatch):
    """On a machine with cards: the CPU where it was asked for, else the card that was."""
    import torch

    from fer_nb import experiment, launch
    asked, real = [], launch.pick_device

    def pick(device=None):
        device = launch.on_machine().device if device is None else device
        return torch.device(device) if "cuda" in str(device) else real(device)

    for module in (launch, experiment):
        monkeypatch.setattr(module, "pick_device", pick)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: f"card {torch.device(device or 'cuda:0').index}")
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device=None: asked.append(str(device)))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device=None: 10**9 * (1 + torch.device(device or "cuda:0").index))
    for device in ("cpu", "cuda:1"):
        with launch.machine(device=device), experiment.measured_cost(tmp_path / f"{device[:3]}.cost.csv", arm=device):
            pass
    costs = experiment.training_costs(tmp_path).set_index("arm")
    assert costs.device.to_dict() == {"cpu": "cpu", "cuda:1": "card 1"} and asked == ["cuda:1"]
    assert np.isnan(costs.gpu_gb["cpu"]) and costs.gpu_gb["cuda:1"] == pytest.approx(2)


def test_a_fit_that_was_taken_over_costs_once(tmp_path):
    from fer_nb.experiment import measured_cost, training_costs
    (tmp_path / "later").mkdir()
    for arm in ("a", "b"):
        with measured_cost(tmp_path / f"{arm}.cost.csv", arm=arm):
            pass
    (tmp_path / "later/as-it-is.cost.csv").write_bytes((tmp_path / "a.cost.csv").read_bytes())   # as earlier versions did
    assert training_costs(tmp_path).arm.tolist() == ["a", "b"]


def test_a_cell_of_another_file_of_weights_is_refused(tmp_path):
    (file := tmp_path / "w.safetensors").write_bytes(b"first")
    for seeds in ([0], [0, 1]):
        grid(run_of(), {"a": Fit(str(file))}, seeds, tmp_path / "s")
    file.write_bytes(b"second")
    with pytest.raises(StoreError, match=r"a-0\.csv: of something else: arm_settings\.sha256"):
        grid(run_of(), {"a": Fit(str(file))}, [0, 1, 2], tmp_path / "s")
