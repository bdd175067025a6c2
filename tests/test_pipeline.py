"""The whole way, small: reproducible, leak-free, and nothing half-written."""
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import fer_nb.pipeline as pipeline
import fer_nb.teachers as teachers_room
from fer_nb.config import PRESETS, Evaluation, Fit, Quads, load_config
from fer_nb.core import EMOTIONS, ConfigError, DataError
from fer_nb.data import FERData
from fer_nb.loaders import make_splits
from fer_nb.models import HyFER, load_hyfer
from fer_nb.pipeline import cache_logits, fit_adversarial, fit_student, fit_teachers, run
from fer_nb.store import Store, StoreError
from fer_nb.synth import make_faces
from fer_nb.teachers import NetworkTeacher, make_teachers

TINY = PRESETS["tiny"]


def with_student(preset=TINY, **changed):
    return replace(preset, student=replace(preset.student, **changed))


def with_distillation(preset=TINY, **changed):
    return replace(preset, distillation=replace(preset.distillation, **changed))


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


def test_the_students_of_a_run_carry_the_temperature_of_their_validation_images(tmp_path, monkeypatch):
    ds, calls = make_faces(300, seed=0)[0], []
    monkeypatch.setattr("fer_nb.evaluate.fit_temperature", lambda z, y: calls.append(len(y)) or 1.25)
    out = run(ds, with_teacher(), tmp_path / "a", show=False)
    assert [load_hyfer(out / f"{name}.safetensors").record["temperature"] for name in ("student", "student_phase1")] == [1.25, 1.25]
    assert calls == [len(make_splits(ds, TINY.data).valid)] * 2


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
    out = run(make_faces(300, seed=0)[0], replace(with_student(size=40), teachers=TINY.teachers[:1]), tmp_path / "a", show=False)
    assert load_hyfer(out / "student.safetensors").input_size == 40
    recogniser = Recogniser(out, crop=False)
    assert recogniser.network.size == 40 and recogniser(np.zeros((90, 70), np.uint8))[0].crop.shape[:2] == (40, 40)


def test_a_run_that_is_broken_off_goes_on_where_it_stopped(finished, tmp_path, monkeypatch):
    ds, out = finished
    real, fitted = pipeline.fit_model, []

    def fit(model, dls, spec, cbs=(), phase="", *args, **kwargs):
        fitted.append(phase)
        if phase == "HyFER, EADD" and fitted.count(phase) == 1:
            raise KeyboardInterrupt
        return real(model, dls, spec, cbs, phase, *args, **kwargs)

    monkeypatch.setattr(pipeline, "fit_model", fit)
    monkeypatch.setattr(teachers_room, "fit_model", fit)
    with pytest.raises(KeyboardInterrupt):
        run(ds, "tiny", tmp_path / "b", show=False)
    assert [p.name for p in tmp_path.iterdir()] == ["b.work"]
    with pytest.raises(StoreError, match="settings.teachers.0.epochs is 1 there and 2 here"):
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

    monkeypatch.setattr(teachers_room, "fit_model", stop)
    ds = make_faces(300, seed=0, defects=None, balance="uniform")[0]
    fresh = FERData(ds.df, 255 - ds.array(), ds.labels)

    def begun(data=ds, preset=TINY, seed=0):
        run(data, preset, tmp_path / "b", seed, show=False)

    with pytest.raises(KeyboardInterrupt):
        begun()
    for other, why in [({"preset": with_teacher(pretrained=False)}, "pretrained"), ({"seed": 1}, "seed"), ({"data": fresh}, "data"),
                       ({"preset": with_teacher(size=48)}, "size"),
                       ({"preset": replace(TINY, adversarial=replace(TINY.adversarial, eps=0.5))}, "adversarial.eps")]:
        with pytest.raises(StoreError, match=f"b.work: .*{why}.*delete this one"):
            begun(**other)
    with pytest.raises(KeyboardInterrupt):  # not refused
        begun(preset=replace(TINY, evaluation=Evaluation(n=10, eps=(0,))))


def test_two_teachers_of_one_kind_both_teach_and_both_are_reported(tmp_path):
    specs = [Fit("resnet18", size, pretrained=False, epochs=1, lr=1e-3, bs=32) for size in (32, 40)]
    out = run(make_faces(300, seed=0)[0], replace(TINY, teachers=tuple(specs)), tmp_path / "a", show=False)
    names = {"resnet18 32 px", "resnet18 40 px"}
    assert {f"teacher {n}" for n in names} <= set(pd.read_csv(out / "results.csv").model)
    assert {f"teacher {n}" for n in names} <= set(pd.read_csv(out / "history.csv").phase)
    assert set(pd.read_csv(out / "teacher_weights.csv").teacher) == names


@pytest.fixture(scope="module")
def born_again(tmp_path_factory):
    """A student that a first-generation student taught too."""
    ds, out = make_faces(400, seed=0)[0], tmp_path_factory.mktemp("runs") / "again"
    return run(ds, replace(with_student(with_distillation(cached_views="mean"), network="light_rep", keep="last"), born_again=TINY), out, show=False)


def test_the_first_generation_student_teaches(finished, born_again):
    results, history, weights = (pd.read_csv(born_again / f"{name}.csv") for name in ("results", "history", "teacher_weights"))
    def clean(table, model):
        return table[(table.model == model) & (table.attack == "none")].drop(columns="model").reset_index(drop=True)
    before = pd.read_csv(finished[1] / "results.csv")
    pd.testing.assert_frame_equal(clean(results, "teacher first-generation HyFER"), clean(before, "HyFER, EADD"))
    assert set(weights.teacher) == {"efficientnet_lite0", "resnet18", "first-generation HyFER"}
    assert "first-generation HyFER" in set(history.phase)


def resnet(splits, name="resnet18"):
    """A teacher that nobody fitted."""
    teacher = make_teachers([Fit("resnet18", 32, pretrained=False)])[0]
    return NetworkTeacher.of(pipeline.make_network(teacher.settings, splits.train.labels), name)


def test_each_student_has_its_own_kind_of_views(tmp_path, monkeypatch):
    splits, heard = make_splits(make_faces(400, seed=0)[0], TINY.data), []

    def fit(splits, preset, cached=(), *args):
        heard.append((preset, [c.name for c in cached], {c.train.shape[0] for c in cached}))
        return resnet(splits).network, pd.DataFrame(), None
    monkeypatch.setattr(teachers_room, "fit_model", lambda *a, **k: pd.DataFrame())
    monkeypatch.setattr(pipeline, "fit_student", fit)
    first = with_distillation(views=2)
    both = replace(with_distillation(first, cached_views="mean"), born_again=first)
    teachers, cached, _ = fit_teachers(splits, both, 0, Store(tmp_path))
    names = ["efficientnet_lite0", "resnet18"]
    assert heard == [(first, names, {2})] and len(teachers) == 3
    assert [(c.name, c.train.shape[0]) for c in cached] == [(n, 1) for n in (*names, "first-generation HyFER")]


def test_cached_means_go_with_new_views(monkeypatch):
    splits, shown = make_splits(make_faces(400, seed=0)[0], TINY.data), []
    monkeypatch.setattr(pipeline, "fit_model", lambda model, dls, *a, **k: shown.append(dls.train.views))
    for cached_views in ("each", "mean"):
        preset = with_distillation(cached_views=cached_views, views=3)
        cached = cache_logits([resnet(splits)], splits, preset)
        assert cached[0].train.shape[0] == (3 if cached_views == "each" else 1)
        fit_student(splits, preset, cached)
    assert shown == [3, None]


def test_what_a_fit_says_reaches_the_student_and_its_second_phase(monkeypatch):
    """Every field of a `Fit`: nothing is set twice or forgotten on the way."""
    splits, fits = make_splits(make_faces(400, seed=0)[0], TINY.data), []
    monkeypatch.setattr(pipeline, "fit_model", lambda model, dls, fit, *a, **k: fits.append((fit, dls.train.bs, dls.train.augment)))
    student, attacked = Fit("light_rep", epochs=7, bs=16, keep="last", ema=0.9, augment=None), Fit(epochs=3, bs=8, amp="bf16")
    preset = replace(TINY, student=student, adversarial=replace(TINY.adversarial, fit=attacked))
    network = fit_student(splits, preset)[0]
    fit_adversarial(network, splits, preset)
    assert fits == [(student, 16, None), (attacked, 8, attacked.augment)]


def test_callbacks_and_quads_go_along(monkeypatch):
    """A student with Spatial Quad-Similarity and a callback of one's own, in one call; nothing of it stays in the network."""
    splits, mine = make_splits(make_faces(400, seed=0)[0], TINY.data), pipeline.Callback()
    preset = with_student(replace(TINY, quads=Quads(lam=0.3)), bs=16)
    teacher = resnet(splits)
    student, history, eadd = fit_student(splits, preset, cache_logits([teacher], splits, preset), cbs=[mine])
    assert len(history) == 1 and mine.learn.sqs.lam == 0.3 and mine.learn.eadd is eadd
    assert isinstance(student, HyFER) and not {"enhanced", "quad_weights"} & {k.split(".")[0] for k in student.state_dict()}
    _, _, adv = fit_adversarial(student, splits, preset, cbs=[other := pipeline.Callback()])
    assert other.learn.adversarial_training is adv


def test_a_run_without_teachers_and_without_attacks(tmp_path):
    """What is not done is not reported: no teacher, no second phase."""
    out = run(make_faces(300, seed=0)[0], replace(TINY, teachers=(), adversarial=None), tmp_path / "a", show=False)
    results = pd.read_csv(out / "results.csv")
    assert set(results.model) == {"HyFER, no teacher"} and set(results.attack.fillna("none")) == {"none"}
    assert not {"teacher_weights.csv", "adversarial.csv"} & {p.name for p in out.iterdir()}
    assert (out / "student.safetensors").read_bytes() == (out / "student_phase1.safetensors").read_bytes()


def test_logs_of_adversarial_training_are_kept(finished):
    _, out = finished
    log, guard = pd.read_csv(out / "adversarial.csv"), pd.read_csv(out / "guard.csv")
    assert set(log.attack) == {"clean", "fgsm", "pgd"} and log.images.gt(0).all()
    assert guard.rolled_back.tolist() == [False] and guard.pgd.between(0, 1).all()


def test_config_says_how_to_run_again(finished):
    ds, out = finished
    config = json.loads((out / "config.json").read_text())
    assert config["data"]["fingerprint"] == ds.fingerprint()
    assert config["settings"]["adversarial"]["eps"] == TINY.adversarial.eps and config["seed"] == 0
    assert load_config(out / "config.json") == TINY
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


def test_a_failed_report_leaves_nothing_half_written(tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr(pipeline, "write_report", broken)
    monkeypatch.setattr(pipeline, "fit_teachers", lambda splits, *a: ([], [], [pd.DataFrame()]))
    monkeypatch.setattr(pipeline, "fit_students", lambda *a: ({}, [], None, None))
    monkeypatch.setattr(pipeline.RunResults, "evaluate", broken)
    with pytest.raises(OSError):
        run(make_faces(300, seed=0)[0], "tiny", tmp_path / "run", show=False)
    assert [p.name for p in tmp_path.iterdir()] == ["run.work"]


def test_colour_images_of_another_size(tmp_path):
    ds = make_faces(400, seed=1, size=64, balance="uniform")[0]
    colour = FERData(ds.df, np.repeat(ds.array()[..., None], 3, -1), ds.labels, "colour")
    out = run(colour, replace(TINY, adversarial=replace(TINY.adversarial, attacks=("pgd",))), tmp_path / "run", show=False)
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
    file = Fit(str(out / "student_phase1.safetensors"))
    preset = replace(with_student(with_distillation(cached_views="mean"), keep="last"), teachers=(TINY.teachers[1], file))
    again = run(ds, preset, tmp_path / "b", show=False)
    results = pd.concat([pd.read_csv(folder / "results.csv") for folder in (out, again)], keys=["old", "new"]).reset_index(level=0)
    clean = results[(results.attack == "none") & (results.tta == "none") & (results.subset == "all")]
    old = clean[(clean.level_0 == "old") & (clean.model == "HyFER, EADD")]
    new = clean[(clean.level_0 == "new") & (clean.model == "teacher student_phase1")]
    keys = ["split", "metric"]
    pd.testing.assert_series_equal(new.set_index(keys).value, old.set_index(keys).value)
    assert set(pd.read_csv(again / "teacher_weights.csv").teacher) == {"resnet18", "student_phase1"}
    assert [t["network"] for t in json.loads((again / "config.json").read_text())["settings"]["teachers"]] == [
        "resnet18", "student_phase1.safetensors"]                              # without its folder


def test_a_refused_network_stops_a_run_before_any_teacher_is_fitted(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(teachers_room, "fit_model", lambda *_, **__: pytest.fail("a teacher was fitted"))
    preset = replace(TINY, teachers=(*TINY.teachers, Fit(str(tmp_path / "gone.safetensors"))))
    with pytest.raises(DataError, match="gone.safetensors"):
        run(finished[0], preset, tmp_path / "b", show=False)
    with pytest.raises(ConfigError, match="annotators twice"):
        run(finished[0], replace(TINY, teachers=(Fit("annotators"),) * 2), tmp_path / "c", show=False)
