"""SQSNet's tables and the bridge: protocols without a look at the report, resumable studies, tables that are the runs' figures."""
import json
import shlex
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import fer_nb.sqs_studies as rooms
from fer_nb.config import PRESETS, Adversarial, Augment, Data, Distillation, Evaluation, Fit, Preset, Quads, override
from fer_nb.core import ConfigError, DataError
from fer_nb.data import FERData
from fer_nb.evidence import EVIDENCE
from fer_nb.experiment import cell_name, comparisons
from fer_nb.models import HYFER, SQSNET, HyFERConfig, SQSNet, SQSNetConfig, create_teacher
from fer_nb.reconcile import read_paper
from fer_nb.sqs import SQS, QuadLoader
from fer_nb.sqs_studies import (ABLATION, ARCHITECTURES, BRIDGE, BRIDGE_ARMS, CONTROLS, LIGHT_ARCHITECTURES, PAPER_SQS,
                                PAPER_SQS_TABLE4, SQS_PRESETS, TABLE4_VALUES, Arm, accuracy_table, bridge_study,
                                bridge_table, confusion_of, efficiency_table, metrics_table, sensitivity_table,
                                significance_table, sqs_fit, sqs_parts, sqs_study, study_arms)
from fer_nb.store import StoreError, read_table, write_table
from fer_nb.synth import make_faces

ROOT = Path(__file__).resolve().parents[1]
PAPERS = ROOT / "results/papers"
TOY = Preset(Data(targets=None, near_duplicates=False), quads=Quads(), adversarial=None, evaluation=Evaluation(tta="five"),
             student=Fit("toy", None, False, epochs=1, bs=16, lr=3e-3, wd=1e-5, mix=0.4, cut=0.5, schedule="warm_restarts",
                         restart_epochs=2, augment=Augment(erase=0.5, erase_size=(0.14, 0.57))))
STUDENT = replace(BRIDGE, student=Fit("small", epochs=1, bs=16), distillation=Distillation(views=1))


@pytest.fixture(scope="module", autouse=True)
def small_networks():
    "Two networks of this file's own, by name, as long as its tests run."
    SQSNET["toy"] = SQSNetConfig("test_efficientnet", "swin_tiny_patch4_window7_224", 32, 48, "residual", 2, {"output_stride": 8},
                                 {"embed_dim": 24, "depths": [1, 1], "num_heads": [2, 4], "window_size": 3})
    HYFER["small"] = HyFERConfig(stem=8, blocks=((16, 2, 2), (24, 2, 2)), dim=32, depth=1, patch=1, proj=64, light=True, act="relu",
                                 input_size=48)
    yield
    del SQSNET["toy"], HYFER["small"]


def changed(**fit):
    "TOY with another fit."
    return replace(TOY, student=replace(TOY.student, **fit))


@pytest.fixture(scope="module")
def faces():
    return make_faces(240, seed=0, size=48, splits=(.6, .2, .2), defects=None, balance="uniform")[0]


def with_duplicates(ds):
    "The first image of each split is put into each other split too, as the last one there."
    images, df = ds.array().copy(), ds.df
    for source, target, at in (("train", "test", -1), ("valid", "test", -2), ("train", "valid", -1)):
        a, b = np.flatnonzero(df.split == source)[0], np.flatnonzero(df.split == target)[at]
        images[b] = images[a]
    return FERData(df, images, ds.labels, ds.name)


# ---------------------------------------------------------------- protocols

@pytest.mark.parametrize("protocol,splits", [("rafdb", ["train", "test"]), ("ferplus", ["train", "valid", "test"]),
                                             ("affectnet", ["train", "valid"])])
def test_the_splits_say_which_protocol(faces, protocol, splits):
    ds = faces.where(split=splits)
    splits, named = sqs_parts(ds, TOY), sqs_parts(ds, TOY, protocol)
    for a, b in ((splits.train, named.train), (splits.valid, named.valid), (splits.test, named.test)):
        assert a.df.id.tolist() == b.df.id.tolist()
    assert set(splits.test.df.split) == {"valid" if protocol == "affectnet" else "test"}
    assert (set(splits.valid.df.split) == {"valid"}) == (protocol == "ferplus")
    assert set(splits.train.df.split) == {"train"} and (splits.everything is not None) == (protocol == "rafdb")
    if protocol == "rafdb":
        assert set(splits.everything.df.id) == set(splits.train.df.id) | set(splits.valid.df.id)


@pytest.mark.parametrize("protocol", ["rafdb", "ferplus", "affectnet"])
def test_an_image_that_is_reported_chooses_nothing(faces, protocol):
    splits = sqs_parts(with_duplicates(faces), TOY, protocol)
    shown = {x.tobytes() for x in splits.test.array()}
    assert not any(x.tobytes() in shown for x in splits.valid.array())
    trained = {x.tobytes() for x in (splits.everything or splits.train).array()}
    pictures = dict(zip(splits.test.df.id, splits.test.array()))
    known = {i for i, x in pictures.items() if x.tobytes() in trained}
    assert known <= splits.duplicates and splits.duplicates


def test_more_seeds_have_the_same_images(faces):
    one, two = (sqs_parts(faces, TOY, "affectnet") for _ in range(2))
    assert one.valid.df.id.tolist() == two.valid.df.id.tolist()
    assert one.valid.df.id.tolist() != sqs_parts(faces, TOY, "affectnet", seed=1).valid.df.id.tolist()


def test_what_is_reported_changes_no_weight(faces):
    "Reported images with other pixels and other labels: the same network, to the bit."
    def fitted(ds):
        return sqs_fit(sqs_parts(ds, TOY, "rafdb"), TOY, seed=1)[0].state_dict()

    rng, images, df = np.random.default_rng(0), faces.array().copy(), faces.df.copy()
    test = (df.split == "test").to_numpy()
    images[test] = rng.integers(0, 256, images[test].shape, dtype=np.uint8)
    df.loc[test, "label"] = rng.permutation(df.label[test].to_numpy())
    a, b = fitted(faces), fitted(FERData(df, images, faces.labels, faces.name))
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("drop,protocol,says", [("valid", "ferplus", "'valid'"), ("test", "rafdb", "'test'"), ("train", None, "'train'")])
def test_a_missing_split_is_named(faces, drop, protocol, says):
    with pytest.raises(DataError, match=says):
        sqs_parts(faces.where(split=[s for s in ("train", "valid", "test") if s != drop]), TOY, protocol)


# ---------------------------------------------------------------- arms

def printed(name):
    return read_paper(PAPERS / f"sqsnet-{name}.csv")


def test_the_papers_figures_are_those_of_the_results_folder():
    for number in (1, 2, 7):
        wide = printed(f"table{number}").pivot(index="row", columns="column", values="value")
        wide = wide.T.rename(columns=lambda c: c) if number == 7 else wide
        for row, values in PAPER_SQS[number].items():
            found = wide.rename(index=lambda c: c.removesuffix(" (%)"), columns=lambda c: c.removesuffix(" (%)")).loc[row, ["RAF-DB", "FERPlus", "AffectNet"]]
            assert found.astype(float).tolist() == pytest.approx(list(values), nan_ok=True), row
        assert len(PAPER_SQS[number]) == len(wide)


def test_every_value_of_table_4_is_tried_once():
    t4 = printed("table4")
    names = dict(zip(t4.row.unique(), ("tau", "alpha", "beta", "gamma", "margin", "lam")))
    tested = t4[t4.column == "values tested"].groupby("row").value.agg(tuple)
    assert {names[row]: values for row, values in tested.items()} == TABLE4_VALUES
    wide = t4[t4.column != "values tested"].pivot(index="row", columns="column", values="value")
    columns = ["optimal", "lowest accuracy (%)", "highest accuracy (%)", "standard deviation (%)"]
    assert {names[row]: tuple(wide.loc[row, columns]) for row in wide.index} == PAPER_SQS_TABLE4
    arms = study_arms("sensitivity")
    settings = [tuple(SQS(**arm.settings).config().items()) for arm in arms.values()]
    assert len(set(settings)) == len(arms) == 22


def test_a_table_of_values_refuses_a_preset_with_others():
    "Its rows change the paper's values one at a time, and its row SQSNet stands for them."
    changed = {"tau": override(SQS_PRESETS["light"], ["quads.tau=2.0"]), "lam": replace(TOY, quads=Quads(lam=.4, learnable=True))}
    for what in ("sensitivity", "all"):
        for name, preset in changed.items():
            with pytest.raises(ConfigError, match=f"quads.{name}=.* beside table '{what}'.* expected"):
                study_arms(what, preset)
        assert study_arms(what, replace(TOY, quads=Quads(learnable=True))) == study_arms(what, TOY)
    with pytest.raises(ConfigError, match="quads.tau=2.0"):
        sqs_study(None, "sensitivity", changed["tau"], (0,), "never")
    assert study_arms("ablation", changed["tau"]) == ABLATION and not Path("never").exists()


def test_the_rows_of_the_tables():
    assert set(ARCHITECTURES) == set(PAPER_SQS[2]) and set(ABLATION) == set(PAPER_SQS[7])
    assert study_arms("architectures", "light") == LIGHT_ARCHITECTURES and study_arms("architectures", "paper") == ARCHITECTURES
    every = study_arms("all", "light")
    assert set(every) == {*ABLATION, *CONTROLS, "fusion: cross", "fusion: concat", *study_arms("sensitivity"), *LIGHT_ARCHITECTURES}
    assert set(study_arms("fusion", "paper")) == {"SQSNet", "fusion: residual", "fusion: concat"}  # its own is "cross"
    assert len({cell_name(name) for name in every}) == len(every)  # no two share a file
    paper = SQS_PRESETS["paper"]
    assert paper.student.schedule == "warm_restarts" and paper.evaluation.tta == "five" and paper.student.cut == 0.5


@pytest.mark.parametrize("name", ["EfficientNetB7", "Resnext50", "SeResnext50&ViT", "SeResnext50&Swin T"])
def test_architectures_can_be_built(name):
    arm = ARCHITECTURES[name]
    with torch.device("meta"):
        net = create_teacher(arm.network, 7, False, 224) if isinstance(arm.network, str) else SQSNet(7, arm.network)
        assert net(torch.zeros(2, 3, 224, 224)).shape == (2, 7)


@pytest.mark.parametrize("arm", [*ABLATION.values(), *CONTROLS.values(), Arm(fusion="concat"), Arm(learnable=True, settings={"tau": 0.5}),
                                 Arm("test_efficientnet", sqs=False)], ids=str)
def test_every_kind_of_arm_trains(faces, arm, monkeypatch):
    seen = []
    real = rooms.fit_model
    monkeypatch.setattr(rooms, "fit_model", lambda net, dls, *a, **k: (seen.append(type(dls.train) is QuadLoader), real(net, dls, *a, **k))[1])
    net, history, log = sqs_fit(sqs_parts(faces, TOY), TOY, arm)
    assert seen == [arm.sqs or arm.pairs] and (log is not None) == arm.sqs and len(history) == 1 and not net.training
    assert getattr(net, "enhanced", None) is None and getattr(net, "quad_weights", None) is None
    if arm.learnable:
        assert log.tau[0] != 0.5 and log.tau[0] == pytest.approx(0.5, abs=0.1)


def test_quads_take_a_network_of_timm_and_need_a_feature_map(faces):
    net, history, log = sqs_fit(sqs_parts(faces, TOY), TOY, Arm("resnet18"))
    assert len(log) == len(history) and log.sqs.gt(0).all() and getattr(net.net, "enhanced", None) is None
    with pytest.raises(ConfigError, match="global_pool"):
        sqs_fit(sqs_parts(faces, TOY), TOY, Arm("test_vit"))


def test_settings_of_sqs_reach_it(faces, monkeypatch):
    changed = replace(TOY, quads=Quads(lam=.1, margin=.3, learnable=True))
    settings, learnable = rooms._quads(changed, Arm(settings={"margin": .2}))
    assert (settings["lam"], settings["margin"], learnable) == (.1, .2, True)
    def begun(model, dls, fit, cbs, *args):
        given.extend(cbs)
        raise KeyboardInterrupt
    given = []
    monkeypatch.setattr(rooms, "fit_model", begun)
    with pytest.raises(KeyboardInterrupt):
        sqs_fit(sqs_parts(faces, TOY), changed, Arm(settings={"margin": .2}))
    assert (given[0].lam, given[0].margin) == (.1, .2)
    with pytest.raises(ConfigError, match="quads=null"):
        rooms._quads(replace(TOY, quads=None), Arm())


def options_of(*changes, **others):
    "What the command of a study of SQSNet was given."
    return Namespace(**dict(set=list(changes), epochs=None, preset="light", tta=None, config=None, votes=None, part=1, seeds=1) | others)


@pytest.mark.parametrize("change, says", [
    ("data.clean=true", "data.clean=false"), ("data.clean=leaks", "data.clean=false"), ("data.targets=median", "data.targets=null"),
    ("data.targets=300", "data.targets=null"), ("data.held=parts.csv", "data.held=null"), ("distillation.tau=0.2", "distillation={}"),
    ("evaluation.n=10", "evaluation.n=1000"), ("evaluation.seeds=7", "evaluation.seeds=3 expected.*--seeds")])
def test_a_setting_that_nothing_is_done_with_is_refused(faces, change, says):
    with pytest.raises(ConfigError, match=f"^{change.split('=')[0].split('.')[0]}.* no use .*{says}"):
        rooms._sqs_arguments(faces, Path("never"), options_of("student.bs=16", change))


@pytest.mark.parametrize("change, says", [("teachers=[{network: resnet18}]", r"teachers=\[\]"), ("adversarial.eps=0.1", "adversarial=null"),
                                          ("data.folds=5", "data.folds=null")])
def test_what_a_preset_with_seeds_refuses_is_refused_without_them_too(faces, tmp_path, change, says):
    with pytest.raises(ConfigError, match="without them expected"):
        rooms._sqs_arguments(faces, Path("never"), options_of(change))
    (file := tmp_path / "own.yaml").write_text("student: {network: toy}\nquads: {}\nadversarial: null\n")
    with pytest.raises(ConfigError, match=f"no use .*{says}"):
        rooms._sqs_arguments(faces, Path("never"), options_of(change, config=file))


def test_the_same_without_a_command(faces):
    for wrong in (replace(TOY, data=Data(targets="max")), replace(TOY, teachers=(Fit("resnet18"),), student=replace(TOY.student, mix=None)), replace(TOY, adversarial=Adversarial(eps=.1)),
                  replace(TOY, data=Data("leaks", targets=None))):
        for call in (lambda: sqs_study(faces, "ablation", wrong, (0,), "never"), lambda: sqs_parts(faces, wrong),
                     lambda: bridge_study(faces, wrong, STUDENT, (0,), "never")):
            with pytest.raises(ConfigError, match="no use"):
                call()
    for student in (replace(STUDENT, quads=Quads()), replace(STUDENT, data=Data(targets=None, folds=5))):
        with pytest.raises(ConfigError, match="no use"):
            bridge_study(faces, TOY, student, (0,), "never")
    assert not Path("never").exists()


def test_settings_that_are_used_are_taken(faces, tmp_path):
    "Those of the commands that made the results, those that say what is so, and files that leave out what is idle."
    words = shlex.split(f"{EVIDENCE['SQS'].command} {EVIDENCE['SQS'].tiny}")
    given = [value for flag, value in zip(words, words[1:]) if flag == "--set"]
    assert len(given) == 3
    preset = rooms._sqs_arguments(faces, tmp_path, options_of(*given, epochs=1))["preset"]
    assert (preset.student.pretrained, preset.student.bs, preset.student.epochs, preset.data.near_duplicates) == (False, 16, 1, False)
    so = ("data.clean=false", "data.targets=null", "teachers=[]", "adversarial=null", "distillation={}", "data.holdout=0.2", "data.protocol=rafdb",
          "quads.tau=2", "evaluation.tta=flip", "student.mix=0.4")
    assert rooms._sqs_arguments(faces, tmp_path, options_of(*so))["preset"].data.protocol == "rafdb"
    (file := tmp_path / "own.yaml").write_text("student: {network: toy, pretrained: false, epochs: 1, bs: 16}\nquads: {}\n")
    preset = rooms._sqs_arguments(faces, tmp_path, options_of("data.clean=false", config=file))["preset"]
    assert rooms._as_preset(preset).adversarial is None


@pytest.mark.parametrize("change", ["distillation.tau=0.2", "adversarial.eps=0.1"])
def test_the_bridge_refuses_settings_of_its_students(faces, change):
    options = Namespace(set=[change], epochs=3, preset="light", tta=None, config=None, votes=None, part=1, seeds=1)
    with pytest.raises(ConfigError, match="its SQSNet"):
        rooms._bridge_arguments(faces, Path("never"), options)
    options.set = ["data.refine=keep"]
    with pytest.raises(ConfigError, match="as they are"):
        rooms._bridge_arguments(faces, Path("never"), options)
    options.set = []
    assert rooms._bridge_arguments(faces, Path("never"), options)["student"].student.epochs == 3


def test_the_second_fit_has_all_images_and_the_chosen_length(faces, monkeypatch):
    calls, real = [], rooms.fit_model

    def watched(net, dls, fit, *args):
        calls.append((set(dls.train.ds.df.id), fit.epochs, fit.keep, fit.patience))
        history = real(net, dls, fit, *args)
        return history.assign(accuracy=[.1, .3, .2], valid_loss=1.0) if len(calls) == 1 else history

    monkeypatch.setattr(rooms, "fit_model", watched)
    splits = sqs_parts(faces, TOY, "rafdb")
    sqs_fit(splits, changed(epochs=3, patience=9))
    (first, *one), (second, *two) = calls
    assert one == [3, "best", 9] and two == [2, "last", None]
    assert first == set(splits.train.df.id) and second == set(splits.everything.df.id)


def second_fit(faces, monkeypatch, arm, best=2, **fit):
    "The loader and the settings of the fit on all images, where this epoch of the first fit of three was the best; nothing is trained."
    calls = []

    def fitted(net, dls, fit, cbs, phase, *args):
        calls.append((dls.train, fit))
        n = np.arange(1, fit.epochs + 1)
        return pd.DataFrame({"phase": phase, "epoch": n, "train_loss": 1.0, "valid_loss": 1.0, "accuracy": np.where(n == best, .9, .3)})

    monkeypatch.setattr(rooms, "fit_model", fitted)
    sqs_fit(sqs_parts(faces, TOY, "rafdb"), changed(epochs=3, **fit), arm)
    return calls


@pytest.mark.parametrize("arm", [Arm(sqs=False), Arm(sqs=False, pairs=True)], ids=["plain", "pairs"])
def test_the_second_fit_draws_classes_as_the_first(faces, monkeypatch, arm):
    (one, _), (two, _) = second_fit(faces, monkeypatch, arm, sampler="balanced")
    for loader in (one, two):
        counts = loader.ds.df.label.value_counts()
        assert loader.weights == pytest.approx((1 / counts[loader.ds.df.label]).to_numpy())
    assert len(two.ds) > len(one.ds) and type(one) is type(two)


def test_the_second_fit_shows_as_many_views_as_the_first(faces, monkeypatch):
    assert [loader.crops for loader, _ in second_fit(faces, monkeypatch, Arm(sqs=False), crops=2)] == [2, 2]


@pytest.mark.parametrize("best,keep,frozen,says", [(1, "best", 2, (1, 1)), (3, "best", 2, (3, 2)), (2, "best", None, (2, None)), (1, "last", 2, (3, 2))])
def test_the_second_fit_is_as_long_as_the_first_says(faces, monkeypatch, best, keep, frozen, says):
    _, (_, fit) = second_fit(faces, monkeypatch, Arm(sqs=False), best, keep=keep, freeze_epochs=frozen)
    assert ((fit.epochs, fit.freeze_epochs), fit.keep) == (says, "last")


@pytest.mark.parametrize("keep,reached", [("best", .9), ("last", .3)])
def test_the_hold_outs_accuracy_is_that_of_the_weights_that_are_left(faces, keep, reached):
    splits = sqs_parts(faces, TOY, "rafdb")
    history = pd.DataFrame({"phase": ["selected"] * 3 + ["all"] * 2, "epoch": [1, 2, 3, 1, 2], "accuracy": [.5, .9, .3, .99, .98]})
    net = SQSNet(7, SQSNET["toy"], pretrained=False, labels=faces.labels).eval()
    rows = rooms._results(net, splits, "none", history, keep)
    assert rows[rows.split == "holdout"].value.tolist() == [reached]


# ---------------------------------------------------------------- studies

def untrained(monkeypatch):
    "Studies that train nothing; the arms that they ask for are listed."
    asked = []
    monkeypatch.setattr(rooms, "sqs_fit", lambda splits, preset, arm, *a: (asked.append(arm), (None, pd.DataFrame({"epoch": [1]}), None))[1])
    monkeypatch.setattr(rooms, "_results", lambda *a: pd.DataFrame([("test", "all", "none", "accuracy", .5, 9)], columns=rooms._COLUMNS))
    return asked


def test_a_study_records_what_is_done_and_takes_up_a_folder_that_said_otherwise(faces, tmp_path, monkeypatch):
    "Versions before this one wrote data.clean=true, though nothing was cleaned."
    asked, arms = untrained(monkeypatch), {"SQSNet": Arm()}
    first, (file, cell) = sqs_study(faces, arms, TOY, (0,), tmp_path), (tmp_path / "identity.json", tmp_path / "sqsnet-0.csv")
    said, table = json.loads(file.read_text()), read_table(cell)
    assert said["settings"]["data"]["clean"] is False and said["settings"]["adversarial"] is None and len(asked) == 1
    said["settings"]["data"]["clean"] = True
    file.write_text(json.dumps(said))
    write_table(table, cell, table.attrs["identity"] | {"settings": said["settings"]})
    pd.testing.assert_frame_equal(sqs_study(faces, arms, TOY, (0,), tmp_path), first)
    assert len(asked) == 1 and json.loads(file.read_text()) == said
    assert len(sqs_study(faces, arms, TOY, (0, 1), tmp_path)) == 2 and len(asked) == 2  # it goes on
    with pytest.raises(StoreError, match="settings.student.wd"):
        sqs_study(faces, arms, changed(wd=0.5), (0,), tmp_path)
    file.write_text("{")
    with pytest.raises(StoreError, match="does not say"):
        sqs_study(faces, arms, TOY, (0,), tmp_path)


@pytest.mark.parametrize("name", ["paper-sqs", "cpu-sqs", "tiny-sqs", "paper-sqs-gpu"])
def test_the_presets_say_that_nothing_is_cleaned(name):
    preset = rooms._as_preset(PRESETS[name])
    assert preset.data.clean is False and preset == rooms._as_preset(replace(PRESETS[name], data=replace(PRESETS[name].data, clean=False)))
    assert replace(preset, data=PRESETS[name].data) == PRESETS[name]  # all else is as it was
    assert not any(p.data.clean for p in (*SQS_PRESETS.values(), BRIDGE)) and BRIDGE.adversarial is None


@pytest.mark.slow
def test_the_bridge_takes_up_a_folder_that_said_otherwise(faces, tmp_path):
    whole = bridge_study(faces, TOY, STUDENT, (0,), tmp_path)
    old, lines = {"teachers": rooms.to_dict(TOY), "students": rooms.to_dict(replace(STUDENT, data=Data(targets=None), adversarial=Adversarial()))}, []
    (tmp_path / "identity.json").write_text(json.dumps(json.loads((tmp_path / "identity.json").read_text()) | old))
    for file in tmp_path.glob("*-0.csv"):
        if identity := (table := read_table(file)).attrs["identity"]:
            write_table(table, file, identity | old)
    pd.testing.assert_frame_equal(bridge_study(faces, TOY, STUDENT, (0,), tmp_path, say=lines.append), whole)
    assert not lines

@pytest.mark.slow
def test_a_study_goes_on_where_it_was_broken_off(faces, tmp_path, monkeypatch):
    arms = {"SQSNet": Arm(), "w/o SQS": Arm(sqs=False)}
    whole = sqs_study(faces, arms, TOY, (0, 1), tmp_path / "whole")
    real, calls = rooms.sqs_fit, []

    def broken(*args, **kwargs):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(rooms, "sqs_fit", broken)
    with pytest.raises(KeyboardInterrupt):
        sqs_study(faces, arms, TOY, (0, 1), tmp_path / "broken")
    monkeypatch.setattr(rooms, "sqs_fit", real)
    lines = []
    again = sqs_study(faces, arms, TOY, (0, 1), tmp_path / "broken", say=lines.append)
    assert [line.split(" (")[0] for line in lines[1:]] == ["SQSNet, seed 1", "w/o SQS, seed 1"]
    assert set(comparisons(tmp_path / "broken").split) == {"test"}
    pd.testing.assert_frame_equal(again, whole, check_exact=False, rtol=1e-6)
    assert not list((tmp_path / "broken").glob("**/*.ckpt"))


def test_another_study_in_the_folder_is_refused(faces, tmp_path):
    sqs_study(faces, {"SQSNet": Arm()}, TOY, (0,), tmp_path)
    with pytest.raises(StoreError, match="settings.student.wd"):
        sqs_study(faces, {"SQSNet": Arm()}, changed(wd=0.5), (0,), tmp_path)
    with pytest.raises(StoreError, match="protocol"):
        sqs_study(faces, {"SQSNet": Arm()}, TOY, (0,), tmp_path, protocol="affectnet")
    with pytest.raises(StoreError, match="data"):
        sqs_study(faces.take(np.arange(230)), {"SQSNet": Arm()}, TOY, (0,), tmp_path)
    with pytest.raises(StoreError, match="arm_settings.fusion is None there and 'concat' here"):
        sqs_study(faces, {"SQSNet": Arm(fusion="concat")}, TOY, (0,), tmp_path)


@pytest.mark.parametrize("call,says", [(lambda ds: sqs_study(ds, "ablation", TOY, (), "never"), "seeds=0"),
                                       (lambda ds: sqs_study(ds, {}, TOY, (0,), "never"), "arms=0"),
                                       (lambda ds: sqs_study(ds, "table 9", TOY, (0,), "never"), "'table 9'"),
                                       (lambda ds: sqs_study(ds, preset="huge", out="never"), "'huge'"),
                                       (lambda ds: sqs_study(ds, preset=changed(network="huge"), out="never"), "variant='huge'"),
                                       (lambda ds: sqs_study(ds, preset=TOY, protocol="cv", out="never"), "'cv'"),
                                       (lambda ds: bridge_study(ds, TOY, STUDENT, (), "never"), "seeds=0")])
def test_bad_input_is_named(faces, call, says):
    with pytest.raises(ConfigError, match=says):
        call(faces)
    assert not Path("never").exists()


# ---------------------------------------------------------------- tables

def made_up(values, held_out=None, split="holdout"):
    "Runs from (dataset, arm, seed) -> accuracy of the reported images, and of those that chose."
    rows = [{"dataset": d, "arm": a, "seed": s, "split": "test", "subset": "all", "tta": "none", "metric": "accuracy", "value": v, "n": 50}
            for (d, a, s), v in values.items()]
    rows += [{"dataset": d, "arm": a, "seed": s, "split": split, "subset": "all", "tta": "none", "metric": "accuracy", "value": v, "n": 9}
             for (d, a, s), v in (held_out or {}).items()]
    return pd.DataFrame(rows)


def test_accuracies_of_several_datasets_stand_beside_the_papers():
    runs = made_up({("RAF-DB", "SQSNet", 0): .8, ("RAF-DB", "SQSNet", 1): .9, ("FERPlus", "SQSNet", 0): .7, ("RAF-DB", "mine", 0): .5})
    table = accuracy_table(runs, 7)
    assert table.loc["SQSNet"].tolist() == ["85.00 ± 7.07", "70.00", 91.90, 91.11]
    assert table.loc["mine", "RAF-DB"] == "50.00" and np.isnan(table.loc["mine", "paper: RAF-DB"])
    assert list(accuracy_table(runs, 1).index) == [*PAPER_SQS[1], "mine"]
    with pytest.raises(ConfigError, match="table=3"):
        accuracy_table(runs, 3)
    with pytest.raises(DataError, match="tta='five'"):
        accuracy_table(runs, tta="five")


@pytest.mark.parametrize("split", ["holdout", "select"])
def test_a_value_is_chosen_by_the_hold_out_not_by_what_is_reported(split):
    names = ["SQSNet", *(f"tau = {v}" for v in (0.1, 0.5, 2.0))]
    reported = {("RAF-DB", name, 0): v for name, v in zip(names, (.70, .74, .72, .71))}
    held_out = {("RAF-DB", name, 0): v for name, v in zip(names, (.6, .5, .4, .65))}
    runs = made_up(reported, held_out, split)
    row = sensitivity_table(runs).loc["tau"]
    assert accuracy_table(runs).loc["tau = 0.1", "RAF-DB"] == "74.00"  # no mean holds what chose
    assert row["values"] == "0.1, 0.5, 1.0, 2.0" and row.chosen == 2.0
    assert row[["lowest (%)", "highest (%)"]].tolist() == pytest.approx([70, 74])
    assert row.sd == pytest.approx(np.std([70, 74, 72, 71], ddof=1)) and row["paper: sd"] == 0.68
    with pytest.raises(DataError, match="2 datasets"):
        sensitivity_table(made_up(reported | {("FERPlus", "SQSNet", 0): .5}, held_out, split))


def test_differences_are_paired_by_seed():
    rng = np.random.default_rng(0)
    lucky = rng.normal(0, .1, 5)
    runs = made_up({("RAF-DB", a, s): .5 + lucky[s] + .02 * (a == "SQSNet") + rng.normal(0, 1e-4) for a in ("SQSNet", "w/o SQS", "w/o CNN")
                    for s in range(5)})
    table = significance_table(runs.sample(frac=1, random_state=0)).set_index("rival")
    assert table.difference.tolist() == pytest.approx([2, 2], abs=.05) and (table.p_holm < .001).all() and (table.seeds == 5).all()
    assert (table.p_holm >= table.p).all()
    with pytest.raises(ConfigError, match="runs of 'mine' and 'SQSNet' expected"):
        significance_table(runs, "mine")
    alone = made_up({("FERPlus", "SQSNet", s): .5 for s in range(2)})   # a dataset on which there is nothing to compare
    pd.testing.assert_frame_equal(significance_table(pd.concat([alone, runs])).set_index("rival"), significance_table(runs).set_index("rival"))
    with pytest.raises(ConfigError, match="datasets with a rival of SQSNet=0"):
        significance_table(alone)


def test_tables_are_the_figures_of_the_runs(faces, tmp_path):
    runs = sqs_study(faces, {"SQSNet": Arm()}, TOY, (0, 1), tmp_path)
    assert set(runs.tta) == {"none", "five"} and set(runs.dataset) == {faces.name}
    one = runs[(runs.tta == "five") & (runs.split == "test") & (runs.subset == "all")]
    row = metrics_table(runs, "five").loc[(faces.name, "SQSNet")]
    for metric, name in {"accuracy": "Accuracy", "macro_f1": "Macro-F1", "weighted_f1": "Weighted-F1", "balanced_accuracy": "Balanced Acc"}.items():
        v = 100 * one[one.metric == metric].value
        assert row[name] == f"{v.mean():.2f} ± {v.std():.2f}"
    each = 100 * one[one.metric.str.startswith("f1:")].groupby("metric").value.mean()
    assert row["Per-Class F1 Range"] == f"{each.min():.1f}–{each.max():.1f}" and len(each) == 7
    cells = confusion_of(runs, faces.name, tta="five")
    assert list(cells.index) == list(cells.columns) == list(faces.labels)
    counts = faces.where(split="test").df.label.value_counts()
    assert (cells.sum(axis=1) == counts.reindex(cells.index)).all()   # the mean of two seeds
    assert np.trace(cells) / cells.to_numpy().sum() == pytest.approx(one[one.metric == "accuracy"].value.mean())
    epochs = pd.read_csv(tmp_path / "sqsnet-0.epochs.csv")
    chosen = runs[(runs.split == "holdout") & (runs.seed == 0)].value.item()
    assert chosen == pytest.approx(epochs.accuracy.max())
    with pytest.raises(DataError, match="'w/o CNN'"):
        confusion_of(runs, faces.name, "w/o CNN")
    odd = runs.assign(metric=runs.metric.str.replace("happy", "happy: a smile"))
    assert confusion_of(odd, faces.name, tta="five").to_numpy().tolist() == cells.to_numpy().tolist()


def costs_of(*fits):
    "A row of costs.csv for each (arm, hours, whole)."
    return pd.DataFrame([{"arm": a, "seed": k, "hours": h, "whole": w, "device": "cpu", "gpu_gb": np.nan} for k, (a, h, w) in enumerate(fits)])


def test_costs_are_of_the_networks_of_the_table_alone():
    "A study's folder holds the fits of all its tables."
    runs = made_up({("FERPlus", "SQSNet", 0): .5, ("FERPlus", "w/o SQS", 0): .5})
    table = efficiency_table(runs, costs_of(("w/o SQS", 9, True), ("SQSNet", 2, True), ("tau = 0.1", 9, True)), TOY)
    assert list(table.index) == ["SQSNet"] and table.loc["SQSNet", ["training (h)", "whole fits"]].tolist() == [2, "1 of 1"]
    with pytest.raises(DataError, match="w/o SQS.*SQSNet.* expected"):
        efficiency_table(runs, costs_of(("w/o SQS", 9, True)), TOY)


@pytest.mark.parametrize("fits,hours,of", [([(3, True), (1, True)], 2, "2 of 2"), ([(3, True), (.1, False)], 3, "1 of 2"),
                                           ([(.1, False), (.2, False)], np.nan, "0 of 2")])
def test_hours_are_of_whole_fits(fits, hours, of):
    costs = costs_of(*(("SQSNet", h, w) for h, w in fits))
    row = efficiency_table(made_up({("FERPlus", "SQSNet", 0): .5}), costs, TOY).loc["SQSNet"]
    assert row["training (h)"] == pytest.approx(hours, nan_ok=True) and row["whole fits"] == of


# ---------------------------------------------------------------- the bridge

@pytest.mark.slow
def test_the_bridge_goes_on_where_it_was_broken_off(faces, tmp_path, monkeypatch):
    whole = bridge_study(faces, TOY, STUDENT, (0,), tmp_path / "whole")
    real, n = rooms.fit_student, []

    def broken(*args, **kwargs):
        n.append(1)
        if len(n) == 4:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(rooms, "fit_student", broken)
    with pytest.raises(KeyboardInterrupt):
        bridge_study(faces, TOY, STUDENT, (0,), tmp_path / "broken")
    monkeypatch.setattr(rooms, "fit_student", real)
    lines = []
    again = bridge_study(faces, TOY, STUDENT, (0,), tmp_path / "broken", say=lines.append)
    assert [line.split(" (")[0] for line in lines] == [f"{arm}, seed 0" for arm in list(BRIDGE_ARMS)[3:]]
    pd.testing.assert_frame_equal(again, whole, check_exact=False, rtol=1e-6)
    assert set(whole.arm) == {*BRIDGE_ARMS, "teacher SQSNet", "teacher w/o SQS"}
    assert list(bridge_table(whole).columns) == ["accuracy (%)"]  # one seed: nothing to pair
    with pytest.raises(StoreError, match="students.student.epochs"):
        bridge_study(faces, TOY, replace(STUDENT, student=Fit("small", epochs=2, bs=16)), (0,), tmp_path / "whole")


def test_what_the_bridge_says_is_paired_and_corrected():
    rng = np.random.default_rng(1)
    lucky = rng.normal(0, .1, 5)
    gain = dict(zip(BRIDGE_ARMS, (0, .01, .02, .03, 0)))
    runs = made_up({("FERPlus", a, s): .5 + lucky[s] + g + rng.normal(0, 1e-4) for a, g in gain.items() for s in range(5)}
                   | {("FERPlus", "teacher SQSNet", 0): .8})
    table = bridge_table(runs)
    assert table.difference.drop(["HyFER", "teacher SQSNet"]).tolist() == pytest.approx([1, 2, 3, 0], abs=.05)
    assert np.isnan(table.loc["HyFER", "p"]) and table.loc["teacher SQSNet", "accuracy (%)"] == "80.00"
    assert (table.p_holm.dropna() >= table.p.dropna()).all() and table.loc["taught by SQSNet", "p_holm"] < .001


def test_committed_runs_of_earlier_versions_are_read():
    for name in ("sqs-ablation", "bridge"):
        runs = read_table(ROOT / f"results/ferplus-sqs/{name}.csv")
        assert (runs.split == "select").any()
        table = accuracy_table(runs) if name == "sqs-ablation" else bridge_table(runs)
        one = runs[(runs.split == "valid") & (runs.metric == "accuracy") & (runs.subset == "all") & (runs.tta == "none")]
        for arm, values in one.groupby("arm").value:
            assert table.loc[arm].iloc[0].startswith(f"{100 * values.mean():.2f}")


@pytest.mark.parametrize("preset", ["light", "paper"])
def test_a_row_of_one_name_is_the_same_in_every_table(preset):
    known = {}
    for table in ("comparison", "ablation", "controls", "fusion", "sensitivity", "architectures", "efficiency"):
        for name, arm in study_arms(table, preset).items():
            assert known.setdefault(name, arm) == arm, (table, name)


def test_copies_of_reported_images_are_known_here_too():
    ds = make_faces(420, seed=0, defects=None, balance="uniform")[0]
    test = ds.df.id[ds.df.split == "test"].to_numpy()
    train = np.flatnonzero(ds.df.split == "train")[:20]
    source = ds.df.id.to_numpy().copy()
    source[train] = test[:20]
    splits = sqs_parts(ds.assign(source=source), TOY, "rafdb")
    assert set(test[:20]) <= splits.duplicates and not set(splits.valid.df.source) & set(test)
