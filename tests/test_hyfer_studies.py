"""The studies of the first paper's tables: resumable, paired, and without a leak."""
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import fer_nb.hyfer_studies as hyfer_studies
from fer_nb.cli import main
from fer_nb.config import Adversarial, Augment, Data, Distillation, Evaluation, Fit, to_dict
from fer_nb.core import EMOTIONS, ConfigError, DataError
from fer_nb.data import VOTE_COLUMNS, read_kdef, resized
from fer_nb.evaluate import robust_curve
from fer_nb.experiment import comparisons
from fer_nb.hyfer_studies import (PHASE2_ARMS, SHIP, STUDY, TRANSFER, distillation_gains, distillation_study,
                                  distillation_table, ensemble_logits, harden_study, harden_table, kfold_study,
                                  kfold_table, _splits_without_votes,
                                  train_shipped, teacher_study, transfer_study, transfer_table, variant_study)
from fer_nb.loaders import as_split, make_splits
from fer_nb.models import HYFER, HyFER, load_hyfer, load_teacher, weights_digest
from fer_nb.store import StoreError, read_table
from fer_nb.synth import fer2013_folder, make_faces

TINY = replace(STUDY, teachers=(Fit("lcnet_050", 32, False, epochs=1, lr=1e-3, bs=64),), student=Fit(epochs=1),
               data=Data(near_duplicates=False), distillation=Distillation(views=1),
               adversarial=Adversarial(steps=1, fit=Fit(epochs=1, lr=1e-3, bs=32)))   # the first batch is watched: it is small


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
    assert distillation_gains(runs.query("arm == 'before' and teachers == 0")).empty
    steps = distillation_gains(runs.query("teachers == 0").replace({"arm": {"after": "cleaned"}}))   # a part of the pipeline alone
    assert steps.index.tolist() == ["no teacher: cleaned against before"] and steps.difference.item() == pytest.approx(5, abs=0.05)


def test_the_table_has_mean_and_sd_beside_the_paper():
    runs = made_up({("before", 0, 0): .5, ("before", 0, 1): .6, ("after", 0, 0): .7, ("after", 0, 1): .7})
    table = distillation_table(runs.assign(dataset="fer2013"))
    assert table.loc["HyFER, no teacher"].tolist() == ["55.00 ± 7.07", "70.00 ± 0.00", 51.52, 61.96]


@pytest.mark.parametrize("dataset, metric, shown", [
    ("kdef", "accuracy", ["55.00 ± 7.07", 82.99]), ("kdef", "loss", ["0.550 ± 0.071", 1.944]), ("fer2013", "loss", ["0.550 ± 0.071", 3.503]),
    ("fer2013", "macro_f1", ["55.00 ± 7.07"]), ("rafdb", "accuracy", ["55.00 ± 7.07"]), (None, "accuracy", ["55.00 ± 7.07"])])
def test_the_papers_figures_stand_beside_their_own_data_and_metric(dataset, metric, shown):
    runs = made_up({("before", 0, 0): .5, ("before", 0, 1): .6, ("after", 0, 0): .7, ("after", 0, 1): .7}).assign(metric=metric)
    table = distillation_table(runs if dataset is None else runs.assign(dataset=dataset), metric=metric)
    assert table.filter(like="before").loc["HyFER, no teacher"].tolist() == shown


def test_a_study_goes_on_where_it_was_broken_off(faces, tmp_path, monkeypatch):
    whole = distillation_study(faces, TINY, (0,), tmp_path / "whole")
    real, lines = hyfer_studies.fit_student, []

    def broken(*args, **kwargs):
        if len(lines) == 4:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(hyfer_studies, "fit_student", broken)
    with pytest.raises(KeyboardInterrupt):
        distillation_study(faces, TINY, (0,), tmp_path / "b", lines.append)
    monkeypatch.setattr(hyfer_studies, "fit_student", real)
    assert lines[-1].startswith("before, teachers: 1, seed 0")
    lines.clear()
    again = distillation_study(faces, TINY, (0,), tmp_path / "b", lines.append)
    assert not any(text.startswith("before, teachers: 0") for text in lines)
    pd.testing.assert_frame_equal(again, whole, check_dtype=False)
    counted = comparisons(tmp_path / "b")
    assert set(counted.part) == {"before", "after"} and {"0, HyFER", "1, HyFER", "teacher lcnet_050"} == set(counted.arm)
    with pytest.raises(StoreError, match="settings.student.lr is 0.003 there and 1.0 here"):
        distillation_study(faces, replace(TINY, student=Fit(epochs=1, lr=1.0)), (0,), tmp_path / "b")


def test_an_arm_whose_students_have_no_teacher_fits_none(faces, tmp_path):
    """And its student is the one that the study fits beside taught ones."""
    alone, both = (distillation_study(faces, TINY, (0,), tmp_path / str(len(n)), arms={"before": n}) for n in ([0], [0, 1]))
    assert set(alone.model) == {"HyFER"} and not list((tmp_path / "1").rglob("teacher-*")) and list((tmp_path / "2").rglob("teacher-*"))
    beside = both[(both.model == "HyFER") & (both.teachers == 0)]
    pd.testing.assert_frame_equal(alone, beside.reset_index(drop=True), check_dtype=False)


def test_before_trains_on_what_came_and_after_does_not():
    ds, planted = make_faces(600, seed=1)
    before = make_splits(ds, replace(TINY.data, clean=False, targets=None))
    after = make_splits(ds, TINY.data)
    came = ds.df.id[ds.df.split == "train"]
    assert set(before.train.df.id) | set(before.valid.df.id) == set(came)
    kept = set(after.train.df.source) | set(after.valid.df.id)
    assert kept < set(came)
    for splits in (before, after):
        assert not set(splits.train.df.group) & set(splits.valid.df.group)
        assert splits.test.df.id.tolist() == ds.df.id[ds.df.split != "train"].tolist()


def test_no_fold_tests_on_what_any_of_its_networks_has_seen(faces, tmp_path, monkeypatch):
    seen, real = [], hyfer_studies.prepare

    def watched(ds, preset, seed=0):
        splits = real(ds, preset, seed)
        seen.append((set(splits.train.df.source) | set(splits.valid.df.id), set(splits.test.df.id)))
        return splits

    monkeypatch.setattr(hyfer_studies, "prepare", watched)
    runs = kfold_study(faces, TINY, 2, out=tmp_path)
    assert len(seen) == 2 and all(not trained & tested for trained, tested in seen)
    assert set.union(*(tested for _, tested in seen)) == set(faces.df.id)
    assert kfold_table(runs).shape == (3, 4)
    pd.testing.assert_frame_equal(kfold_study(faces, TINY, 2, out=tmp_path), runs, check_dtype=False)
    assert len(seen) == 2
    with pytest.raises(StoreError, match="seed"):
        kfold_study(faces, TINY, 2, 1, out=tmp_path)


def test_folds_of_other_persons_are_no_continuation(tmp_path, monkeypatch):
    """Pixels, ids, labels and splits are the same; who is in the images decides the folds all the same."""
    ds = make_faces(300, seed=0, defects=None, balance="uniform")[0]
    monkeypatch.setattr(hyfer_studies, "grid", lambda *given: pd.DataFrame(columns=["protocol", "seed"]))
    monkeypatch.setattr(hyfer_studies, "prepare", None)
    kfold_study(ds.assign(subject=[f"s{i % 12}" for i in range(300)]), TINY, 3, protocol="subject", out=tmp_path / "k")
    with pytest.raises(StoreError, match="folds"):
        kfold_study(ds.assign(subject=[f"s{i % 13}" for i in range(300)]), TINY, 3, protocol="subject", out=tmp_path / "k")
    monkeypatch.setattr(hyfer_studies, "grid", lambda *given: pd.DataFrame(columns=["dataset", "teacher", "px", "fold", "split", "subset", "metric", "value", "n"]))
    one = [Fit("lcnet_050", 32, pretrained=False)]
    teacher_study(ds, one, TINY, 3, out=tmp_path / "t")
    with pytest.raises(StoreError, match="size"):
        teacher_study(ds, one, replace(TINY, student=replace(TINY.student, size=24)), 3, out=tmp_path / "t")
    with pytest.raises(ConfigError, match="different networks"):
        teacher_study(ds, [*one, replace(one[0], size=48)], TINY, 3, out=tmp_path / "u")
    cut, larger = replace(TINY, data=replace(TINY.data, refine="keep")), Fit("resnet18", 64, pretrained=False)
    teacher_study(ds, one, cut, 3, out=tmp_path / "c")
    teacher_study(ds, [*one, replace(larger, size=32)], cut, 3, out=tmp_path / "c")
    with pytest.raises(StoreError, match="cut for is 48 there and 64 here|cut for is 32 there and 64 here"):   # what was fitted saw other cuts
        teacher_study(ds, [*one, larger], cut, 3, out=tmp_path / "c")


def test_a_file_that_settings_name_counts_by_what_is_in_it(tmp_path):
    held, other = tmp_path / "parts.csv", tmp_path / "there/parts.csv"
    held.write_text("id,part\n1,held out\n")
    of = lambda file: hyfer_studies._settings(replace(TINY, data=replace(TINY.data, held=str(file))))   # noqa: E731
    first = of(held)
    other.parent.mkdir()
    other.write_bytes(held.read_bytes())
    assert of(other) == first
    held.write_text("id,part\n2,held out\n")
    assert of(held) != first and hyfer_studies._settings(TINY) == to_dict(TINY)
    (tmp_path / "x.safetensors").write_bytes(b"a")
    taught = replace(TINY, teachers=(Fit(str(tmp_path / "x.safetensors")),))
    first = hyfer_studies._settings(taught)
    (tmp_path / "x.safetensors").write_bytes(b"b")
    assert hyfer_studies._settings(taught) != first


def test_folds_without_phase_2_train_none(faces, tmp_path):
    runs = kfold_study(faces, replace(TINY, adversarial=None), 2, out=tmp_path)
    assert "HyFER, EADD" in set(runs.model) and not runs.model.str.contains("adversarial").any()
    with pytest.raises(ConfigError, match="adversarial=null"):
        kfold_study(faces, replace(TINY, adversarial=None), 2, out=tmp_path / "b", attacked=True)
    with pytest.raises(ConfigError, match="adversarial=null"):
        hyfer_studies.need_students(["hyfer_robust"], faces, replace(TINY, adversarial=None))


def test_folds_that_are_too_small_are_found_before_the_first_is_trained(tmp_path):
    with pytest.raises(DataError, match="leave too little of a class"):
        kfold_study(make_faces(42, seed=0, defects=None, balance="uniform")[0], TINY, 3, out=tmp_path)


@pytest.mark.parametrize("what, given", [("distillation", "adversarial.steps=3"), ("variants", "teachers=[]"), ("variants", "student.network=light")])
def test_settings_that_a_study_does_not_look_at_are_refused(what, given, tmp_path, capsys):
    drawn = fer2013_folder(210)
    assert main(["study", what, "--data", str(drawn / "fer2013.csv"), "--set", given, "--out", str(tmp_path / "o")]) == 2
    assert "this study has no use for it" in capsys.readouterr().err


def test_folds_of_people_keep_a_subject_on_one_side(tmp_path, monkeypatch):
    ds = make_faces(300, seed=0, defects=None, balance="uniform")[0]
    ds, sides = ds.assign(subject=[f"s{i % 12}" for i in range(len(ds))]), []

    def watched(ds, preset, seed):
        sides.append(ds)
        raise DataError("seen")
    monkeypatch.setattr(hyfer_studies, "prepare", watched)
    monkeypatch.setattr(hyfer_studies, "grid", lambda run, arms, seeds, store, over, say, folds: [
        pytest.raises(DataError, run, arms[0], seeds[0], fold) for fold in folds] and pd.DataFrame(columns=["protocol", "seed"]))
    kfold_study(ds, TINY, 3, protocol="subject", out=tmp_path)
    assert len(sides) == 3
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


@pytest.mark.slow  # the whole paper on drawn KDEF is in test_paper_presets
def test_kdef_goes_the_same_way(kdef, tmp_path):
    assert len(kdef) == 336 and kdef.df.subject.nunique() == 12 and set(kdef.df.split) == {"train"}
    small = replace(TINY, data=replace(TINY.data, clean=False))
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
    assert record["temperature"] > 0 and record["data"]["fingerprint"] == faces.fingerprint() and record["settings"]["student"]["epochs"] == 1
    results = pd.read_csv(out / "results.csv")
    mine = results[(results.model == "hyfer") & (results.metric == "accuracy") & (results.subset == "all") & (results.split == "valid")]
    stated = [r for r in record["results"] if r["metric"] == "accuracy" and r["subset"] == "all" and r["split"] == "valid"]
    assert stated[0]["value"] == pytest.approx(mine.value.item(), abs=1e-4)
    test = results[(results.model == "hyfer") & (results.metric == "accuracy") & (results.subset == "all") & (results.split == "test")]
    assert {r["measure"]: r["value"] for r in record["headline"]}["single"] == pytest.approx(test.value.item(), abs=1e-4)
    assert HyFER.from_pretrained("hyfer_robust", folder=out).labels == network.labels
    assert [p.name for p in tmp_path.iterdir()] == ["s", "s.work"]
    with pytest.raises(DataError, match="exists"):
        train_shipped(faces, out, TINY)


@pytest.fixture(scope="module")
def voted(faces):
    """The faces with ten people's votes about each."""
    shown = np.array([VOTE_COLUMNS.index(f"vote_{e}") for e in faces.df.label])
    votes = np.random.default_rng(0).multinomial(10, 0.3 * np.eye(10)[shown] + 0.07)
    return faces.assign(**dict(zip(VOTE_COLUMNS, votes.T)))


@pytest.mark.slow
def test_annotators_are_a_teacher_by_name(faces, voted, tmp_path):
    preset = replace(TINY, teachers=(*TINY.teachers, Fit("annotators")))
    out = train_shipped(voted, tmp_path / "s", preset)
    results = pd.read_csv(out / "results.csv").query("metric == 'accuracy' and subset == 'all' and split == 'valid'")
    assert results.set_index("model").value["teacher annotators"] > 0.7
    assert set(pd.read_csv(out / "teacher_weights.csv").teacher) == {"lcnet_050", "annotators"}
    with pytest.raises(DataError, match="no column 'vote_neutral'"):
        train_shipped(faces, tmp_path / "without", preset)
    assert not (tmp_path / "without").exists()


def test_a_folder_is_of_one_set_of_votes(faces, voted, tmp_path, monkeypatch):
    """A teacher may be these votes, and they judge: fits with others are not gone on with."""
    def stop(*args):
        raise KeyboardInterrupt
    monkeypatch.setattr(hyfer_studies.SharedParts, "student", stop)
    with pytest.raises(KeyboardInterrupt):
        hyfer_studies.setting_study(voted, {"more": ["student.epochs=2"]}, TINY, (0,), tmp_path)
    for other in (voted.assign(vote_sad=voted.df.vote_sad + 1), faces):
        with pytest.raises(StoreError, match="votes"):
            hyfer_studies.setting_study(other, {"more": ["student.epochs=2"]}, TINY, (0,), tmp_path)


def test_variants_share_everything_but_the_network(faces, tmp_path, monkeypatch):
    fits = []
    monkeypatch.setattr(hyfer_studies, "fit_student", lambda splits, preset, cached, seed, work: fits.append((splits, preset, cached, seed)) or [None])
    monkeypatch.setattr(hyfer_studies, "_rows", lambda *_: pd.DataFrame({"metric": ["accuracy"], "value": [1.0]}))
    variant_study(faces, ("light", "light_rep"), TINY, (0, 1), tmp_path)
    assert [(p.student.network, s) for _, p, _, s in fits] == [("light", 0), ("light_rep", 0), ("light", 1), ("light_rep", 1)]
    assert len({id(splits) for splits, *_ in fits}) == 1 and all(cached == () for _, _, cached, _ in fits)


def test_variants_are_told_apart_by_what_is_held_out(faces, tmp_path, monkeypatch):
    monkeypatch.setattr(hyfer_studies, "fit_student", lambda *_: [None])
    monkeypatch.setattr(hyfer_studies, "_rows", lambda *_: pd.DataFrame({"metric": ["accuracy"], "value": [1.0]}))
    ids, table = faces.where(split="train").df.id, tmp_path / "parts.csv"
    held = replace(TINY, data=replace(TINY.data, held=str(table)))
    pd.DataFrame({"id": ids[:30], "part": "held out"}).to_csv(table, index=False)
    variant_study(faces, ("light",), held, (0,), tmp_path / "v")
    pd.DataFrame({"id": ids[30:60], "part": "held out"}).to_csv(table, index=False)
    with pytest.raises(StoreError, match="held"):
        variant_study(faces, ("light",), held, (0,), tmp_path / "v")


PEOPLE = replace(TINY, teachers=(Fit("annotators"),))


def test_arms_of_a_transfer_share_everything_but_weights_and_votes(voted, tmp_path, monkeypatch):
    fits, start = [], HyFER(8, 1, "light")
    def fit(splits, preset, cached, seed, work, start):
        fits.append((id(splits), preset, [c.name for c in cached], seed, start))
        return [None]
    monkeypatch.setattr(hyfer_studies, "fit_student", fit)
    monkeypatch.setattr(hyfer_studies, "_rows", lambda *_: pd.DataFrame({"metric": ["accuracy"], "value": [1.0]}))
    transfer_study(voted, start, PEOPLE, (0, 1), tmp_path)
    assert [(names, seed, net) for _, _, names, seed, net in fits] == [
        (names, seed, net) for seed in (0, 1) for net in (None, start) for names in ([], ["annotators"])]
    assert len({(splits, preset) for splits, preset, *_ in fits}) == 1


def test_a_transfer_goes_on_and_leaves_the_network_alone(voted, tmp_path, monkeypatch):
    start = HyFER(8, 1, "light").requires_grad_(False)  # other labels than the images'
    before, lines = weights_digest(start), []
    runs = transfer_study(voted, start, PEOPLE, (0,), tmp_path, lines.append)
    assert weights_digest(start) == before and start.num_classes == 8 and not any(p.requires_grad for p in start.parameters())
    assert len(transfer_table(runs)) == sum("seed" in line for line in lines) == 4
    assert set(zip(runs.weights, runs.votes)) == {("new", False), ("new", True), ("trained", False), ("trained", True)}
    monkeypatch.setattr(hyfer_studies, "fit_student", None)
    pd.testing.assert_frame_equal(transfer_study(voted, start, PEOPLE, (0,), tmp_path), runs, check_dtype=False)
    with pytest.raises(StoreError, match="start"):
        transfer_study(voted, HyFER(8, 1, "light"), PEOPLE, (0,), tmp_path)
    with pytest.raises(DataError, match="no column 'vote_"):
        transfer_study(make_faces(40)[0], start, PEOPLE, (0,), tmp_path / "b")


def test_votes_stay_with_images_whose_source_is_no_image(voted):
    "Clips have names, and an original may have been taken out; copies that balancing makes have their image's votes."
    ds = voted.assign(source=[f"clip{k}" for k in range(len(voted))])
    splits = _splits_without_votes(ds, replace(TINY.data, targets=60))
    votes = ds.df.set_index("source")[list(VOTE_COLUMNS)]
    assert len(splits.train) > splits.train.sources().nunique()
    for part in (splits.train, splits.valid, splits.test):
        assert (part.df[list(VOTE_COLUMNS)].to_numpy() == votes.loc[part.sources()].to_numpy()).all()


@pytest.mark.parametrize("keep", ["best", "last"])
def test_a_transfer_asks_what_its_start_knows(voted, tmp_path, monkeypatch, keep):
    monkeypatch.setattr(hyfer_studies, "fit_student", lambda *a, **k: [None])
    monkeypatch.setattr(hyfer_studies, "_rows", lambda *_: pd.DataFrame({"metric": ["accuracy"], "value": [1.0]}))
    start, lines = HyFER(7, 1, "light"), []
    start.record = {"fingerprint": "another", "held-out ids": "others"}
    preset = replace(PEOPLE, student=replace(PEOPLE.student, keep=keep))
    if keep == "best":
        with pytest.raises(DataError, match="may know what is held out here.*or student.keep=last"):
            transfer_study(voted, start, preset, (0,), tmp_path / "never", lines.append)
        assert not (tmp_path / "never").exists()
    else:
        transfer_study(voted, start, preset, (0,), tmp_path, lines.append)
        assert "may know what is held out here" in lines[0]
        start.record = {}
        transfer_study(voted, start, preset, (0,), tmp_path / "b", (said := []).append)
        assert "does not say what it was trained on" in said[0]


def test_budgets_name_networks_that_exist():
    for preset in (STUDY, SHIP, SHIP.born_again, TRANSFER):
        assert preset.student.network in HYFER
    assert len(STUDY.teachers) == len(SHIP.teachers) == 3


def test_the_card_in_the_package_tells_of_the_committed_settings():
    """The card was written with the flat settings of earlier versions; each of them is found in today's tree. Its bfloat16 is
    what a measurement chose under the PyTorch of then, and may choose again for "auto"."""
    recipe = ("schedule", "warmup", "clip", "decay_all", "ema", "patience")

    def flat(preset):
        student, adv = preset.student, preset.adversarial
        assert adv.fit.augment == student.augment and adv.fit.bs == student.bs
        assert all(getattr(preset.teachers[0], k) == getattr(student, k) for k in (*recipe, "augment"))  # it had the same
        return {"clean": preset.data.clean, "targets": preset.data.targets, "holdout": preset.data.holdout,
                "size": student.size, "student": student.network, "epochs": student.epochs, "lr": student.lr,
                "bs": student.bs, "amp": {"auto": "bf16"}.get(student.amp, student.amp), "augment": student.augment, "recipe": {k: getattr(student, k) for k in recipe},
                "views": preset.distillation.views, "alpha": preset.distillation.alpha, "T": preset.distillation.T,
                "tau": preset.distillation.tau, "cached_views": preset.distillation.cached_views,
                "adv_attack": list(adv.attacks), "adv_eps": adv.eps, "adv_steps": adv.steps, "adv_ratio": adv.ratio,
                "adv_epochs": adv.fit.epochs, "adv_lr": adv.fit.lr}

    def same(settings, preset):
        settings = settings | {"augment": Augment(**{k: tuple(v) if isinstance(v, list) else v for k, v in settings["augment"].items()})}
        settings["recipe"] = {k: settings["recipe"].get(k) for k in recipe}
        assert flat(preset) == {k: settings[k] for k in flat(preset)}
        for spec, fit in zip(settings["teachers"], preset.teachers, strict=True):
            assert spec["name"] == fit.network and (fit.network == "annotators" or (spec["input_size"], spec["epochs"], spec["lr"], spec["bs"],
                                                    spec["pretrained"]) == (fit.size, fit.epochs, fit.lr, fit.bs, fit.pretrained))

    record = HyFER.from_pretrained().card["record"]
    if "student" in record["settings"] and isinstance(record["settings"]["student"], dict):  # written, or moved, since
        from fer_nb.config import from_dict
        assert from_dict(record["settings"]) == SHIP
    else:
        same(record["settings"], SHIP)
        same(record["settings"]["born_again"], SHIP.born_again)
    assert record["command"] == "fer-nb ship --data fer2013.csv --votes fer2013new.csv" and record["seed"] == 0


def test_several_teachers_as_one_leave_out_those_without_an_opinion():
    z = np.zeros((3, 2, 3), np.float32)
    z[0, 0], z[1, 0] = [3, 0, 0], [0, 2, 0]
    p = np.exp(ensemble_logits(z))
    soft = [np.exp(v) / np.exp(v).sum() for v in z[:2, 0].astype(float)]
    assert np.allclose(p[0], np.mean(soft, axis=0), atol=1e-6) and np.allclose(p[1], 1 / 3, atol=1e-6)


def test_votes_change_no_part_and_stay_with_their_images(faces, voted):
    plain, withs = make_splits(faces, TINY.data), _splits_without_votes(voted, TINY.data)
    votes = voted.df.set_index("id")[list(VOTE_COLUMNS)]
    for name in ("train", "valid", "test"):
        a, b = getattr(plain, name), getattr(withs, name)
        assert a.df.id.tolist() == b.df.id.tolist()
        assert (b.df[list(VOTE_COLUMNS)].to_numpy() == votes.loc[b.sources()].to_numpy()).all()


@pytest.mark.slow
def test_recipes_of_phase_2_go_on_and_leave_the_student_alone(faces, tmp_path, monkeypatch):
    student, lines, small = HyFER(7, 1, "light"), [], replace(TINY, evaluation=Evaluation((2 / 255,), steps=4, n=20))
    before, arms = weights_digest(student), {"TRADES": [*PHASE2_ARMS["TRADES"], "adversarial.steps=2"]}
    runs = harden_study(student, faces, arms, small, range(1), tmp_path, say=lines.append)
    names = ["as-it-is-0", "trades-0"]
    assert {p.name for p in tmp_path.glob("*.safetensors")} == {f"{n}-{c}.safetensors" for n in names for c in ("clean", "robust")}
    assert weights_digest(student) == before and list(runs.arm.unique()) == ["as it is", *arms] and not list(tmp_path.glob("*.ckpt"))
    record = load_teacher(tmp_path / "trades-0-robust.safetensors").record
    header, parts = record["adversarial"], _splits_without_votes(resized(faces, TINY.student.size), TINY.data)
    assert record["data"] == hyfer_studies.facts_of(parts)
    assert (header["trades"], header["kind"], header["ratio"]) == (6.0, ["pgd"], 1.0)
    epochs = read_table(tmp_path / "trades-0.epochs.csv")
    assert len(epochs) == small.adversarial.fit.epochs and epochs[["clean", "robust"]].stack().between(0, 1).all() and (epochs.robust <= epochs.clean + .02).all()
    (tmp_path / "trades-0.csv").unlink()
    again = harden_study(student, faces, arms, small, range(1), tmp_path, say=lines.append)
    assert [l.split(",")[0] for l in lines if "TRADES" in l] == ["TRADES", "TRADES"] and sum("seed" in l for l in lines) == 3
    pd.testing.assert_frame_equal(runs, again)
    table = harden_table(runs)
    assert table.columns.tolist() == ["no attack", "2/255"] and len(table) == 4
    losses = runs.query("metric == 'loss' and split == 'test' and subset == 'all' and attack == 'none' and arm == 'TRADES' and chosen == 'robust'")
    assert harden_table(runs, metric="loss", split="test").loc[("TRADES", "robust"), "no attack"] == f"{losses.value.item():.3f}"
    rows = runs[(runs.arm == "TRADES") & (runs.chosen == "robust") & (runs.metric == "accuracy") & (runs.split == "test") & (runs.attack == "pgd")]
    net = load_hyfer(tmp_path / "trades-0-robust.safetensors")
    splits = _splits_without_votes(resized(faces, TINY.student.size), TINY.data)
    assert rows.value.tolist() == pytest.approx(robust_curve(net, splits.test, "pgd", 2 / 255, 4, n=20).query("metric == 'accuracy' and split == 'test'").value.tolist())
    with pytest.raises(StoreError, match="student"):
        harden_study(HyFER(7, 1, "light"), faces, arms, small, range(1), tmp_path)
    student.record = {"data": "another", "fingerprint": "another"}
    with pytest.raises(DataError, match="may know what is held out"):
        harden_study(student, faces, arms, small, range(1), tmp_path / "never")
    taught = ["adversarial.taught=true", "distillation.cached_views=mean"]
    for settings in (["adversarial.fit.keep=last"], taught, ["adversarial.best=robust"], ["adversarial.cost=0.1"], ["adversarial=null"]):
        with pytest.raises(ConfigError, match=f"arm 'odd': {settings[0].split('=')[0].removeprefix('adversarial.')}.* expected"):
            harden_study(student, faces, {"odd": settings}, small, out=tmp_path / "never")
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize("call, says", [
    (lambda ds: distillation_study(ds, TINY, (), "never"), "seeds=0"), (lambda ds: variant_study(ds, ("heavy",), TINY, out="never"), "'heavy'"),
    (lambda ds: kfold_study(ds, TINY, protocol="random", out="never"), "'random'"), (lambda ds: kfold_study(ds, SHIP, out="never"), "born_again"),
    (lambda ds: distillation_study(ds, SHIP, out="never"), "born_again")])
def test_settings_that_make_no_sense_are_named_before_anything_is_done(faces, call, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=says):
        call(faces)
    assert not list(tmp_path.iterdir())


def test_students_are_judged_by_the_voters_where_there_are_some(faces, voted):
    """The mean share of the votes that a prediction gets, by a plain loop; without votes there are no such rows."""
    splits = _splits_without_votes(voted, TINY.data)
    z = np.random.default_rng(0).normal(size=(len(splits.test), len(faces.labels)))
    rows = hyfer_studies._rows(z, splits)
    found = rows[(rows.subset == "voters") & (rows.metric == "expected")].set_index("split")
    for split, part in splits.test.df.assign(answer=[faces.labels[k] for k in z.argmax(1)]).groupby("split"):
        shares = [r[f"vote_{r['answer']}"] / r[list(VOTE_COLUMNS)].sum() for _, r in part.iterrows()]
        assert found.n[split] == len(part) and np.isclose(found.value[split], np.mean(shares))
    assert set(rows[rows.subset == "voters"].metric) == {"majority", "expected"}
    some = set(splits.test.df.id[::3])                                     # had a duplicate in training
    again = hyfer_studies._rows(z, replace(splits, duplicates=some))
    new = _splits_without_votes(voted, TINY.data)
    new = replace(new, test=new.test.take(~new.test.df.id.isin(some).to_numpy()))
    columns = ["split", "metric", "value", "n"]
    alone, parts = hyfer_studies._rows(z[~splits.test.df.id.isin(some).to_numpy()], new), ("voters_without_duplicates", "voters")
    pd.testing.assert_frame_equal(*(t.loc[t.subset == s, columns].reset_index(drop=True) for t, s in zip((again, alone), parts)))
    assert not (hyfer_studies._rows(z, make_splits(faces, TINY.data)).subset == "voters").any()


def test_groups_are_those_of_plain_counting(voted, tmp_path, monkeypatch):
    """Light, voters' agreement and face size by NumPy alone; a face that was not found is a group of its own."""
    ds = voted.where(split="test")
    heights = np.where(np.arange(len(ds)) % 5 == 0, np.nan, 10.0 + np.arange(len(ds)) % 23)
    monkeypatch.setattr(hyfer_studies, "find_faces", lambda ds, **how: pd.DataFrame({"box_h": heights}))
    net = HyFER(variant="light", in_chans=1)
    table = hyfer_studies.group_study({"a": net}, ds, tmp_path)
    right = hyfer_studies.predict_logits(net, ds).argmax(1) == ds.targets()
    one = table[table.metric == "accuracy"].set_index(["column", "group"])
    votes, bright = ds.df[list(VOTE_COLUMNS)].to_numpy(), np.array([image.mean() for image in ds.array()])
    some = (share := votes.max(1) / votes.sum(1)) <= 0.5
    assert one.value["voters' agreement", "(-0.001, 0.5]"] == pytest.approx(right[some].mean()) and 0 < some.sum() < len(ds)
    assert one.gap["voters' agreement", "(-0.001, 0.5]"] == pytest.approx(right[some].mean() - right[~some].mean())
    assert one.n["face, share of the side", "not known"] == np.isnan(heights).sum()
    dark = one.loc["light"].iloc[0]
    assert dark.n == (bright <= np.quantile(bright, .25)).sum() and dark.value == pytest.approx(right[bright <= np.quantile(bright, .25)].mean())
    assert (one.groupby("column").n.sum() == len(ds)).all() and share.max() <= 1 and set(table.metric) == {"accuracy", "balanced_accuracy", "macro_f1"}
    own = ds.df.drop(columns=list(VOTE_COLUMNS)).assign(sex=["f", "m"] * (len(ds) // 2) + [""] * (len(ds) % 2), subject=ds.df.id, series=1)
    table = hyfer_studies.group_study({"a": net}, ds.replace(df=own), tmp_path)   # without votes, by the data's own columns
    one = table[table.metric == "accuracy"].set_index(["column", "group"]).value
    assert {*one.index.levels[0]} == {"face, share of the side", "light", "contrast", "sex"}
    assert one["sex", "f"] == pytest.approx(right[own.sex == "f"].mean())


def test_a_network_of_faces_cut_out_is_refused(tmp_path):
    from argparse import Namespace
    file = hyfer_studies.save_hyfer(HyFER(variant="light", in_chans=1), tmp_path / "cut.safetensors", faces="drop")
    for given in (Namespace(weights=file, robust=None), Namespace(weights=None, robust=[file])):
        with pytest.raises(DataError, match="cut.safetensors: trained on faces cut out along their outline .*'drop'.*; a study takes images"):
            hyfer_studies._finished(given)
    with pytest.raises(DataError, match="cut.safetensors: trained on faces"):
        hyfer_studies._shipped(file)


def test_what_was_fitted_from_another_file_of_weights_is_refused(faces, tmp_path, monkeypatch):
    """Seeds and folds of two networks are never pooled: not those of a student's start, not those of a candidate."""
    file = tmp_path / "w.safetensors"

    def weights(n):
        file.write_bytes(bytes([n]))

    seen = pd.DataFrame({"model": "HyFER", "split": ["test"], "subset": "all", "attack": "none", "eps": 0.0, "metric": "loss", "value": 1.0, "n": 9})
    monkeypatch.setattr(hyfer_studies, "need_networks", lambda preset: None)
    monkeypatch.setattr(hyfer_studies, "_rows", lambda *args: seen.drop(columns="model"))
    monkeypatch.setattr(hyfer_studies.SharedParts, "of_data", lambda *args: None)
    monkeypatch.setattr(hyfer_studies.SharedParts, "student", lambda *args: (None, None))
    preset, arms = replace(TINY, teachers=(), adversarial=None, student=Fit(str(file), epochs=1)), {"flip": ["student.augment.vflip=0.5"]}
    weights(1)
    hyfer_studies.setting_study(faces, arms, preset, [0], tmp_path / "s")
    hyfer_studies.setting_study(faces, arms, preset, [0, 1], tmp_path / "s")
    weights(2)
    with pytest.raises(StoreError, match=r"arm_settings\.student\.sha256"):
        hyfer_studies.setting_study(faces, arms, preset, [0, 1, 2], tmp_path / "s")
    teacher = type("Teacher", (), {"logits": lambda self, ds: None})
    monkeypatch.setattr(hyfer_studies, "make_teachers", list)
    monkeypatch.setattr(hyfer_studies, "trained_teachers", lambda *args: ([teacher()], []))
    candidate = [Fit(str(file), 48)]
    teacher_study(faces, candidate, TINY, 2, out=tmp_path / "t")
    teacher_study(faces, candidate, TINY, 2, out=tmp_path / "t")
    weights(3)
    with pytest.raises(StoreError, match=r"sha256 is '\w+' there and '\w+' here"):
        teacher_study(faces, candidate, TINY, 2, out=tmp_path / "t")


def test_faces_that_were_found_before_go_by_ids(faces):
    sides = pd.DataFrame({"id": faces.df.id, "box_h": np.arange(len(faces)) % 40})
    expected = hyfer_studies.image_groups(faces, sides)["face, share of the side"][0]
    assert expected.tolist() == (sides.box_h / [h for h, _ in faces.sizes()]).tolist()
    for given in (sides[::-1], sides.sample(frac=1, random_state=0).reset_index(drop=True), sides.set_index("id")[::-1]):
        assert hyfer_studies.image_groups(faces, given)["face, share of the side"][0].equals(expected)
    for few in (sides[1:], sides[["box_h"]][:-1]):
        with pytest.raises(DataError, match="faces"):
            hyfer_studies.image_groups(faces, few)
