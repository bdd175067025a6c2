"""The papers' presets: made of their clauses, tried whole on drawn faces, refused in words where they cannot begin."""
import json
import os
import subprocess
import sys
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fer_nb import models, pipeline, plan
from fer_nb.cli import main
from fer_nb.config import (PAPERS, PRESETS, Adversarial, Augment, Data, Distillation, Evaluation, Fit, Preset, from_dict, override,
                           paper_rows, preset_of, to_dict, tried)
from fer_nb.core import EMOTIONS, LABEL_ORDERS, ConfigError, DataError, DownloadError, ImageError
from fer_nb.data import FERData
from fer_nb.faces import FaceRefiner
from fer_nb.loaders import Originals, balanced, make_splits, paper_counts
from fer_nb.pipeline import capped, fold_parts, prepare, run
from fer_nb.synth import make_faces

CODES = {"fear": "AF", "angry": "AN", "disgust": "DI", "happy": "HA", "neutral": "NE", "sad": "SA", "surprise": "SU"}
TINY = PRESETS["tiny"]


@pytest.fixture(autouse=True)
def small_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("FER_NB_CACHE", str(tmp_path_factory.getbasetemp() / "cache-of-presets"))


def kdef_tree(root: Path, people: int, side: int = 96) -> Path:
    "Drawn faces under KDEF's names: every person shows every emotion once."
    drawn = make_faces(people * 9, seed=3, size=96, balance="uniform", defects=None)[0]
    for label, code in CODES.items():
        rows = np.flatnonzero(drawn.df.label == label)[:people]
        for person, row in enumerate(rows, 1):
            folder = root / f"A{'FM'[person % 2]}{person:02}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(drawn.image(row)).convert("RGB").resize((side, side)).save(folder / f"{folder.name}{code}S.JPG")
    return root


def rafdb_tree(root: Path, each: int, side: int = 100) -> Path:
    "Drawn faces in RAF-DB's official layout."
    order = ("surprise", "fear", "disgust", "happy", "sad", "angry", "neutral")
    drawn = make_faces(each * 9, seed=4, size=96, balance="uniform", defects=None)[0]
    (root / "basic/Image/aligned").mkdir(parents=True)
    (root / "basic/EmoLabel").mkdir()
    lines = []
    for code, label in enumerate(order, 1):
        for k, row in enumerate(np.flatnonzero(drawn.df.label == label)[:each]):
            name = f"{'test' if k % 4 == 0 else 'train'}_{code}{k:04}"
            Image.fromarray(drawn.image(row)).convert("RGB").resize((side, side)).save(root / f"basic/Image/aligned/{name}_aligned.jpg")
            lines.append(f"{name}.jpg {code}\n")
    (root / "basic/EmoLabel/list_patition_label.txt").write_text("".join(lines))
    return root


def affectnet_tree(root: Path, each: int, side: int = 224) -> Path:
    "Drawn faces in AffectNet's official layout, without contempt."
    drawn = make_faces(each * 18, seed=5, size=96, balance="uniform", defects=None)[0]
    for code, label in enumerate(LABEL_ORDERS["affectnet"]):
        for k, row in enumerate(np.flatnonzero(drawn.df.label == label)[:2 * each]):
            folder = root / ("train_set", "val_set")[k % 2]
            for part in ("images", "annotations"):
                (folder / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(drawn.image(row)).convert("RGB").resize((side, side)).save(folder / f"images/{row}.jpg")
            for what, value in (("exp", code), ("val", 0.1), ("aro", 0.1)):
                np.save(folder / f"annotations/{row}_{what}.npy", np.array(str(value)))
    return root


# ---- the presets and their clauses ----

@pytest.mark.parametrize("name", PAPERS)
def test_a_preset_is_what_its_clauses_say(name):
    preset, clauses = PRESETS[name], PAPERS[name]
    assert preset == preset_of(clauses) and len({c.field for c in clauses}) == len(clauses)
    for c in clauses:
        part, _, rest = c.field.partition(".")
        found = [getattr(t, rest) for t in preset.teachers] if part == "teachers" else [preset]
        for step in () if part == "teachers" else c.field.split("."):
            found = [getattr(found[0], step)]
        wanted = c.value if part == "teachers" and rest in ("network", "size") else [c.value] * len(found)
        assert found == list(wanted), c.field


@pytest.mark.parametrize("name", PAPERS)
def test_no_setting_of_a_paper_is_left_without_a_clause(name):
    """What differs from the defaults stands in the table; what does not is the house's and not the paper's."""
    said = {c.field for c in PAPERS[name]}

    def leaves(value, at):
        for f in fields(value):
            inner, path = getattr(value, f.name), f"{at}{f.name}"
            if path in said or inner == getattr(type(value)(), f.name):
                continue
            if is_dataclass(inner):
                yield from leaves(inner, path + ".")
            elif f.name != "teachers":
                yield path

    assert list(leaves(PRESETS[name], "")) == []
    for t in PRESETS[name].teachers:
        assert all(f"teachers.{f.name}" in said for f in fields(t) if getattr(t, f.name) != f.default)


@pytest.mark.parametrize("name", PAPERS)
def test_a_remark_is_understood_alone_and_tells_what_is_left_out(name):
    """A plan prints it in brackets, without the paper's word."""
    for c in PAPERS[name]:
        assert not c.why.startswith("not ") and len(c.why) <= 100, c.field
        if "flips" in c.word and not c.value.vflip and c.why != "as in phase 1":
            assert "without the vertical flip" in c.why, c.field


def test_what_the_papers_print():
    dmc, sqs = PRESETS["paper-dmc"], PRESETS["paper-sqs"]
    assert {t.network: t.size for t in dmc.teachers} == {"crossvit_18": 240, "mobilevit_s": 256, "davit_b": 224}
    fits = (*dmc.teachers, dmc.student, dmc.adversarial.fit)
    assert {(f.epochs, f.bs, f.optimiser, f.wd, f.smoothing, f.amp) for f in fits} == {(100, 16, "Adam", 0, 0, None)}
    assert (dmc.student.network, dmc.student.size, dmc.data.folds, dmc.data.targets) == ("paper", 224, 5, "paper")
    assert set(dmc.adversarial.attacks) == {"fgsm", "pgd", "deepfool"} and dmc.data.refine == "keep"
    assert [e for e, _ in dmc.distillation.T] == [e for e, _ in dmc.distillation.tau] == list(EMOTIONS)
    s = sqs.student
    assert (s.epochs, s.bs, s.lr, s.wd, s.mix, s.smoothing, s.augment.erase, s.restart_epochs) == (50, 64, 3e-4, 1e-5, 0.4, 0.1, 0.5, 50)
    assert sqs.evaluation.seeds == 5 and sqs.evaluation.tta == "five" and s.amp is None
    assert models.starts_from(s.network) == ["tf_efficientnet_b6.aa_in1k", "swin_small_patch4_window7_224.ms_in1k"]


@pytest.mark.parametrize("name", ["paper-dmc", "paper-sqs"])
def test_a_card_changes_precision_batches_and_rates_alone(name):
    paper, card = PRESETS[name], PRESETS[f"{name}-gpu"]
    same = {"bs": 1, "lr": 1.0, "amp": None, "early_lr": None}

    def plain(preset):
        under = preset.adversarial and replace(preset.adversarial, fit=replace(preset.adversarial.fit, **same))
        return replace(preset, student=replace(preset.student, **same), adversarial=under,
                       teachers=tuple(replace(t, **same) for t in preset.teachers))

    assert plain(paper) == plain(card) and card.student.amp == "auto" and card.student.bs > paper.student.bs
    changed = [row for row in paper_rows(f"{name}-gpu") if "as the paper:" in row[-1]]
    assert {row[0].rpartition(".")[2] for row in changed} == {"bs", "lr", "amp"}


def test_temperatures_go_by_name(monkeypatch):
    how = Distillation(T={"happy": 2.0, "sad": 4.0}, tau=[["sad", 0.3], ["happy", 0.2]])
    assert how.of("T", ("sad", "happy")) == [4.0, 2.0] and how.of("tau", ("sad", "happy")) == [0.3, 0.2] and hash(how)
    assert from_dict(json.loads(json.dumps(to_dict(how))), Distillation) == how
    assert override(Preset(), ["distillation.T={sad: 1.5, happy: 2}"]).distillation.of("T", ["happy", "sad"]) == [2.0, 1.5]
    for labels in (("sad",), ("sad", "happy", "fear"), ("sad", "fear")):
        with pytest.raises(ConfigError, match="distillation.T is for happy, sad; one for each of"):
            how.of("T", labels)
    for wrong in ({"sad": 0.0}, {"sad": -1.0}, {"sad": float("nan")}):
        with pytest.raises(ConfigError, match=r"T\.sad"):
            Distillation(T=wrong)
    ds = make_faces(300, seed=0, balance="uniform")[0]
    labels = EMOTIONS[::-1]
    ds = FERData(ds.df, ds.array(), labels, "turned")
    preset = replace(TINY, distillation=replace(TINY.distillation, T={e: float(k + 1) for k, e in enumerate(EMOTIONS)}, accuracy="running"))
    given = {}
    monkeypatch.setattr(pipeline, "EADD", lambda *a, **k: given.update(T=a[2], accuracy=a[4]) or pytest.skip.Exception)
    monkeypatch.setattr(pipeline, "fit_model", lambda *a, **k: pd.DataFrame())
    splits = prepare(ds, preset)
    pipeline.fit_student(splits, preset, cached=["bank"])
    assert given == {"T": [7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0], "accuracy": "running"}
    with pytest.raises(ConfigError, match="one for each of"):
        prepare(ds, replace(preset, distillation=how))


# ---- balance by the paper ----

def test_paper_counts_are_shares_of_the_table():
    ds = make_faces(900, seed=1, defects=None)[0].replace(name="fer2013").where(split="train")
    have, wanted = ds.df.label.value_counts(), {"angry": 8341, "disgust": 8226, "fear": 8512, "neutral": 8425, "sad": 8627, "surprise": 8517}
    counts = balanced(ds, Data(targets="paper", copies=Augment(vflip=0.5))).df.label.value_counts()
    for label in ds.labels:
        assert counts[label] == max(have[label], round(wanted.get(label, 0) * len(ds) / 35887)), label
    with pytest.warns(UserWarning, match="RAF: Table 1 has no counts"):
        assert set(paper_counts(ds.replace(name="RAF")).values()) == {have.max()}


def test_copies_are_changed_as_the_settings_say(monkeypatch):
    from fer_nb import loaders
    seen = {}
    monkeypatch.setattr(loaders, "balance", lambda ds, targets, augment, seed, minority: seen.update(a=augment, m=minority) or ds)
    data = PRESETS["paper-dmc"].data
    balanced(make_faces(60, seed=0)[0].replace(name="kdef").where(split="train"), data)
    assert seen == {"a": data.copies, "m": data.rare_copies} and seen["a"].vflip == 0.5


# ---- teachers see the images as they came ----

@pytest.fixture(scope="module")
def large():
    return make_faces(210, seed=5, size=96, balance="uniform", defects=None)[0]


TWO = replace(TINY, teachers=(Fit("light", 80, epochs=1, bs=32, pretrained=False),), student=Fit(epochs=1, bs=32),
              data=Data(targets="max", near_duplicates=False, copies=Augment(hflip=1.0, rotate=0, translate=0, scale=(1, 1))))


def test_each_network_has_the_same_images_at_its_own_size(large):
    splits = prepare(large, TWO)
    assert splits.train.shape()[1:] == (48, 48)
    for part in (splits.train, splits.valid, splits.test):
        own = splits.originals.like(part, 80)
        assert own.df.id.tolist() == part.df.id.tolist() and own.shape()[1:] == (80, 80)
        at = {i: k for k, i in enumerate(large.df.id)}
        for k in range(0, len(part), 7):
            image = Image.fromarray(large.image(at[part.sources().iloc[k]])).resize((80, 80), Image.Resampling.BILINEAR)
            copy = part.df.id[k] != part.sources().iloc[k]
            plain = np.asarray(image)[:, ::-1] if copy else np.asarray(image)
            np.testing.assert_allclose(own.image(k).astype(int), plain.astype(int), atol=1)
    assert splits.originals.like(splits.train, 48) is splits.train
    assert splits.originals.like(large, 80) is large                       # of other data: as it is
    with pytest.raises(DataError, match="copies of another size"):
        splits.originals.like(splits.train.take(np.arange(5, len(splits.train))), 80)


def test_small_images_are_left_to_the_network(large):
    small = make_faces(200, seed=6, balance="uniform", defects=None)[0]     # 48 px, as FER2013
    splits = prepare(small, replace(TWO, student=replace(TWO.student, size=96)))
    assert splits.train.shape()[1:] == (96, 96) and splits.originals.like(splits.train, 80).shape()[1:] == (48, 48)


def test_a_teacher_is_fitted_asked_and_judged_at_its_own_size(large, monkeypatch):
    from fer_nb import teachers as room
    shapes, fit = [], room.fit_model
    monkeypatch.setattr(room, "fit_model", lambda net, dls, *a, **k: shapes.append(dls.train.ds.shape()[1:]) or fit(net, dls, *a, **k))
    splits = prepare(large, TWO)
    [teacher], [cached], _ = pipeline.fit_teachers(splits, TWO)
    assert shapes == [(80, 80)]
    own = splits.originals.like(splits.test, 80)
    from fer_nb.evaluate import predict_logits
    np.testing.assert_allclose(teacher.logits(splits.test), predict_logits(teacher.network, own), atol=1e-5)
    loader = pipeline.make_loaders(splits.train, splits.valid, TWO.student, 0, TWO.distillation.views).train
    import torch
    big = splits.originals.like(splits.train, 80)
    x = torch.from_numpy(big.array()[:9])[:, None].float() / 255
    z = teacher.network(loader.augment(x, np.arange(9), 0, loader.seed)).detach().numpy()   # the student's view, larger
    np.testing.assert_allclose(cached.train[0][:9].astype(np.float32), z, atol=2e-2)
    cached.check(loader, pipeline.make_loaders(splits.train, splits.valid, TWO.student, 0, TWO.distillation.views).valid)


# ---- faces ----

def test_refinement_keeps_splits_labels_and_order(large, monkeypatch):
    preset, said = replace(TWO, data=replace(TWO.data, refine="keep")), []
    plain, faces = prepare(large, TWO), prepare(large, preset, say=said.append)
    for a, b in ((plain.train, faces.train), (plain.valid, faces.valid), (plain.test, faces.test)):
        assert a.df.id.tolist() == b.df.id.tolist() and a.df.label.tolist() == b.df.label.tolist() and a.shape() == b.shape()
        assert not np.array_equal(a.array(), b.array())
    assert any("cut out at 80 px" in text for text in said)
    monkeypatch.setattr(FaceRefiner, "record", lambda *a: pytest.fail("looked for twice"))
    other = large.replace(df=large.df.assign(label=large.df.label.to_numpy()[::-1], split=large.df.split.to_numpy()[::-1]))
    again = pipeline.refined(other, preset)                                 # found once; labels and splits have no part in it
    np.testing.assert_array_equal(again.array(), pipeline.refined(large, preset).array())
    assert pipeline.refined(again, preset) is again


def faceless(large):
    images = large.array().copy()
    blind = [int(np.flatnonzero(large.df.split == s)[k]) for s in ("train", "valid", "test") for k in (0, 1)]
    images[blind] = np.random.default_rng(0).integers(0, 255, (len(blind), 96, 96), np.uint8)
    return large.replace(images=images), set(large.df.id[blind])


def test_images_without_a_face_are_kept_left_out_or_an_error_and_said(large):
    ds, blind = faceless(large)
    for policy, words in (("keep", "6 images without a face whole (2 train, 2 valid, 2 test)"), ("drop", "left out (2 train")):
        said = []
        splits = prepare(ds, replace(TWO, data=replace(TWO.data, refine=policy)), say=said.append)
        ids = {*splits.train.sources(), *splits.valid.df.id, *splits.test.df.id}
        assert (ids & blind == set()) == (policy == "drop") and words in said[0]
    with pytest.raises(ImageError, match="6 images, the first .*no_face; their policy may be 'keep'"):
        prepare(ds, replace(TWO, data=replace(TWO.data, refine="error")))


def test_faces_of_files_are_cut_when_they_are_read(large, tmp_path, monkeypatch):
    few = large.take(np.arange(24))
    files = [tmp_path / f"{i}.png" for i in few.df.id]
    for file, image in zip(files, few.array()):
        Image.fromarray(image).save(file)
    on_disk = few.replace(images=files)
    faces = FaceRefiner(64).refine(on_disk)
    assert not faces.in_memory() and faces.shape() == (24, 64, 64)
    np.testing.assert_array_equal(faces.batch([3, 1]), FaceRefiner(64).refine(few).array()[[3, 1]])
    crop = faces._images[5]
    assert str(crop) != str(FaceRefiner(64, margin=0.2).refine(on_disk)._images[5])   # another crop is another file to a cache
    np.testing.assert_array_equal(crop.cut(few.image(5)), FaceRefiner(64)(few.image(5)).crop)
    assert faces.fingerprint() == FaceRefiner(64).refine(few).fingerprint()


# ---- folds and trials ----

def test_a_few_images_of_every_class(large):
    few = capped(large, 60)
    assert len(few) == 60 and few.counts().drop(columns="all").to_numpy().min() >= 2
    assert set(few.df.id) <= set(large.df.id) and capped(large, 60).df.id.tolist() == few.df.id.tolist() != capped(large, 60, 1).df.id.tolist()
    assert len(capped(large, 10**6)) == len(large) and len(capped(large, 1)) == 21
    people = large.replace(df=large.df.assign(split="train", subject=np.arange(len(large)) % 30))
    assert capped(people, 140).df.groupby("label").subject.nunique().min() > 15
    with pytest.raises(ConfigError, match="images=0"):
        capped(large, 0)


def test_folds_that_cannot_be_are_refused_before_anything_is_fitted(large, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "fit_teachers", lambda *a, **k: pytest.fail("fitted"))
    preset = replace(TWO, data=replace(TWO.data, folds=5))
    with pytest.raises(DataError, match=r"images have no subject.*FER2013"):
        run(large.replace(df=large.df.drop(columns="subject")), replace(preset, data=replace(preset.data, folds_by="subject")),
            tmp_path / "a", show=False)
    sad = np.flatnonzero(large.df.label == "sad")
    alone = large.replace(df=large.df.assign(subject=""))
    for left, words in ((4, "class 'sad' has 4 images .* fewer than 5 folds"), (5, r"'sad' has 4 images.*and 5 are needed.*data.folds=null")):
        with pytest.raises(DataError, match=words) as e:
            run(alone.take(np.setdiff1d(np.arange(len(large)), sad[left:])), preset, tmp_path / "b", show=False)
        assert len(str(e.value)) < 400


def test_folds_part_persons_and_test_each_image_once(large):
    people = large.replace(df=large.df.assign(subject=(np.arange(len(large)) % 40).astype(str)))
    for by in (None, "subject"):
        parts = fold_parts(people, replace(TWO, data=replace(TWO.data, folds=4, folds_by=by)))
        tested = [i for part in parts for i in part.df.id[part.df.split == "test"]]
        assert sorted(tested) == sorted(people.df.id)
        for part in parts:
            assert not set(part.df.subject[part.df.split == "test"]) & set(part.df.subject[part.df.split == "train"])


def test_a_small_stand_in_of_the_first_paper_goes_the_whole_way(tmp_path, monkeypatch, capsys):
    """Smoke: KDEF's names, faces cut out, folds, per-emotion T, DeepFool; broken off in the second fold and taken up again."""
    root = kdef_tree(tmp_path / "KDEF", 12)
    monkeypatch.chdir(tmp_path)
    small = {"teachers": [{"network": "light", "size": 64, "epochs": 1, "bs": 16, "pretrained": False}], "student": {"epochs": 1, "bs": 16},
             "data": to_dict(replace(PRESETS["paper-dmc"].data, folds=2, near_duplicates=False)),
             "distillation": to_dict(tried(PRESETS["paper-dmc"], 1).distillation),
             "adversarial": {"attacks": ["deepfool"], "steps": 1, "fit": {"epochs": 1, "bs": 16}},
             "evaluation": {"eps": [0, 0.03], "steps": 1, "n": 6}}
    Path("small.json").write_text(json.dumps(small))
    args = ["run", "--data", "KDEF", "--config", "small.json", "--new-weights", "--images", "77", "--out", "out", "--quiet"]
    whole, calls = pipeline.fit_students, []

    def broken(*a, **k):
        calls.append(1)
        if len(calls) == 2:
            raise OSError("power cut")
        return whole(*a, **k)

    monkeypatch.setattr(pipeline.RunResults, "sections", lambda self: [])   # figures take most of the time
    monkeypatch.setattr(pipeline, "fit_students", broken)
    assert main(args) == 2 and [p.name for p in Path("out.work").glob("fold-?")] == ["fold-0"]
    assert main(args) == 0 and len(calls) == 3
    said = capsys.readouterr().out
    assert "a trial, not run on the data: 77 of 84 images, new weights" in said
    summary = pd.read_csv("out/summary.csv")
    clean = summary[summary.attack == "none"]
    assert set(clean.folds) == {2} and "HyFER, EADD + adversarial" in set(summary.model) and "deepfool" in set(summary.attack)
    both = pd.read_csv("out/folds.csv")
    one = both[(both.model == "HyFER, EADD") & (both.metric == "accuracy") & (both.attack == "none") & (both.subset == "all")]
    row = summary[(summary.model == "HyFER, EADD") & (summary.metric == "accuracy") & (summary.attack == "none") & (summary.subset == "all")]
    assert np.isclose(row["mean"].iloc[0], one.value.mean()) and np.isclose(row.sd.iloc[0], one.value.std())
    assert "not run on the data" in Path("out/report.html").read_text() and "not run on the data" in Path("out/fold-1/report.html").read_text()
    assert json.loads(Path("out/config.json").read_text())["trial"].startswith("77 of 84 images")
    weights = pd.read_csv("out/fold-0/teacher_weights.csv")
    assert set(weights["T"]) == {3.0} and not list(Path().glob("*.work"))


# ---- before it starts ----

def test_what_is_stored_is_what_is_counted():
    for key in (("light", 48, 1), ("paper", 224, 1), ("paper", 224, 3), ("resnet18", 48, 3), ("efficientnet_lite0", 64, 3), ("mobilevit_s", 256, 3)):
        assert replace(plan.COUNTED[key], rate=None) == plan.count(*key), key


@pytest.mark.slow
@pytest.mark.parametrize("key", plan.COUNTED)
def test_all_that_is_stored_is_what_is_counted(key):
    assert replace(plan.COUNTED[key], rate=None) == plan.count(*key)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_a_stored_cost(name):
    preset = PRESETS[name]
    for f in (preset.student, *preset.teachers):
        assert any((f.network, f.size, c) in plan.COUNTED for c in (1, 3)), f.network


def test_passes_are_those_of_a_loop():
    n, preset = plan.Images(train=100, shown=130, valid=10, test=40, times=5), tried(PRESETS["paper-dmc"], 3)
    passes = {p.name: p.passes for p in plan.parts_of(preset, n)}
    assert passes["teacher davit_b"] == 5 * sum(3 * 130 + 10 for _ in range(3))
    assert passes["its logits, 3 views"] == 5 * (3 * (130 + 10) + 40)
    attack = (3 + 3 * 10 + 3 * (1 + 2 * 7)) / 3
    assert np.isclose(passes["student, adversarial"], 5 * 3 * (130 * (3 + 0.5 * attack) + 10))
    steps = {p.name: p.steps for p in plan.parts_of(preset, n)}
    assert steps["student, EADD"] == 5 * 3 * (130 // 16)


def test_a_plan_of_a_data_set_loads_no_fastai(tmp_path):
    """Printed in seconds: nothing that takes long to import, nothing counted anew."""
    root = kdef_tree(tmp_path / "KDEF", 7)
    code = ("import sys; from fer_nb.cli import main; "
            f"assert main(['run', '--preset', 'paper-dmc', '--data', {str(root)!r}, '--dry-run', '--out', 'x']) == 0; "
            "print([m for m in ('fastai', 'timm') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd=tmp_path, env=dict(os.environ))
    lines = done.stdout.splitlines()
    assert lines[-1] == "[]" and lines[-2] == "nothing was run", done.stderr[-500:]
    for words in ("student.bs                 16", "[4] batch size of 16", "[Eq. 3] T_e, by emotion", "49 images: 5 folds of", "teacher crossvit_18",
                  "hours, a card", "memory:", "disk:", "(values are open: 3 for each)"):
        assert words in done.stdout, words
    assert not (tmp_path / "x").exists()


def test_changes_stand_beside_the_papers_word(tmp_path, capsys, monkeypatch):
    root = rafdb_tree(tmp_path / "RAF-DB", 8)
    monkeypatch.chdir(tmp_path)
    assert main(["run", "--preset", "paper-sqs", "--data", str(root), "--set", "student.bs=8", "--epochs", "2", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "student.bs                 8 " in said and "as the paper: 64" in said and "as the paper: 50" in said and "5 seeds of" in said


def test_timed_instead(tmp_path, capsys, monkeypatch):
    root = rafdb_tree(tmp_path / "RAF-DB", 8)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan.measured_rates, "__defaults__", (0.3, plan.measured_rates.__defaults__[1]))
    assert main(["run", "--preset", "tiny", "--data", str(root), "--set", "teachers=[]", "--measure"]) == 0
    assert "timed here" in capsys.readouterr().out


def test_what_does_not_fit_is_said_before_it_starts(tmp_path, capsys, monkeypatch):
    root = rafdb_tree(tmp_path / "RAF-DB", 8)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan, "available", lambda device: (12 * 10**9, "a small card"))
    monkeypatch.setattr(pipeline, "run", lambda *a, **k: pytest.fail("started"))
    assert main(["run", "--preset", "paper-sqs", "--data", str(root), "--quiet"]) == 2
    said = capsys.readouterr().err
    assert "SQSNet: about 4" in said and "12.0 GB are free on a small card" in said and "a batch of" in said and "--anyway" in said
    n = plan.Images(10, 10, 1, 1)
    plan.need_memory(PRESETS["paper-dmc"], n, (9 * 10**9, "a card"))
    with pytest.raises(ConfigError, match="teacher davit_b: about 8.0 GB for batches of 16 at 224 px, and 4.0 GB"):
        plan.need_memory(PRESETS["paper-dmc"], n, (4 * 10**9, "a card"))


# ---- weights by hand, sizes ----

@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr(models, "reachable", lambda url: False)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *a, **k: None)
    monkeypatch.setenv("FER_NB_WEIGHTS", str(tmp_path / "weights"))
    (tmp_path / "weights").mkdir()
    return tmp_path / "weights"


def test_all_weights_that_cannot_be_had_are_named_at_once(offline, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "prepare", lambda *a, **k: pytest.fail("the data were looked at"))
    with pytest.raises(DownloadError) as e:
        run(make_faces(60, seed=0)[0], "paper-dmc", tmp_path / "out", show=False)
    for words in ("3 networks", "crossvit_18_240.in1k.safetensors from https://huggingface.co/timm/crossvit_18_240.in1k/resolve/main/model.safetensors",
                  "davit_base.msft_in1k.safetensors", str(offline), "--weights-dir", "--new-weights"):
        assert words in str(e.value), words
    with pytest.raises(DownloadError, match="no connection.*Fetch https://huggingface.co/timm/resnet18.a1_in1k.*put it as resnet18.a1_in1k"):
        models.create_teacher("resnet18")


def test_a_file_that_was_put_there_is_used(offline):
    import timm
    import torch
    from safetensors.torch import save_file
    torch.manual_seed(3)
    net = timm.create_model("resnet18", num_classes=1000)
    save_file(net.state_dict(), offline / "resnet18.a1_in1k.safetensors")
    models.need_weights(["resnet18"])
    teacher = models.create_teacher("resnet18", 7)
    assert torch.equal(teacher.net.conv1.weight, net.conv1.weight) and teacher.weights == "resnet18.a1_in1k"
    (offline / "resnet18.a1_in1k.safetensors").write_bytes(b"something else")
    with pytest.raises(DownloadError, match="resnet18.a1_in1k.safetensors: not the weights resnet18.a1_in1k.*huggingface.co.* expected"):
        models.create_teacher("resnet18", 7)


def test_no_weights_are_asked_for_that_are_not_needed(offline):
    models.need_weights(["light", "paper", "light_64", "geometry", "annotators", "runs/a/student.safetensors", "efficientnet_lite0"])
    pipeline.need_networks(tried(PRESETS["paper-dmc"], new_weights=True))


@pytest.mark.parametrize("network, size, right", [("crossvit_18", 224, 240), ("maxvit_s", 240, 224), ("convit_s", 225, 224)])
def test_a_size_that_does_not_divide_is_refused_before_the_data_are_looked_at(network, size, right, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "prepare", lambda *a, **k: pytest.fail("the data were looked at"))
    preset = replace(TINY, teachers=(*TINY.teachers, Fit(network, size, pretrained=False)))
    with pytest.raises(ConfigError, match=f"images of {size} px.*trained at {right} px, which it takes"):
        run(make_faces(60, seed=0)[0], preset, tmp_path / "out", show=False)


# ---- whole, at full size ----

@pytest.mark.slow
def test_the_first_paper_runs_an_epoch_on_drawn_faces(tmp_path, monkeypatch):
    kdef_tree(tmp_path / "KDEF", 14, 320)
    monkeypatch.chdir(tmp_path)
    few = ["--images", "84", "--set", "data.folds=2", "--set", "data.near_duplicates=false"]       # each fold has all phases
    assert main(["run", "--preset", "paper-dmc", "--data", "KDEF", "--epochs", "1", "--new-weights", *few, "--out", "out"]) == 0
    assert "not run on the data" in Path("out/report.html").read_text() and set(pd.read_csv("out/summary.csv").folds) == {2}


@pytest.mark.slow
def test_the_first_paper_takes_other_data(tmp_path, monkeypatch):
    rafdb_tree(tmp_path / "RAF-DB", 12)
    monkeypatch.chdir(tmp_path)
    assert main(["run", "--preset", "paper-dmc", "--data", "RAF-DB", "--epochs", "1", "--new-weights", "--images", "70", "--set", "data.folds=null",
                 "--out", "out"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["RAF-DB", "AffectNet"])
def test_the_second_paper_runs_an_epoch_on_drawn_faces(name, tmp_path, monkeypatch, capsys):
    if name == "RAF-DB":
        rafdb_tree(tmp_path / name, 20)
    else:
        affectnet_tree(tmp_path / name, 6)
    monkeypatch.chdir(tmp_path)
    few = ["--images", "70", "--set", "evaluation.seeds=1", "--set", "student.bs=4", "--set", "data.near_duplicates=false"]
    assert main(["run", "--preset", "paper-sqs", "--data", name, "--epochs", "1", "--new-weights", *few, "--out", "out"]) == 0
    said = capsys.readouterr().out
    assert "not run on the data" in said and name in said and Path("out/sqs.csv").is_file()
