"""Settings: one tree, files, overrides by full names, and every fault named by its field before anything is read."""
import json
import subprocess
import sys
from dataclasses import asdict, fields, is_dataclass, replace

import numpy as np
import pytest

from fer_nb.config import (PRESETS, Adversarial, Augment, Data, Distillation, Evaluation, Fit, Preset, Quads, from_dict, load_config,
                           override, to_dict)
from fer_nb.core import ConfigError

CLASSES = (Augment, Fit, Data, Distillation, Adversarial, Evaluation, Quads, Preset)
FULL = Preset(teachers=(Fit("resnet18", None, mix=0.3), Fit("annotators")), student=Fit("light_res", augment=None, ema=0.999),
              quads=Quads(learnable=True), adversarial=None, data=Data(targets=300), born_again=None)


@pytest.mark.parametrize("preset", [*PRESETS.values(), FULL, replace(FULL, born_again=FULL), Preset()])
def test_there_and_back(preset):
    assert from_dict(json.loads(json.dumps(to_dict(preset)))) == preset and override(preset, []) == preset


@pytest.mark.parametrize("cls", CLASSES)
def test_each_class_has_defaults_that_pass_their_own_checks(cls):
    assert from_dict({}, cls) == cls() and from_dict(to_dict(cls()), cls) == cls()


def test_every_class_is_frozen_and_hashable():
    assert all(is_dataclass(c) and hash(c()) == hash(c()) for c in CLASSES)
    with pytest.raises(AttributeError):
        Fit().epochs = 3


@pytest.mark.parametrize("values, says", [
    ({"student": {"epoch": 3}}, r"^student\.epoch: no such field; did you mean student\.epochs\?$"),
    ({"studnet": {}}, r"^studnet: no such field; did you mean student\?$"),
    ({"born_again": {"teachers": [{"netwrk": "a"}]}}, r"^born_again\.teachers\.0\.netwrk: .*born_again\.teachers\.0\.network\?$"),
    ({"adversarial": {"fit": {"augment": {"flip": 1}}}}, r"^adversarial\.fit\.augment\.flip: .*\.[hv]flip\?$"),
    ({"xyz": 1}, "^xyz: no such field$"),
    ({"student": {"epochs": "many"}}, r"^student\.epochs='many'; a valid integer expected$"),
    ({"student": {"epochs": True}}, r"^student\.epochs=True; a valid integer expected$"),
    ({"student": {"epochs": 2.5}}, r"^student\.epochs=2\.5"), ({"student": {"lr": "fast"}}, r"^student\.lr='fast'; a valid number"),
    ({"student": {"network": None}}, r"^student\.network=None; a valid string"), ({"student": None}, "^student=None"),
    ({"student": {"decay_all": "yes"}}, r"^student\.decay_all='yes'; a valid boolean"),
    ({"teachers": {"network": "a"}}, "^teachers="), ({"evaluation": {"eps": [0, "a"]}}, r"^evaluation\.eps\.1='a'"),
    ({"data": {"targets": 1.5}}, r"^data\.targets=1\.5"), ([], r"^settings=\[\]"), (None, "^settings=None"),
    ({"student": {"epochs": 0}}, r"^student\.epochs=0; at least 1"), ({"student": {"lr": float("nan")}}, r"^student\.lr=nan"),
    ({"teachers": [{}, {"bs": -1}]}, r"^teachers\.1\.bs=-1"), ({"student": {"ema": 1.0}}, r"^student\.ema=1\.0"),
    ({"student": {"keep": "last", "patience": 3}}, r"^student\.keep='last', patience=3"),
    ({"student": {"keep": "first"}}, r"^student\.keep='first'"), ({"student": {"amp": "fp8"}}, r"^student\.amp='fp8'"),
    ({"student": {"restart_epochs": 5}}, r"^student\.restart_epochs=5 of schedule='one_cycle'"),
    ({"student": {"schedule": "warm_restarts", "warmup": 0.1}}, r"^student\.warmup=0\.1"),
    ({"student": {"optimiser": "adam"}}, r"^student\.optimiser='adam'; 'adamw', 'sgd', 'Adam'.* or 'ranger' expected$"),
    ({"student": {"class_weights": "equal"}}, r"^student\.class_weights='equal'; None or 'balanced' expected$"),
    ({"student": {"class_weights": [1, -2]}}, r"^student\.class_weights=-2\.0; a positive number"),
    ({"student": {"class_weights": [1, "a"]}}, r"student\.class_weights\.1='a'; a valid number"),
    ({"student": {"class_weights": "balanced", "sampler": "balanced"}}, "one of the two expected"),
    ({"student": {"sampler": "weighted"}}, r"^student\.sampler='weighted'"), ({"student": {"soft": "yes"}}, r"^student\.soft='yes'"),
    ({"student": {"gamma": 1}}, r"^student\.gamma=1\.0 of loss='cross_entropy'"), ({"student": {"loss": "focal", "gamma": -1}}, r"gamma=-1"),
    ({"student": {"accumulate": 0}}, r"^student\.accumulate=0; at least 1"), ({"student": {"accumulate": 1.5}}, r"^student\.accumulate=1\.5"),
    ({"student": {"freeze_epochs": 9}}, r"^student\.freeze_epochs=9 of 8 epochs"), ({"student": {"freeze_epochs": 0}}, r"freeze_epochs=0"),
    ({"student": {"early_lr": 1}}, r"^student\.early_lr=1\.0 above lr=0\.003"), ({"student": {"early_lr": 0}}, r"early_lr=0"),
    ({"student": {"augment": {"scale": [1.1, 0.9]}}}, r"^student\.augment\.scale="),
    ({"data": {"holdout": 1}}, r"^data\.holdout=1"), ({"distillation": {"cached_views": "both"}}, r"^distillation\.cached_views='both'"),
    ({"adversarial": {"attacks": ["sgd"]}}, r"^adversarial\.attacks='sgd'|^adversarial\.attacks"),
    ({"evaluation": {"tta": "ten"}}, r"^evaluation\.tta='ten'")])
def test_faults_are_named_by_their_field(values, says):
    with pytest.raises(ConfigError, match=says):
        from_dict(values)


def test_numbers_of_python_are_held_to_the_same():
    """What a file or `--set` is refused for, the class itself refuses too; arrays of weights become a tuple."""
    assert Fit(class_weights=np.array([2, 1])).class_weights == (2.0, 1.0) and hash(Fit(class_weights=[2, 1]))
    for wrong in ({"accumulate": 1.5}, {"epochs": 2.5}, {"class_weights": 3}, {"class_weights": ["a"]}, {"class_weights": [float("nan")]}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            Fit(**wrong)


def test_a_setting_that_is_off_is_no_part_of_an_identity():
    """So that a run of an earlier version, which did not have the setting, can go on."""
    new = ("gamma", "class_weights", "soft", "sampler", "accumulate", "freeze_epochs", "early_lr")
    assert all(to_dict(Fit())[name] is None for name in new)


def test_several_faults_are_all_named():
    with pytest.raises(ConfigError, match=r"student\.epochs='a'.*; teachers\.0\.lr='b'|teachers\.0\.lr='b'.*; student\.epochs='a'"):
        from_dict({"student": {"epochs": "a"}, "teachers": [{"lr": "b"}]})


@pytest.mark.parametrize("changed, says", [
    ({"data": Data(holdout=0.2)}, "data"), ({"teachers": FULL.teachers[:1]}, "teachers"), ({"born_again": FULL}, "one earlier generation"),
    ({"distillation": Distillation(views=2)}, "distillation.views"), ({"student": replace(FULL.student, size=64)}, "student.size"),
    ({"student": replace(FULL.student, augment=Augment())}, "student.augment")])
def test_generations_share_data_teachers_and_views(changed, says):
    """They learn from one bank of logits."""
    with pytest.raises(ConfigError, match=f"born_again.*{says}"):
        replace(FULL, born_again=replace(FULL, **changed))
    replace(FULL, born_again=replace(FULL, student=replace(FULL.student, epochs=3, network="light"), distillation=Distillation(alpha=0.2)))


@pytest.mark.parametrize("change, where", [
    ("student.epochs=40", ("student", "epochs", 40)), ("student.lr=1e-3", ("student", "lr", 1e-3)), ("student.lr=1", ("student", "lr", 1.0)),
    ("data.targets=max", ("data", "targets", "max")), ("data.targets=null", ("data", "targets", None)), ("data.clean=false", ("data", "clean", False)),
    ("evaluation.eps=[0, 0.1]", ("evaluation", "eps", (0.0, 0.1))), ("adversarial.fit={epochs: 3}", ("adversarial", "fit", Fit(epochs=3))),
    ("quads.margin=0.3", ("quads", "margin", 0.3)), ("student.network=a=b", ("student", "network", "a=b"))])
def test_overrides(change, where):
    part, name, value = where
    changed = override(PRESETS["tiny"], [change])
    assert getattr(getattr(changed, part), name) == value
    others = {f.name for f in fields(Preset)} - {part}
    assert all(getattr(changed, k) == getattr(PRESETS["tiny"], k) for k in others)


def test_overrides_of_teachers():
    changed = override(PRESETS["tiny"], ["teachers.1.lr=1e-4", "teachers.0.network=runs/a/student.safetensors"])
    assert changed.teachers[1].lr == 1e-4 and changed.teachers[0].network == "runs/a/student.safetensors"
    assert override(Preset(), ["teachers=[{network: resnet18}, {network: annotators}]"]).teachers[1].network == "annotators"


@pytest.mark.parametrize("change", ["student.epochs", "teachers.2.lr=1", "teachers.one.lr=1", "student.epochs.more=1", "student.lr=[", "", "=3"])
def test_overrides_that_cannot_be_meant(change):
    with pytest.raises(ConfigError) as e:
        override(PRESETS["tiny"], [change])
    assert repr(change) in str(e.value) or "no such field" in str(e.value)


def test_files(tmp_path):
    def load(name, text, **how):
        (tmp_path / name).write_text(text, **how)
        return load_config(tmp_path / name)

    assert load("a.yaml", "student: {epochs: 40, lr: 1e-3}\nteachers:\n- network: resnet18\n") == Preset(
        student=Fit(epochs=40, lr=1e-3), teachers=(Fit("resnet18"),))
    assert load("b.json", json.dumps(asdict(FULL))) == FULL
    assert load("config.json", json.dumps({"preset": "x", "seed": 3, "settings": to_dict(PRESETS["cpu"])})) == PRESETS["cpu"]
    assert load("empty.yml", "") == Preset()
    for name, text in (("c.json", "{"), ("d.yaml", "a: [1"), ("e.yaml", "!!python/object:os.system {}")):
        with pytest.raises(ConfigError, match=f"{name}: neither JSON nor YAML"):
            load(name, text)
    with pytest.raises(ConfigError, match="f.yaml: student.epoch: no such field"):
        load("f.yaml", "student: {epoch: 1}")
    with pytest.raises(ConfigError, match="neither"):
        load("g.json", "\xff", encoding="latin-1")
    with pytest.raises(ConfigError, match="nothing.yaml"):
        load_config(tmp_path / "nothing.yaml")


def test_a_run_of_an_older_version_is_refused_by_its_fields():
    with pytest.raises(ConfigError, match="flat settings of a version before 0.1"):
        from_dict({"teachers": [{"name": "resnet18", "input_size": 48}], "adv_eps": 0.01, "student": "light"})


def test_no_torch_is_loaded():
    code = "import sys, fer_nb.config as c; c.from_dict({}); print([m for m in ('torch', 'fastai', 'timm') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.parametrize("name, value", [("pretrained", "no"), ("decay_all", "False"), ("network", 5), ("augment", {}), ("device", 0)])
def test_a_field_of_another_type_is_refused(name, value):
    with pytest.raises(ConfigError, match=f"{name}="):
        Fit(**{name: value})


@pytest.mark.parametrize("change, says", [
    ("student.mix=0.4", "student.mix=0.4 beside teachers"), ("student.sam=0.05", "student.sam=0.05 beside teachers"),
    ("student.crops=2", "student.crops=2 beside teachers"), ("adversarial.eps=8", "at most 1"), ("adversarial.attacks=[]", "attacks"),
    ("evaluation.eps=[8]", "at most 1")])
def test_what_would_fail_after_hours_is_refused_at_once(change, says):
    """The teachers come first: their hours would be lost."""
    with pytest.raises(ConfigError, match=says):
        override(PRESETS["cpu"], [change])


@pytest.mark.parametrize("changes", [["student.mix=0.4", "teachers=[]"], ["student.crops=2", "distillation.cached_views=mean"], ["evaluation.eps=[]"]])
def test_what_goes_is_taken(changes):
    override(PRESETS["cpu"], changes)


@pytest.mark.parametrize("text, value", [("010", 10), ("1e-3", .001), ("0o10", 8), ("0x10", 16), ("-3", -3), (".5", .5), ("1.", 1.0), ("1_000", 1000), ("true", True), ("null", None)])
def test_numbers_are_those_of_yaml_12(text, value):
    from fer_nb.config import _parsed
    assert _parsed(text) == value and type(_parsed(text)) is type(value)


def test_sixty_is_no_base_and_no_key_is_given_twice(tmp_path):
    with pytest.raises(ConfigError, match="student.lr='1:30'"):
        override(PRESETS["tiny"], ["student.lr=1:30"])
    (path := tmp_path / "twice.yaml").write_text("student:\n  epochs: 40\nstudent:\n  lr: 1e-4\n")
    with pytest.raises(ConfigError, match="'student' is given twice"):
        load_config(path)
    (path := tmp_path / "twice.json").write_text('{"student": {"epochs": 40}, "student": {"lr": 1e-4}}')
    with pytest.raises(ConfigError, match="'student' is given twice"):
        load_config(path)


def test_numbers_of_numpy_are_numbers():
    assert type(Data(targets=np.int64(8)).targets) is int and type(Fit(lr=np.float32(1e-3)).lr) is float
    assert json.loads(json.dumps(to_dict(Preset(data=Data(targets=np.int64(8))))))["data"]["targets"] == 8


def test_merged_keys_and_a_preset_without_its_folds(tmp_path):
    (path := tmp_path / "m.yaml").write_text("student: &s {epochs: 3, bs: 16}\nborn_again:\n  student:\n    <<: *s\n    epochs: 5\n")
    found = load_config(path)
    assert (found.student.epochs, found.born_again.student.epochs, found.born_again.student.bs) == (3, 5, 16)
    assert override(PRESETS["paper-dmc"], ["data.folds=null"]).data.folds is None
    with pytest.raises(ConfigError, match="folds_by='subject' without folds"):
        override(PRESETS["tiny"], ["data.folds_by=subject"])


def test_a_file_of_weights_counts_by_its_content(tmp_path):
    (file := tmp_path / "w.safetensors").write_bytes(b"one")
    first = replace(FULL, teachers=(), student=Fit(str(file)))
    preset = replace(first, teachers=(Fit(str(file)), Fit("resnet18"), Fit(str(tmp_path / "gone.safetensors"))), born_again=None)
    before = to_dict(preset, contents=True)
    assert "sha256" not in json.dumps(to_dict(preset)) and from_dict(to_dict(preset)) == replace(
        preset, student=Fit("w.safetensors"), teachers=(Fit("w.safetensors"), Fit("resnet18"), Fit("gone.safetensors")))
    assert before["student"]["sha256"] == before["teachers"][0]["sha256"] and before["student"]["network"] == "w.safetensors"
    assert not any("sha256" in fit for fit in before["teachers"][1:])
    file.write_bytes(b"two")
    assert to_dict(preset, contents=True)["student"]["sha256"] != before["student"]["sha256"] and to_dict(preset) == to_dict(preset)


@pytest.mark.parametrize("eps", [(0.03, 0.03), (8 / 255, 0.03137), (0, 0.0)])
def test_radii_that_a_table_cannot_tell_apart_are_refused(eps):
    with pytest.raises(ConfigError, match=r"eps: \d\S*/255 twice; radii that differ"):
        Evaluation(eps=eps)
    with pytest.raises(ConfigError, match=r"^evaluation\.eps: "):
        override(Preset(), [f"evaluation.eps={list(eps)}"])


def test_a_size_that_no_machine_holds_is_refused():
    with pytest.raises(ConfigError, match=r"student\.size=100000000000; at least 1 and at most 4096 pixels"):
        override(Preset(), ["student.size=100000000000"])
