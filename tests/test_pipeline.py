"""The whole way, small: reproducible, leak-free, and nothing half-written."""
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import fer_nb.pipeline as pipeline
from fer_nb.audit import audit
from fer_nb.core import EMOTIONS, ConfigError, DataError, LabelError
from fer_nb.data import FERData
from fer_nb.distill import Geometry
from fer_nb.models import HyFER, create_teacher, load_hyfer, save_hyfer, weights_digest
from fer_nb.pipeline import PRESETS, TeacherSpec, ask_teacher, fit_student, fit_teacher, make_splits, run
from fer_nb.synth import make_faces
from fer_nb.train import CheckpointError, Recipe

TINY = PRESETS["tiny"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One tiny run, shared by the tests that only look at it."""
    ds = make_faces(400, seed=0)[0]
    return ds, run(ds, "tiny", tmp_path_factory.mktemp("runs") / "a", show=False)


def test_same_seed_same_results(finished, tmp_path):
    ds, out = finished
    again = run(ds, "tiny", tmp_path / "b", show=False)
    assert (out / "results.csv").read_bytes() == (again / "results.csv").read_bytes()
    assert (out / "student.safetensors").read_bytes() == (again / "student.safetensors").read_bytes()


def test_the_students_of_a_run_carry_the_temperature_of_their_selection_part(tmp_path, monkeypatch):
    ds, asked = make_faces(300, seed=0)[0], []
    monkeypatch.setattr("fer_nb.evaluate.fit_temperature", lambda z, y: asked.append(len(y)) or 1.25)
    out = run(ds, with_teacher(), tmp_path / "a", show=False)
    assert [load_hyfer(out / f"{name}.safetensors").record["temperature"] for name in ("student", "student_phase1")] == [1.25, 1.25]
    assert asked == [len(make_splits(ds, TINY).select)] * 2


def test_a_temperature_is_that_of_the_logits_or_absent():
    class Said(torch.nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.scale, self.labels = torch.nn.Parameter(torch.tensor(scale)), EMOTIONS

        def forward(self, x):
            z = torch.zeros(len(x), 7)
            z[torch.arange(len(x)), (x.mean((1, 2, 3)) * 1e4).long() % 7] = 3.0
            return self.scale * z
    faces = make_faces(200, defects=None)[0]
    said = pipeline.predict_logits(Said(1.0), faces)
    right = FERData(faces.df.assign(label=[faces.labels[k] for k in said.argmax(1)]), faces.array(), faces.labels)
    mixed = FERData(right.df.assign(label=[faces.labels[(k + (i % 4 == 0)) % 7] for i, k in enumerate(said.argmax(1))]), faces.array(), faces.labels)
    one, five = (pipeline.calibration(Said(s), mixed)["temperature"] for s in (1.0, 5.0))
    assert five == pytest.approx(5 * one, rel=1e-3) and one == pytest.approx(3 / np.log(0.75 / (0.25 / 6)), rel=0.1)
    assert pipeline.calibration(Said(1.0), right) == {} == pipeline.calibration(Said(-1.0), mixed)


def test_a_run_at_another_size_says_so(tmp_path):
    from fer_nb.predict import Recogniser
    out = run(make_faces(300, seed=0)[0], replace(TINY, size=40, teachers=(replace(TINY.teachers[0], input_size=32),)), tmp_path / "a", show=False)
    assert load_hyfer(out / "student.safetensors").input_size == 40
    recogniser = Recogniser(out, crop=False)
    assert recogniser.network.size == 40 and recogniser(np.zeros((90, 70), np.uint8))[0].crop.shape[:2] == (40, 40)


def test_a_run_that_is_broken_off_goes_on_where_it_stopped(finished, tmp_path, monkeypatch):
    ds, out = finished
    real, fitted = pipeline.fit_model, []

    def fit(*args, phase="", **kwargs):
        fitted.append(phase)
        if phase == "HyFER, EADD" and fitted.count(phase) == 1:
            raise KeyboardInterrupt
        return real(*args, phase=phase, **kwargs)

    monkeypatch.setattr(pipeline, "fit_model", fit)
    with pytest.raises(KeyboardInterrupt):
        run(ds, "tiny", tmp_path / "b", show=False)
    assert [p.name for p in tmp_path.iterdir()] == ["b.work"]
    with pytest.raises(CheckpointError, match="epochs"):
        run(ds, with_teacher(epochs=2), tmp_path / "b", show=False)
    again = run(ds, "tiny", tmp_path / "b", show=False)
    assert [p.name for p in tmp_path.iterdir()] == ["b"]
    assert (out / "results.csv").read_bytes() == (again / "results.csv").read_bytes()
    assert (out / "student.safetensors").read_bytes() == (again / "student.safetensors").read_bytes()


def with_teacher(**changed):
    return replace(TINY, teachers=(replace(TINY.teachers[0], **changed), TINY.teachers[1]))


def test_work_of_another_run_is_refused_before_anything_is_trained(tmp_path, monkeypatch):
    """Also where the checkpoints could not tell: weights of the same shapes, made in another way."""
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "fit_model", stop)
    ds = make_faces(300, seed=0, defects=None, balance="uniform")[0]
    fresh = FERData(ds.df, 255 - ds.array(), ds.labels)

    def begun(data=ds, preset=TINY, seed=0):
        run(data, preset, tmp_path / "b", seed, show=False)

    with pytest.raises(KeyboardInterrupt):
        begun()
    for other, why in [({"preset": with_teacher(pretrained=False)}, "pretrained"), ({"seed": 1}, "seed"), ({"data": fresh}, "data"),
                       ({"preset": with_teacher(input_size=48)}, "input_size"), ({"preset": replace(TINY, adv_lr=1.0)}, "adv_lr")]:
        with pytest.raises(CheckpointError, match=f"b.work: work of another run: .*{why}.*delete the folder"):
            begun(**other)
    with pytest.raises(KeyboardInterrupt):  # not refused
        begun(preset=replace(TINY, eval_n=10, eval_eps=(0,)))


def test_two_teachers_of_one_kind_both_teach_and_both_are_reported(tmp_path):
    specs = [TeacherSpec("resnet18", size, 1, 1e-3, pretrained=False, bs=32) for size in (32, 40)]
    out = run(make_faces(300, seed=0)[0], replace(TINY, teachers=tuple(specs)), tmp_path / "a", show=False)
    names = {"resnet18 32 px", "resnet18 40 px"}
    assert {f"teacher {n}" for n in names} <= set(pd.read_csv(out / "results.csv").model)
    assert {f"teacher {n}" for n in names} <= set(pd.read_csv(out / "history.csv").phase)
    assert set(pd.read_csv(out / "teacher_weights.csv").teacher) == names
    assert [pipeline._called(k, (*specs, specs[0], TeacherSpec("geometry", epochs=1, lr=1e-3))) for k in range(4)] == [
        "resnet18 (1)", "resnet18 40 px", "resnet18 (3)", "geometry"]
    with pytest.raises(ConfigError, match="annotators twice"):
        replace(TINY, teachers=(TeacherSpec("annotators"),) * 2)


def test_a_teacher_can_be_fitted_to_mixed_images(tmp_path):
    spec = TeacherSpec("resnet18", 32, 1, 1e-3, pretrained=False, bs=32)
    splits = make_splits(make_faces(300, seed=0)[0], preset := replace(TINY, teachers=(spec,)))
    weights = {}
    for name, mix in (("as they are", None), ("mixed", 0.4), ("again", 0.4)):
        net, history = fit_teacher(0, splits, replace(preset, teachers=(replace(spec, mix=mix),)))
        weights[name] = net.net.fc.weight.detach().clone()
        assert np.isfinite(history.train_loss).all()
    assert torch.equal(weights["mixed"], weights["again"]) and not torch.equal(weights["mixed"], weights["as they are"])
    for odd in ({"mix": 0.0}, {"mix": -1}, {"mix": 0.4, "name": "geometry"}):
        with pytest.raises(ConfigError, match="mix="):
            replace(spec, **odd)


@pytest.fixture(scope="module")
def born_again(tmp_path_factory):
    """A student that an earlier one taught too."""
    ds, out = make_faces(400, seed=0)[0], tmp_path_factory.mktemp("runs") / "again"
    return run(ds, replace(TINY, answers="mean", student="light_rep", keep="last", earlier=TINY), out, show=False)


def test_the_earlier_student_teaches(finished, born_again):
    results, history, weights = (pd.read_csv(born_again / f"{name}.csv") for name in ("results", "history", "teacher_weights"))
    def clean(table, model):
        return table[(table.model == model) & (table.attack == "none")].drop(columns="model").reset_index(drop=True)
    before = pd.read_csv(finished[1] / "results.csv")
    pd.testing.assert_frame_equal(clean(results, "teacher earlier HyFER"), clean(before, "HyFER, EADD"))
    assert set(weights.teacher) == {"efficientnet_lite0", "resnet18", "earlier HyFER"}
    assert "HyFER, earlier" in set(history.phase)


def test_each_student_is_answered_in_its_own_way(tmp_path, monkeypatch):
    splits, heard = make_splits(make_faces(400, seed=0)[0], TINY), []

    def fit(splits, preset, kept=(), *args):
        heard.append((preset, [k.name for k in kept], {k.train.shape[0] for k in kept}))
        return resnet(splits), pd.DataFrame(), None
    monkeypatch.setattr(pipeline, "fit_teacher", lambda *a: (resnet(splits), pd.DataFrame()))
    monkeypatch.setattr(pipeline, "fit_student", fit)
    first = replace(TINY, views=2)
    teachers, kept, _ = pipeline.train_teachers(splits, replace(first, answers="mean", earlier=first), 0, tmp_path, lambda text: None)
    assert heard == [(first, ["resnet18", "resnet18"], {2})]
    assert [(k.name, k.train.shape[0]) for k in kept] == [("resnet18", 1), ("resnet18", 1), ("earlier HyFER", 1)] and len(teachers) == 3


def test_what_a_student_keeps_is_the_presets_to_say(monkeypatch):
    splits, kept = make_splits(make_faces(400, seed=0)[0], TINY), []
    monkeypatch.setattr(pipeline, "fit_model", lambda *a, **k: kept.append(k["keep"]))
    for keep in ("best", "last"):
        fit_student(splits, replace(TINY, keep=keep))
    assert kept == ["best", "last"]


def test_mean_answers_go_with_new_views(monkeypatch):
    splits, shown = make_splits(make_faces(400, seed=0)[0], TINY), []
    monkeypatch.setattr(pipeline, "fit_model", lambda model, dls, *a, **k: shown.append(dls.train.views))
    for answers in ("view", "mean"):
        preset = replace(TINY, answers=answers, views=3)
        said = ask_teacher(resnet(splits), splits, preset)
        assert said.train.shape[0] == (3 if answers == "view" else 1)
        fit_student(splits, preset, [said])
    assert shown == [3, None]


def resnet(splits):
    return create_teacher("resnet18", len(splits.train.labels), False, 32, splits.train.labels)


def test_a_geometry_teacher_is_kept_and_not_fitted_again(tmp_path, monkeypatch):
    splits, spec = make_splits(make_faces(400, seed=0)[0], TINY), TeacherSpec("geometry", epochs=2, lr=3e-3)
    features = np.random.default_rng(0).normal(size=(len(splits.audit.ds), 6)).astype(np.float32)
    known = Geometry(splits.audit.ds.df.id.tolist(), features, np.ones(len(features), bool))
    monkeypatch.setattr(pipeline, "find_geometry", lambda ds: known)
    preset, path = replace(TINY, teachers=(spec,)), tmp_path / "geometry.ckpt"
    first, _ = fit_teacher(0, splits, preset, checkpoint=path)
    monkeypatch.setattr(pipeline, "fit_geometry", None)
    again, _ = fit_teacher(0, splits, preset, checkpoint=path)
    assert weights_digest(again) == weights_digest(first) and not again.training
    with pytest.raises(CheckpointError, match="geometry.ckpt: of another run: spec.epochs is 2 there and 3 here"):
        fit_teacher(0, splits, replace(preset, teachers=(replace(spec, epochs=3),)), checkpoint=path)
    with pytest.raises(CheckpointError, match="seed"):
        fit_teacher(0, splits, preset, 1, checkpoint=path)


@pytest.mark.parametrize("changed, said", [
    ({"answers": "both"}, "'both'"), ({"earlier": replace(TINY, holdout=0.2)}, "holdout"),
    ({"earlier": replace(TINY, teachers=TINY.teachers[:1], views=2)}, "differs in teachers, views;"), ({"earlier": replace(TINY, earlier=TINY)}, "one generation"),
    ({"keep": "first"}, "keep='first'"), ({"keep": "last", "recipe": Recipe(patience=2)}, "patience=2")])
def test_presets_that_contradict_themselves(changed, said):
    with pytest.raises(ConfigError, match=said):
        replace(TINY, **changed)


def test_logs_of_adversarial_training_are_kept(finished):
    _, out = finished
    log, guard = pd.read_csv(out / "adversarial.csv"), pd.read_csv(out / "guard.csv")
    assert set(log.attack) == {"clean", "fgsm", "pgd"} and log.images.gt(0).all()
    assert guard.rolled_back.tolist() == [False] and guard.pgd.between(0, 1).all()


def test_config_says_how_to_run_again(finished):
    ds, out = finished
    config = json.loads((out / "config.json").read_text())
    assert config["data"]["fingerprint"] == ds.fingerprint()
    assert config["settings"]["adv_eps"] == TINY.adv_eps and config["seed"] == 0
    assert {"torch", "fastai", "timm", "python"} <= set(config["versions"])


def test_results_name_split_attack_and_radius(finished):
    _, out = finished
    results = pd.read_csv(out / "results.csv")
    assert set(results.split) == {"valid", "test"}
    attacked = results[results.attack != "none"]
    assert (attacked.eps >= 0).all() and (attacked.steps >= 1).all()
    assert not results.duplicated(["model", "split", "subset", "tta", "attack", "eps", "steps", "metric"]).any()


def test_shipped_student_is_the_one_that_was_measured(finished):
    ds, out = finished
    from fer_nb.evaluate import evaluate
    results = pd.read_csv(out / "results.csv")
    row = results[(results.model == "HyFER, EADD + adversarial") & (results.split == "test") & (results.subset == "all")
                  & (results.attack == "none") & (results.metric == "accuracy")]
    measured = evaluate(load_hyfer(out / "student.safetensors"), ds.where(split="test"))
    accuracy = measured[(measured.metric == "accuracy") & (measured.subset == "all")].value
    assert accuracy.item() == pytest.approx(row.value.item(), abs=1e-6)


def test_report_stands_alone(finished):
    _, out = finished
    html = (out / "report.html").read_text()
    assert "<script src" not in html and "http://" not in html and "https://" not in html
    assert html.count("data:image/png;base64,") >= 8


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("near", [False, True])
def test_nothing_leaks(seed, near):
    """Training, selection and reported images share no picture, no source, no duplicate group."""
    defects = {"leak": 0.05, "exact": 0.05, "multilabel": 0.03, "shift": 0.02}
    ds = make_faces(700, seed=seed, defects=defects, balance="uniform")[0]
    splits = make_splits(ds, replace(TINY, near_duplicates=near), seed)
    assert set(splits.train.df.split) == {"train"}
    assert not set(splits.train.df.source) & set(splits.valid.df.id)
    assert not set(splits.train.df.group) & set(splits.valid.df.group)
    originals = splits.train.take((splits.train.df.id == splits.train.df.source).to_numpy())
    everything = FERData(pd.concat([originals.df.assign(split="train"), splits.valid.df.assign(split="valid"),
                                    splits.test.df.assign(split="test")]),
                         np.concatenate([originals.array(), splits.valid.array(), splits.test.array()]), ds.labels)
    assert not (audit(everything, ("leak",), None).issues.kind == "leak").any()
    assert splits.test.df.id.tolist() == ds.df.id[ds.df.split != "train"].tolist()


def test_a_split_that_is_made_keeps_a_person_on_one_side():
    ds = make_faces(300, seed=0, splits=(1, 0, 0), defects=None, balance="uniform")[0]
    ds = FERData(ds.df.assign(subject=[f"s{k % 40}" for k in range(len(ds))]), ds.array(), ds.labels)
    splits = make_splits(ds, TINY)
    people = [set(part.df.subject) for part in (splits.train, splits.valid, splits.test)]
    assert all(people) and not people[0] & people[2] and not people[1] & people[2] and not people[0] & people[1]


def test_balance_happens_after_the_holdout():
    splits = make_splits(make_faces(400, seed=0)[0], replace(TINY, targets="max"))
    assert "source" not in splits.valid.df or (splits.valid.df.source == splits.valid.df.id).all()
    assert splits.train.counts()["train"].nunique() == 1


def test_a_failed_report_leaves_nothing_half_written(tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr(pipeline, "write_report", broken)
    monkeypatch.setattr(pipeline, "train_teachers", lambda splits, *a: ([], [], []))
    monkeypatch.setattr(pipeline, "_train_students", lambda *a: ({}, [], None, None))
    monkeypatch.setattr(pipeline, "_results", broken)
    with pytest.raises(OSError):
        run(make_faces(300, seed=0)[0], "tiny", tmp_path / "run", show=False)
    assert [p.name for p in tmp_path.iterdir()] == ["run.work"]


def test_colour_images_of_another_size(tmp_path):
    ds = make_faces(400, seed=1, size=64, balance="uniform")[0]
    colour = FERData(ds.df, np.repeat(ds.array()[..., None], 3, -1), ds.labels, "colour")
    out = run(colour, replace(TINY, adv_attack=("pgd",)), tmp_path / "run", show=False)
    assert load_hyfer(out / "student.safetensors").in_chans == 3


def test_inputs_that_cannot_be_used(tmp_path):
    faces = make_faces(200, seed=0)[0]
    with pytest.raises(ConfigError, match="'huge'"):
        run(faces, "huge", tmp_path / "x")
    (tmp_path / "there").mkdir()
    with pytest.raises(DataError, match="exists already"):
        run(faces, "tiny", tmp_path / "there")
    faces = make_faces(300, seed=0, defects=None, balance="uniform")[0]
    disgust = np.flatnonzero(faces.df.label == "disgust")
    few = faces.take(np.setdiff1d(np.arange(len(faces)), disgust[3:]))
    rare = FERData(few.df.assign(split="train", subject=""), few.array(), few.labels)
    with pytest.raises(DataError, match="class 'disgust' has"):
        run(rare, "tiny", tmp_path / "y", show=False)
    assert not (tmp_path / "x").exists() and not (tmp_path / "y").exists()


# ---- trained networks as teachers ----

def test_a_trained_network_teaches_as_it_is(finished, tmp_path):
    ds, out = finished
    preset = replace(TINY, answers="mean", keep="last", teachers=(TINY.teachers[1], TeacherSpec(str(out / "student_phase1.safetensors"))))
    again = run(ds, preset, tmp_path / "b", show=False)
    results = pd.concat([pd.read_csv(folder / "results.csv") for folder in (out, again)], keys=["old", "new"]).reset_index(level=0)
    clean = results[(results.attack == "none") & (results.tta == "none") & (results.subset == "all")]
    old = clean[(clean.level_0 == "old") & (clean.model == "HyFER, EADD")]
    new = clean[(clean.level_0 == "new") & (clean.model == "teacher student_phase1")]
    keys = ["split", "metric"]
    pd.testing.assert_series_equal(new.set_index(keys).value, old.set_index(keys).value)
    assert set(pd.read_csv(again / "teacher_weights.csv").teacher) == {"resnet18", "student_phase1"}


@pytest.mark.parametrize("record, told", [({"seed": 1}, "seed 1, here 0"), ({"fingerprint": "f00"}, "fingerprint f00, here"),
                                          ({"trained on": 7}, "trained on 7, here"), ({"data": {"trained on": 7}}, "trained on 7, here")])
def test_a_network_that_may_know_the_held_out_images_is_refused(finished, tmp_path, record, told):
    splits = make_splits(finished[0], TINY)
    path = save_hyfer(HyFER(in_chans=1, variant="light"), tmp_path / "other.safetensors", **record)
    preset = replace(TINY, teachers=(TeacherSpec(str(path)),))
    with pytest.raises(DataError, match=f"other.safetensors: .*{told}"):
        fit_teacher(0, splits, preset, 0)


def test_what_a_record_does_not_tell_is_not_held_against_a_network(finished, tmp_path):
    path = save_hyfer(HyFER(in_chans=1, variant="light"), tmp_path / "own.safetensors", data="my_faces")
    net, _ = fit_teacher(0, make_splits(finished[0], TINY), replace(TINY, teachers=(TeacherSpec(str(path)),)))
    assert (net.name, net.training) == ("own", False)


def test_a_refused_network_stops_a_run_before_any_teacher_is_fitted(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "fit_model", lambda *_, **__: pytest.fail("a teacher was fitted"))
    preset = replace(TINY, teachers=(*TINY.teachers, TeacherSpec(str(tmp_path / "gone.safetensors"))))
    with pytest.raises(DataError, match="gone.safetensors"):
        run(finished[0], preset, tmp_path / "b", show=False)


def test_a_file_is_told_of_without_its_folder(finished):
    preset = replace(TINY, teachers=(TINY.teachers[1], TeacherSpec("elsewhere/old.safetensors")))
    assert [spec["name"] for spec in preset.told()["teachers"]] == ["resnet18", "old.safetensors"]


def test_a_network_of_other_labels_is_refused(finished, tmp_path):
    path = save_hyfer(HyFER(2, 1, "light", labels=("sad", "happy")), tmp_path / "other.safetensors")
    with pytest.raises(LabelError, match="labels sad, happy; angry"):
        fit_teacher(0, make_splits(finished[0], TINY), replace(TINY, teachers=(TeacherSpec(str(path)),)))


def test_files_of_one_name_are_told_apart():
    specs = tuple(TeacherSpec(f"{folder}/student.safetensors") for folder in "ab")
    assert [pipeline._called(k, specs) for k in range(2)] == ["student (1)", "student (2)"]
    both = TeacherSpec("resnet18.safetensors"), TINY.teachers[1]
    assert [pipeline._called(k, both) for k in range(2)] == ["resnet18", "resnet18 32 px"]
