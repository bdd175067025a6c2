"""The studies of the first paper's tables: resumable, paired, and without a leak."""
import json
from dataclasses import asdict, replace
from itertools import product

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import fer_nb.hyfer_studies as hyfer_studies
from fer_nb.core import EMOTIONS, DataError
from fer_nb.data import VOTE_COLUMNS, FERData, read_kdef
from fer_nb.hyfer_studies import (FACES, SHIP, STUDY, distillation_gains, distillation_study, distillation_table, kfold_study,
                                kfold_table, teacher_gains, teacher_study, train_shipped, transfer_study, transfer_table,
                                variant_study)
from fer_nb.loaders import as_split
from fer_nb.models import HYFER, HyFER, weights_digest
from fer_nb.pipeline import Preset, TeacherSpec, make_splits
from fer_nb.synth import make_faces
from fer_nb.train import CheckpointError

TINY = replace(STUDY, teachers=(TeacherSpec("resnet18", 32, 1, 1e-3, False),), epochs=1, views=1, adv_epochs=1, adv_steps=1,
               near_duplicates=False)


@pytest.fixture(scope="module")
def faces():
    return make_faces(300, seed=0, defects=None, balance="uniform")[0]


def made_up(values):
    """Runs of a study: (arm, teachers, seed) -> accuracy."""
    rows = [{"arm": a, "model": "HyFER", "teachers": n, "seed": s, "split": "valid", "subset": "all", "metric": "accuracy",
             "value": v, "n": 10} for (a, n, s), v in values.items()]
    return pd.DataFrame(rows)


def test_gains_are_paired_by_seed():
    rng = np.random.default_rng(0)
    seed_effect = rng.normal(0, 0.1, 5)
    runs = made_up({(a, n, s): 0.5 + seed_effect[s] + 0.02 * n + 0.05 * (a == "after") + rng.normal(0, 1e-4)
                    for a in ("before", "after") for n in (0, 1) for s in range(5)})
    gains = distillation_gains(runs.sample(frac=1, random_state=1))
    assert gains.loc["after: 1 teacher against none", "difference"] == pytest.approx(2, abs=0.05)
    assert gains.loc["no teacher: after against before", "difference"] == pytest.approx(5, abs=0.05)
    assert (gains.p_holm < 0.01).all() and (gains.p_holm >= gains.p).all() and (gains.seeds == 5).all()


def test_the_table_has_mean_and_sd_beside_the_paper():
    runs = made_up({("before", 0, 0): .5, ("before", 0, 1): .6, ("after", 0, 0): .7, ("after", 0, 1): .7})
    table = distillation_table(runs)
    assert table.loc["HyFER, no teacher"].tolist() == ["55.00 ± 7.07", "70.00 ± 0.00", 51.52, 61.96]


def test_a_study_goes_on_where_it_was_broken_off(faces, tmp_path, monkeypatch):
    whole = distillation_study(faces, TINY, (0,), tmp_path / "whole")
    real, said = hyfer_studies.fit_student, []

    def broken(*args, **kwargs):
        if len(said) == 4:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(hyfer_studies, "fit_student", broken)
    with pytest.raises(KeyboardInterrupt):
        distillation_study(faces, TINY, (0,), tmp_path / "b", said.append)
    monkeypatch.setattr(hyfer_studies, "fit_student", real)
    said.clear()
    again = distillation_study(faces, TINY, (0,), tmp_path / "b", said.append)
    assert not any(text.startswith("before: 0 teachers") for text in said)
    pd.testing.assert_frame_equal(again, whole, check_dtype=False)
    with pytest.raises(CheckpointError, match="work of another run"):
        distillation_study(faces, replace(TINY, lr=1.0), (0,), tmp_path / "b")


def test_before_trains_on_what_came_and_after_does_not():
    ds, planted = make_faces(600, seed=1)
    before = make_splits(ds, replace(TINY, clean=False, targets=None))
    after = make_splits(ds, TINY)
    came = ds.df.id[ds.df.split == "train"]
    assert set(before.train.df.id) | set(before.select.df.id) == set(came)
    kept = set(after.train.df.source) | set(after.select.df.id)
    assert kept < set(came)
    for splits in (before, after):
        assert not set(splits.train.df.group) & set(splits.valid.df.group)
        assert splits.test.df.id.tolist() == ds.df.id[ds.df.split != "train"].tolist()


def test_no_fold_tests_on_what_any_of_its_networks_has_seen(faces, tmp_path, monkeypatch):
    seen, real = [], hyfer_studies.make_splits

    def watched(ds, preset, seed=0):
        splits = real(ds, preset, seed)
        seen.append((set(splits.train.df.source) | set(splits.valid.df.id), set(splits.test.df.id)))
        return splits

    monkeypatch.setattr(hyfer_studies, "make_splits", watched)
    runs = kfold_study(faces, TINY, 2, out=tmp_path)
    assert len(seen) == 2 and all(not trained & tested for trained, tested in seen)
    assert set.union(*(tested for _, tested in seen)) == set(faces.df.id)
    assert kfold_table(runs).shape == (3, 4)
    assert kfold_study(faces, TINY, 2, out=tmp_path).equals(kfold_study(faces, TINY, 2, out=tmp_path)) and len(seen) == 2
    with pytest.raises(CheckpointError, match="seed"):
        kfold_study(faces, TINY, 2, 1, out=tmp_path)


def test_folds_of_people_keep_a_subject_on_one_side(tmp_path, monkeypatch):
    ds = make_faces(300, seed=0, defects=None, balance="uniform")[0]
    ds = FERData(ds.df.assign(subject=[f"s{i % 12}" for i in range(len(ds))]), ds.array(), ds.labels, ds.name)
    sides, real = [], hyfer_studies._fold
    monkeypatch.setattr(hyfer_studies, "_fold", lambda one, *args: sides.append(one) or pd.DataFrame({"model": ["m"]}))
    kfold_study(ds, TINY, 3, protocol="subject", out=tmp_path)
    for one in sides:
        train, test = (set(one.df.subject[one.df.split == s]) for s in ("train", "test"))
        assert test and not train & test


@pytest.fixture(scope="module")
def kdef(tmp_path_factory):
    "KDEF's tree with drawn faces: 12 people in two series, seven expressions from two sides, colour, no splits."
    root, people = tmp_path_factory.mktemp("kdef"), [f"{sex}{k:02}" for sex in "FM" for k in range(1, 7)]
    drawn = make_faces(700, seed=3, defects=None, balance="uniform")[0]
    codes = dict(zip(("AF", "AN", "DI", "HA", "NE", "SA", "SU"), ("fear", "angry", "disgust", "happy", "neutral", "sad", "surprise")))
    left = {e: iter(drawn.where(label=e).array()) for e in EMOTIONS}
    for person, series, (code, label), angle in product(people, "AB", codes.items(), ("S", "HL")):
        path = root / f"KDEF/{series}{person}/{series}{person}{code}{angle}.JPG"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(next(left[label])).convert("RGB").resize((140, 190)).save(path, quality=92)
    return read_kdef(root, "all")


def test_kdef_goes_the_same_way(kdef, tmp_path):
    assert len(kdef) == 336 and kdef.df.subject.nunique() == 12 and set(kdef.df.split) == {"train"}
    small = replace(TINY, teachers=TINY.teachers[:1], clean=False)
    runs = kfold_study(kdef, small, 3, protocol="subject", out=tmp_path / "k")
    tested = runs[(runs.metric == "accuracy") & (runs.model == "HyFER, EADD") & (runs.subset == "all")]
    assert tested.n.sum() == 336 and len(tested) == 3
    assert kfold_table(runs).shape[0] == 3
    apart = kdef.df.subject.isin(["F01", "M01"]).to_numpy()
    whole = as_split(kdef, (np.flatnonzero(~apart), np.flatnonzero(apart)))
    both = distillation_study(whole, small, (0,), tmp_path / "d")
    assert set(both.arm) == {"before", "after"} and both[(both.model == "HyFER") & (both.metric == "accuracy")].n.max() == 56


def test_the_shipped_run_leaves_weights_that_load_and_a_card_that_says_how(faces, tmp_path):
    out = train_shipped(faces, tmp_path / "s", TINY)
    network = HyFER.from_pretrained(folder=out)
    record = network.card["record"]
    assert record["temperature"] > 0 and record["data"]["fingerprint"] == faces.fingerprint() and record["settings"]["epochs"] == 1
    results = pd.read_csv(out / "results.csv")
    mine = results[(results.model == "hyfer") & (results.metric == "accuracy") & (results.subset == "all") & (results.split == "valid")]
    kept = [r for r in record["results"] if r["metric"] == "accuracy" and r["subset"] == "all" and r["split"] == "valid"]
    assert kept[0]["value"] == pytest.approx(mine.value.item(), abs=1e-4)
    assert HyFER.from_pretrained("hyfer_robust", folder=out).labels == network.labels
    assert [p.name for p in tmp_path.iterdir()] == ["s", "s.work"]
    with pytest.raises(DataError, match="exists"):
        train_shipped(faces, out, TINY)


@pytest.fixture(scope="module")
def asked(faces):
    """The faces with what ten people said about each."""
    shown = np.array([VOTE_COLUMNS.index(f"vote_{e}") for e in faces.df.label])
    votes = np.random.default_rng(0).multinomial(10, 0.3 * np.eye(10)[shown] + 0.07)
    return FERData(faces.df.assign(**dict(zip(VOTE_COLUMNS, votes.T))), faces.array(), faces.labels, faces.name)


def test_annotators_are_a_teacher_by_name(faces, asked, tmp_path):
    preset = replace(TINY, teachers=(*TINY.teachers, TeacherSpec("annotators")))
    out = train_shipped(asked, tmp_path / "s", preset)
    results = pd.read_csv(out / "results.csv").query("metric == 'accuracy' and subset == 'all' and split == 'valid'")
    assert results.set_index("model").value["teacher annotators"] > 0.7
    assert set(pd.read_csv(out / "teacher_weights.csv").teacher) == {"resnet18", "annotators"}
    with pytest.raises(DataError, match="no column 'vote_neutral'"):
        train_shipped(faces, tmp_path / "without", preset)
    assert not (tmp_path / "without").exists()


def test_variants_share_everything_but_the_network(faces, tmp_path, monkeypatch):
    fits = []
    monkeypatch.setattr(hyfer_studies, "fit_student", lambda splits, preset, kept, seed, work: fits.append((splits, preset, kept, seed)) or [None])
    monkeypatch.setattr(hyfer_studies, "_rows", lambda *_: pd.DataFrame({"value": [1.0]}))
    variant_study(faces, ("light", "light_rep"), TINY, (0, 1), tmp_path)
    assert [(p.student, s) for _, p, _, s in fits] == [("light", 0), ("light_rep", 0), ("light", 1), ("light_rep", 1)]
    assert len({id(splits) for splits, *_ in fits}) == 1 and all(kept == () for _, _, kept, _ in fits)


def test_teachers_are_compared_on_the_same_images_and_finished_ones_are_not_fitted_again(faces, tmp_path, monkeypatch):
    specs = tuple(TeacherSpec("resnet18", 32, 1, lr, pretrained=False, bs=32) for lr in (1e-3, 2e-3))
    real, fits = hyfer_studies.fit_teacher, []

    def watched(k, splits, preset, seed, checkpoint):
        fits.append((k, seed, id(splits)))
        return real(k, splits, preset, seed, checkpoint)
    monkeypatch.setattr(hyfer_studies, "fit_teacher", watched)
    preset = replace(TINY, teachers=specs)
    runs = teacher_study(faces, preset, (0, 1), tmp_path)
    assert [(k, s) for k, s, _ in fits] == [(0, 0), (1, 0), (0, 1), (1, 1)] and len({p for *_, p in fits}) == 1
    again = teacher_study(faces, preset, (0, 1), tmp_path)
    assert len(fits) == 4
    pd.testing.assert_frame_equal(again, runs, check_dtype=False)
    assert set(runs.start) == {"new weights"}
    accuracy = runs[(runs.metric == "accuracy") & (runs.subset == "all") & (runs.split == "valid")].value
    table = teacher_gains(runs)
    assert table["accuracy", "mean"].item() == pytest.approx(100 * accuracy.mean(), abs=0.06)
    assert table["accuracy", "std"].item() == pytest.approx(100 * accuracy.std(), abs=0.06)
    with pytest.raises(CheckpointError, match="work of another run"):
        teacher_study(faces, TINY, (0,), tmp_path)


PEOPLE = replace(TINY, teachers=(TeacherSpec("annotators"),))


def test_arms_of_a_transfer_share_everything_but_weights_and_votes(asked, tmp_path, monkeypatch):
    fits, start = [], HyFER(8, 1, "light")
    def fit(splits, preset, kept, seed, work, start):
        fits.append((id(splits), preset, [k.name for k in kept], seed, start))
        return [None]
    monkeypatch.setattr(hyfer_studies, "fit_student", fit)
    monkeypatch.setattr(hyfer_studies, "_rows", lambda *_: pd.DataFrame({"value": [1.0]}))
    transfer_study(asked, start, PEOPLE, (0, 1), tmp_path)
    assert [(names, seed, net) for _, _, names, seed, net in fits] == [
        (names, seed, net) for seed in (0, 1) for net in (None, start) for names in ([], ["annotators"])]
    assert len({(splits, preset) for splits, preset, *_ in fits}) == 1


def test_a_transfer_goes_on_and_leaves_the_network_alone(asked, tmp_path, monkeypatch):
    start = HyFER(8, 1, "light").requires_grad_(False)  # other labels than the images'
    before, said = weights_digest(start), []
    runs = transfer_study(asked, start, PEOPLE, (0,), tmp_path, said.append)
    assert weights_digest(start) == before and start.num_classes == 8 and not any(p.requires_grad for p in start.parameters())
    assert len(transfer_table(runs)) == len(said) == 4
    assert set(zip(runs.weights, runs.votes)) == {("new", False), ("new", True), ("trained", False), ("trained", True)}
    monkeypatch.setattr(hyfer_studies, "fit_student", None)
    pd.testing.assert_frame_equal(transfer_study(asked, start, PEOPLE, (0,), tmp_path), runs, check_dtype=False)
    with pytest.raises(CheckpointError, match="start"):
        transfer_study(asked, HyFER(8, 1, "light"), PEOPLE, (0,), tmp_path)
    with pytest.raises(DataError, match="no column 'vote_"):
        transfer_study(make_faces(40)[0], start, PEOPLE, (0,), tmp_path / "b")


def test_budgets_name_networks_that_exist():
    for preset in (STUDY, SHIP, FACES):
        assert preset.student in HYFER and len(preset.teachers) >= 2


def test_the_card_in_the_package_tells_of_the_committed_settings():
    def told(value):
        if isinstance(value, list):
            return [told(v) for v in value]
        return {k: told(v) for k, v in value.items() if v is not None} if isinstance(value, dict) else value

    def full(settings):
        """Settings that came after the card was written are what they were before they could be set."""
        teachers = [{"mix": TeacherSpec.mix} | spec for spec in settings["teachers"]]
        settings = {"keep": Preset.keep} | settings | {"teachers": teachers}
        return settings | {"earlier": settings["earlier"] and full(settings["earlier"])}

    record = HyFER.from_pretrained().card["record"]
    assert told(full(record["settings"])) == told(json.loads(json.dumps(asdict(SHIP))))
    assert record["command"] == "fer-nb ship --data fer2013.csv --votes fer2013new.csv" and record["seed"] == 0
