"""The three shipped students by one command each: what they leave, how they go on, what is said before they start."""
import copy
import json
from dataclasses import replace

import pandas as pd
import pytest
import torch

from fer_nb import hyfer_studies, pipeline
from fer_nb.cli import main
from fer_nb.config import Adversarial, Data, Distillation, Fit
from fer_nb.core import LABEL_ORDERS, ConfigError, DataError, file_sha256
from fer_nb.formats import read
from fer_nb.hyfer_studies import FERPLUS, STUDY, onward, train_shipped
from fer_nb.loaders import make_splits
from fer_nb.models import HyFER, load_teacher, save_hyfer, weights_digest
from fer_nb.store import StoreError, read_record, read_table
from fer_nb.synth import fer2013_folder, make_faces

SMALL = replace(STUDY, teachers=(), student=Fit(epochs=1, bs=64), data=Data(near_duplicates=False), distillation=Distillation(views=1),
                adversarial=Adversarial(steps=1, fit=Fit(epochs=1, lr=1e-3, bs=64)))

LCNET = Fit("lcnet_050", 32, False, epochs=1, lr=1e-3, bs=64)


@pytest.fixture(scope="module")
def faces():
    return make_faces(210, seed=0, defects=None, balance="uniform")[0]


def test_the_robust_student_goes_on_from_the_accurate_ones_work(faces, tmp_path, monkeypatch):
    said, work = [], tmp_path / "work"
    a = train_shipped(faces, tmp_path / "a", SMALL, students=["hyfer"], work=work, say=said.append)
    assert sorted(p.name for p in a.iterdir()) == ["history.csv", "hyfer.json", "hyfer.safetensors", "parts.csv", "results.csv"]
    starts = json.loads((work / "sessions.json").read_text())           # the work goes on elsewhere
    (work / "sessions.json").write_text(json.dumps([starts[0] | {"threads": 64, "processor": "another"}]))
    r = train_shipped(faces, tmp_path / "r", SMALL, students=["hyfer_robust"], work=work, say=said.append)
    assert sorted(p.name for p in r.iterdir()) == ["history.csv", "hyfer_robust.json", "hyfer_robust.safetensors", "parts.csv", "results.csv"]
    assert any("not bit for bit" in line and "threads is 64 there" in line for line in said)
    record = HyFER.from_pretrained("hyfer_robust", folder=r).card["record"]
    assert record["interruptions"] == 1 and [s["threads"] for s in record["starts"]][0] == 64
    assert {"processor", "cores", "threads", "torch", "device", "commit", "date"} <= set(record["starts"][1])
    whole = train_shipped(faces, tmp_path / "whole", SMALL)              # both at once: the same weights
    for name, at in (("hyfer", a), ("hyfer_robust", r)):
        assert weights_digest(HyFER.from_pretrained(name, folder=whole)) == weights_digest(HyFER.from_pretrained(name, folder=at))
    for other in (replace(SMALL, student=Fit(epochs=1, bs=32)), replace(SMALL, data=Data(holdout=.2, near_duplicates=False)),
                  replace(SMALL, teachers=(LCNET,))):
        with pytest.raises(StoreError, match=r"student\.bs|data\.holdout|teachers"):
            train_shipped(faces, tmp_path / "other", other, students=["hyfer"], work=work)


@pytest.mark.slow
def test_students_of_other_settings_share_their_teachers(faces, tmp_path):
    said, work = [], tmp_path / "work"
    preset = replace(SMALL, teachers=(LCNET,))
    clipped = replace(preset, student=replace(preset.student, clip=.01), distillation=replace(preset.distillation, alpha=.9))
    a = train_shipped(faces, tmp_path / "a", preset, students=["hyfer"], work=work)
    made = {p: p.stat().st_mtime_ns for p in work.rglob("*") if p.name != "sessions.json"}
    b = train_shipped(faces, tmp_path / "b", clipped, work=work, say=said.append)
    assert [line for line in said if "another student" in line and "student.clip" in line and "alpha" in line]
    assert {p: p.stat().st_mtime_ns for p in made} == made                  # neither teachers nor the first student are touched
    alone = train_shipped(faces, tmp_path / "alone", clipped)                # bit for bit what it is with teachers of its own
    weights = {name: [weights_digest(HyFER.from_pretrained(name, folder=at)) for at in (b, alone)] for name in ("hyfer", "hyfer_robust")}
    assert all(shared == own for shared, own in weights.values())
    assert weights_digest(HyFER.from_pretrained("hyfer", folder=a)) != weights["hyfer"][0]
    assert read_table(b / "results.csv").equals(read_table(alone / "results.csv"))


def test_ferplus_by_the_command_learns_the_shares_of_eight(tmp_path, capsys):
    drawn = fer2013_folder(210, votes=True)
    ship = ["ship", "--data", str(drawn / "fer2013.csv"), "--student", "ferplus", "--out", str(tmp_path / "f"), "--set", "student.epochs=1",
            "--set", "student.network=light", "--set", "data.near_duplicates=false", "--set", "student.amp=null"]
    assert main(ship) == 2 and "--votes fer2013new.csv expected" in capsys.readouterr().err
    assert main([*ship, "--votes", str(drawn / "fer2013new.csv")]) == 0
    network = HyFER.from_pretrained("hyfer_ferplus", folder=tmp_path / "f")
    assert "contempt" in network.labels and len(network.labels) == 8
    record = network.card["record"]
    assert record["settings"]["student"]["soft"] == "votes" and record["interruptions"] == 0 and record["starts"][0]["processor"]
    assert {"single", "majority"} & {r["measure"] for r in record["headline"]}
    assert read_record(tmp_path / "f/results.csv")["weights"] == {"hyfer_ferplus": network.card["sha256"]}


@pytest.mark.parametrize("students, preset, says", [
    (["hyfer_ferplus"], FERPLUS, "eight labels"), (["hyfer_ferplus", "hyfer"], FERPLUS, "hyfer_ferplus alone"), (["hyper"], SMALL, "hyfer_robust"),
    (["hyfer"], replace(SMALL, data=replace(SMALL.data, refine="keep")), "ship takes images as they are"),
    (["hyfer"], replace(SMALL, student=Fit(bs=10**8)), "GB for batches of 100000000 at 48 px, and .* GB are free on .*a batch of ")])
def test_what_cannot_be_made_is_said_before_it_starts(faces, tmp_path, students, preset, says):
    with pytest.raises(ConfigError, match=says):
        train_shipped(faces, tmp_path / "never", preset, students=students)
    assert not list(tmp_path.iterdir())


def test_ferplus_without_votes_is_refused(faces, tmp_path):
    eight = faces.replace(labels=LABEL_ORDERS["ferplus"], df=faces.df.assign(label="neutral"))
    with pytest.raises(DataError, match="shares of the votes"):
        train_shipped(eight, tmp_path / "never", FERPLUS, students=["hyfer_ferplus"])


def test_a_study_that_does_not_fit_is_refused_before_it_starts(tmp_path, capsys):
    data = str(fer2013_folder(210) / "fer2013.csv")
    study = ["study", "recipe", "--data", data, "--out", str(tmp_path / "r"), "--set", "student.bs=100000000"]
    assert main(study) == 2 and "GB are free" in capsys.readouterr().err and not (tmp_path / "r").exists()


def test_a_measured_precision_is_kept(faces, tmp_path, monkeypatch):
    from fer_nb import train
    asked = []
    rates = lambda *a: asked.append(a) or {"float32": 100.0, "bf16": 300.0}  # noqa: E731
    monkeypatch.setattr(hyfer_studies, "settled", lambda *a: train.settled(*a, measure=rates))
    preset, said = replace(SMALL, student=Fit(epochs=1, bs=64, amp="auto")), []
    for name in ("a", "b"):
        train_shipped(faces, tmp_path / name, preset, students=["hyfer"], work=tmp_path / "work", say=said.append)
    assert len(asked) == 1 and any("3.00 times" in line for line in said)
    kept = read_table(tmp_path / "work/precision.csv")
    assert kept.gain.tolist() == [3.0] and kept.network.tolist() == ["light"] and kept.processor[0]


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    "Weights of a first fit on drawn data with votes, by the command, and what it held out."
    drawn, tmp = fer2013_folder(210, votes=True), tmp_path_factory.mktemp("begun")
    ds = read(drawn / "fer2013.csv", drawn / "fer2013new.csv")
    out = train_shipped(ds, tmp / "first", replace(SMALL, adversarial=None, data=replace(SMALL.data, targets=None)), students=["hyfer"])
    splits = make_splits(ds.replace(df=ds.df[["id", "label", "split"]]), Data(near_duplicates=False, targets=None))
    held = pd.DataFrame({"id": splits.valid.df.id, "part": "held out"})
    held.to_csv(tmp / "parts.csv", index=False)
    assert HyFER.from_pretrained(folder=out).card["record"]["data"]["selected on"] == len(held)
    data = ["--data", str(drawn / "fer2013.csv"), "--votes", str(drawn / "fer2013new.csv")]
    return out / "hyfer.safetensors", tmp / "parts.csv", data


def onward_ship(student, start, held, data, out, *more):
    small = ["--set", "data.near_duplicates=false", "--set", "student.epochs=1", "--set", "student.bs=64", "--set", "student.amp=null",
             *(["--set", "adversarial.fit.epochs=1"] if student == "robust" else []),
             *([] if student == "ferplus" else ["--set", "distillation.views=1"])]
    return main(["ship", "--student", student, "--start", str(start), "--held", str(held), *data, "--out", str(out), *small, *more])


@pytest.mark.parametrize("student, name, labels", [("accurate", "hyfer", 7), ("robust", "hyfer_robust", 7), ("ferplus", "hyfer_ferplus", 8)])
def test_a_student_goes_on_from_trained_weights(begun, tmp_path, student, name, labels):
    start, held, data = begun
    assert onward_ship(student, start, held, data, tmp_path / "on") == 0
    network = HyFER.from_pretrained(name, folder=tmp_path / "on")
    record, listed = network.card["record"], pd.read_csv(held)
    assert len(network.labels) == labels and record["went on from"] == {"sha256": file_sha256(start)}
    assert record["data"]["listed as held out"] == len(listed) >= record["data"]["selected on"] > 0
    phases = pd.read_csv(tmp_path / "on/history.csv").phase.unique().tolist()
    assert phases == (["HyFER, adversarial"] if student == "robust" else ["HyFER, EADD"])       # robust: no second phase 1
    assert weights_digest(network) != weights_digest(HyFER.from_pretrained(folder=start.parent))
    assert (tmp_path / "on/teacher_weights.csv").exists() == (student == "accurate")


def test_each_run_lists_the_images_that_the_next_one_holds_out(begun, tmp_path):
    start, held, data = begun
    listed = pd.read_csv(start.with_name("parts.csv"))
    assert sorted(listed.id[listed.part == "held out"]) == sorted(pd.read_csv(held).id)
    assert {"trained on", "reported"} < {*listed.part} and {*listed.split[listed.part != "reported"]} == {"train"}
    for name in ("on", "further"):
        assert onward_ship("accurate", start, start.with_name("parts.csv"), data, tmp_path / name) == 0
        start = tmp_path / name / "hyfer.safetensors"
        again = pd.read_csv(start.with_name("parts.csv"))
        assert {*again.id[again.part == "held out"]} == {*listed.id[listed.part == "held out"]}


def test_what_was_trained_on_is_not_held_out_now(begun, tmp_path, capsys):
    """A list of other images, or of too few, and weights without a list: each would choose and calibrate by images that the network knows."""
    start, held, data = begun
    listed = pd.read_csv(held)
    (few := tmp_path / "few.csv").write_text(listed.iloc[1:].to_csv(index=False))
    know = read(data[1], data[3]).df.query("split == 'train'").id
    swapped = listed.id.where(listed.index > 0, sorted(set(know) - set(listed.id))[0])          # as many, one of them another
    (another := tmp_path / "another.csv").write_text(listed.assign(id=swapped).to_csv(index=False))
    (others := tmp_path / "others.csv").write_text(listed.assign(id="nobody").to_csv(index=False))
    (nameless := tmp_path / "nameless.csv").write_text(listed.rename(columns={"id": "row"}).to_csv(index=False))
    for student in ("accurate", "robust"):
        for table, says in ((few, f"selected on {len(listed)}, here {len(listed) - 1}"), (others, "none of its images is held out"), (another, "held-out ids"), (nameless, "id")):
            assert onward_ship(student, start, table, data, tmp_path / f"never-{student}") == 2
            assert says in capsys.readouterr().err and not (tmp_path / f"never-{student}").exists()
    assert main(["ship", "--start", str(start), *data, "--student", "robust", "--out", str(tmp_path / "never")]) == 2
    assert "--held None" in capsys.readouterr().err
    assert main(["ship", "--start", str(start), "--held", str(held), *data, "--out", str(tmp_path / "never")]) == 2
    assert "--student both" in capsys.readouterr().err


def test_work_of_another_start_is_not_gone_on_with(begun, tmp_path, monkeypatch, capsys):
    """A file of the same name holds other weights."""
    start, held, data = begun
    monkeypatch.setattr(hyfer_studies, "fit_student", lambda *a, **k: (_ for _ in ()).throw(DataError("broken off")))
    (copy := tmp_path / start.name).write_bytes(start.read_bytes())
    assert onward_ship("ferplus", copy, held, data, tmp_path / "on") == 2 and "broken off" in capsys.readouterr().err
    network = HyFER.from_pretrained(folder=start.parent)
    with torch.no_grad():
        next(network.parameters()).add_(.1)
    save_hyfer(network, copy, **network.card["record"])
    assert onward_ship("ferplus", copy, held, data, tmp_path / "on") == 2 and "start" in capsys.readouterr().err


def test_weights_that_do_not_say_what_they_know_are_named(begun, tmp_path):
    start, held, data = begun
    splits = hyfer_studies._splits_without_votes(read(data[1], data[3]), Data(held=str(held), near_duplicates=False, targets=None))
    HyFER.from_pretrained(folder=start.parent).save(tmp_path, "mute")
    for file, says in ((start, 0), (tmp_path / "mute.safetensors", 1)):
        hyfer_studies.need_unseen(str(file), load_teacher(file), splits, 0, (said := []).append)
        assert len(said) == says and all("may know the hold-out" in line for line in said)


def test_teachers_of_phase_2_teach_the_attacked_image_what_they_say_of_the_clean_one(begun, monkeypatch):
    start, held, data = begun
    preset = onward("robust", start, held)
    assert preset.adversarial.taught and {f.network for f in preset.teachers} == {"annotators", str(start)}
    with pytest.raises(ConfigError, match="adversarial.taught, 0 teachers"):
        replace(preset, teachers=())
    with pytest.raises(ConfigError, match="'mean' or 'fresh', expected"):
        replace(preset, distillation=Distillation())
    ds = read(data[1], data[3])
    splits = hyfer_studies._splits_without_votes(ds, replace(preset.data, near_duplicates=False))
    assert set(splits.valid.df.id) <= set(pd.read_csv(held).id) and not set(splits.train.df.id) & set(pd.read_csv(held).id)
    seen = []
    monkeypatch.setattr(pipeline, "fit_model", lambda model, dls, fit, cbs, *a, **k: seen.append([type(cb).__name__ for cb in cbs]))
    small = replace(preset, distillation=replace(preset.distillation, views=1))
    cached = pipeline.fit_teachers(splits, small)[1]
    for taught in (True, False):
        now = replace(small, adversarial=replace(small.adversarial, taught=taught))
        pipeline.fit_adversarial(HyFER(7, 1, "light", labels=ds.labels), splits, now, cached=cached)
    assert seen == [["EADD", "AdversarialTraining"], ["AdversarialTraining"]]


def test_another_seed_goes_on_with_the_same_hold_out(begun, tmp_path):
    """Weights, order and views are another seed's; what is held out is the table's, so that seeds can be compared."""
    start, held, data = begun
    for seed in (0, 1):
        assert onward_ship("ferplus", start, held, data, tmp_path / f"{seed}", "--seed", str(seed)) == 0
    a, b = (HyFER.from_pretrained("hyfer_ferplus", folder=tmp_path / f"{seed}") for seed in (0, 1))
    assert weights_digest(a) != weights_digest(b) and (a.card["record"]["seed"], b.card["record"]["seed"]) == (0, 1)
    assert a.card["record"]["data"] == b.card["record"]["data"]


def test_what_phase_2_may_cost_is_measured_on_the_hold_out(begun):
    """`cost` by hand: of all shares the largest whose accuracy on the held-out images is high enough; 0 is phase 1 itself."""
    from fer_nb.evaluate import predict_logits
    start, held, data = begun
    student = HyFER.from_pretrained(folder=start.parent)
    torch.manual_seed(0)
    hardened = copy.deepcopy(student)
    with torch.no_grad():
        for p in hardened.parameters():
            p.add_(0.3 * p.abs().mean() * torch.randn_like(p))
    valid = read(data[1], data[3]).where(split="train")
    right = lambda net: float((predict_logits(net, valid).argmax(1) == valid.targets()).mean())  # noqa: E731
    at = {k: right(pipeline.between(student, hardened, k / 10)) for k in range(11)}
    for cost in (0.0, 0.02, 0.1, 0.99):
        net, share = pipeline.within_cost(student, hardened, valid, cost, steps=10)
        assert share == max(k for k in at if at[k] >= at[0] - cost or k == 0) / 10 and right(net) == at[round(10 * share)]
    assert at[0] == right(student) and at[10] == right(hardened) and weights_digest(pipeline.between(student, hardened, 0.0)) == weights_digest(student)
    with pytest.raises(ConfigError, match="share"):
        pipeline.between(student, hardened, 1.5)


def test_each_student_has_starts_of_its_own(faces, tmp_path):
    preset, work = replace(SMALL, adversarial=None), tmp_path / "work"
    other, cards = replace(preset, student=replace(preset.student, lr=1e-3)), {}
    for name, how in (("a", preset), ("b", other)):
        train_shipped(faces, tmp_path / name, how, students=["hyfer"], work=work)
        cards[name] = HyFER.from_pretrained("hyfer", folder=tmp_path / name).card["record"]
    assert [len(cards[n]["starts"]) for n in "ab"] == [1, 1] and [cards[n]["interruptions"] for n in "ab"] == [0, 0]
    assert "starts of other students" not in cards["a"] and cards["b"]["starts of other students"] == cards["a"]["starts"]
    train_shipped(faces, tmp_path / "again", other, students=["hyfer"], work=work)
    record = HyFER.from_pretrained("hyfer", folder=tmp_path / "again").card["record"]
    assert record["interruptions"] == 1 and len(record["starts of other students"]) == 1


def test_work_of_an_earlier_version_is_that_of_the_same_student(tmp_path):
    """A setting that it did not know yet had what is its default now: in the student, the teachers, the first generation."""
    said, born = [], replace(hyfer_studies.SHIP, student=replace(hyfer_studies.SHIP.student, cut=0.0))
    identity = {"settings": hyfer_studies.to_dict(born), "seed": 0}
    hyfer_studies._work_at(tmp_path / "w", identity)
    there = json.loads((path := tmp_path / "w/identity.json").read_text())
    settings = there["settings"]
    for part in (settings["student"], *settings["teachers"], settings["born_again"]["student"], settings["adversarial"]["fit"]):
        del part["cut"]
    del settings["distillation"]["over"], settings["adversarial"]["best"], settings["student"]["augment"]["blur"]
    path.write_text(json.dumps(there))
    assert hyfer_studies._work_at(tmp_path / "w", identity, said.append)[1] == "" and not said
    clipped = {"settings": hyfer_studies.to_dict(replace(born, student=replace(born.student, cut=.5))), "seed": 0}
    assert hyfer_studies._work_at(tmp_path / "w", clipped, said.append)[1] and "student.cut is 0.0 there and 0.5 here" in said[0]
    settings["teachers"][0]["epochs"] += 1
    path.write_text(json.dumps(there))
    with pytest.raises(StoreError, match=r"teachers\.0\.epochs"):
        hyfer_studies._work_at(tmp_path / "w", identity)


def test_work_that_the_result_would_replace_is_refused_before_anything_is_fitted(faces, tmp_path, monkeypatch):
    monkeypatch.setattr(hyfer_studies, "fit_teachers", lambda *a: pytest.fail("begun"))
    for work in (tmp_path / "out", tmp_path / "out/work"):
        for overwrite in (False, True):
            with pytest.raises(DataError, match="would be replaced"):
                train_shipped(faces, tmp_path / "out", SMALL, work=work, overwrite=overwrite)
    assert not list(tmp_path.iterdir())


def test_the_folder_of_the_work_is_a_path_as_the_others(tmp_path, monkeypatch, capsys):
    data = fer2013_folder(210) / "fer2013.csv"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    seen = []
    monkeypatch.setattr(hyfer_studies, "train_shipped", lambda *a, **how: seen.append(how["work"]) or (_ for _ in ()).throw(DataError("enough")))
    small = ["ship", "--data", str(data), "--student", "accurate", "--set", "teachers=[]", "--set", "born_again=null", "--set", "adversarial=null"]
    assert main([*small, "--out", "o", "--work=~/w"]) == 2 and seen == [tmp_path / "w"] and "enough" in capsys.readouterr().err
    for out, work in (("o", "o"), ("o", "o/w"), ("o", str(data.parent))):
        assert main([*small, "--out", out, f"--work={work}"]) == 2 and "would be replaced" in capsys.readouterr().err
    assert len(seen) == 1


def test_a_teacher_may_lie_in_the_work_of_an_earlier_start(tmp_path, monkeypatch, capsys):
    data, work = fer2013_folder(210) / "fer2013.csv", tmp_path / "w"
    work.mkdir()
    save_hyfer(HyFER(7, 1, "light"), work / "t.safetensors")
    monkeypatch.setattr(hyfer_studies, "train_shipped", lambda *a, **how: (_ for _ in ()).throw(DataError("enough")))
    small = ["ship", "--data", str(data), "--student", "accurate", "--set", "teachers=[]", "--set", "born_again=null", "--set", "adversarial=null"]
    assert main([*small, "--out", str(tmp_path / "o"), "--work", str(work), "--teacher", str(work / "t.safetensors")]) == 2
    assert "enough" in capsys.readouterr().err
