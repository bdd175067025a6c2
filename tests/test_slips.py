"""Slips that people really make: a clear, typed error, and nothing silently wrong.

Which of these tests concern which room is listed in tests/README.md.
"""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from fer_nb.advtrain import AdversarialTraining
from fer_nb.attacks import fgsm, pgd
from fer_nb.audit import audit
from fer_nb.cli import main
from fer_nb.compare import compare, mcnemar, paired_t
from fer_nb.core import EMOTIONS, ConfigError, DataError, ImageError, LabelError
from fer_nb.data import FERData, read_folder, read_image, to_array
from fer_nb.distill import EADD, distill_loss, eadd_weights
from fer_nb.evaluate import evaluate
from fer_nb.hyfer_studies import SHIP, distillation_study, kfold_study
from fer_nb.export import OnnxModel, quantize, to_onnx
from fer_nb.metrics import ece, fit_temperature, resample_counts
from fer_nb.models import HYFER, HyFER, create_teacher, fuse, save_hyfer, save_teacher, teacher_table
from fer_nb.predict import Recogniser, as_image
from fer_nb.sqs import SQS, attach_sqs
from fer_nb.synth import make_faces


@pytest.fixture(scope="module")
def faces():
    return make_faces(60, seed=0, size=48, splits=(0.5, 0.5, 0), defects=None)[0]


@pytest.fixture(scope="module")
def photo():
    from skimage.color import rgb2gray
    from skimage.data import astronaut
    return (255 * rgb2gray(astronaut())).round().astype(np.uint8)


# ---- cleaning and leaks ----

@pytest.mark.parametrize("splits", ["training", ("training",), ("train", "val")])
def test_cleaning_a_split_that_is_none_is_refused(splits):
    found = audit(make_faces(120, seed=0)[0], ("duplicate", "leak"), None)
    with pytest.raises(ConfigError, match="splits='(training|val)'; 'train', 'valid' or 'test' expected"):
        found.clean(splits=splits)


@pytest.mark.parametrize("duplicates", [np.array([True, False]), [3, 4], pd.DataFrame({"id": ["a"]}), "a", 3])
def test_duplicates_that_would_match_nothing_are_refused(duplicates, faces):
    with pytest.raises(ConfigError, match="a collection of ids expected"):
        evaluate(np.zeros((len(faces), 7)), faces, duplicates=duplicates)


@pytest.mark.parametrize("not_data", [(make_faces, None), np.zeros((3, 48, 48), np.uint8)])
def test_what_is_no_dataset_is_named(not_data, net):
    for call in (lambda: evaluate(net, not_data), lambda: audit(not_data)):
        with pytest.raises(ConfigError, match="a FERData expected"):
            call()


# ---- data ----

def put(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), value).save(path)


def test_people_inside_class_folders_do_not_become_classes(tmp_path):
    for k, name in enumerate(("happy/anna/1.png", "sad/anna/2.png", "train/Anger/ben/3.png")):
        put(tmp_path / str(k) / name)
        with pytest.raises(DataError, match="which names a class itself"):
            read_folder(tmp_path / str(k))
    put(tmp_path / "own/proud/anna/1.png")
    with pytest.raises(DataError, match="'proud', which names a class"):
        read_folder(tmp_path / "own", labels=("proud", "shy"))
    for name in ("archive/train/happy/1.png", "archive/train/sad/2.png"):
        put(tmp_path / "fine" / name)
    assert read_folder(tmp_path / "fine").labels == ("happy", "sad")
    assert read_folder(tmp_path / "fine", labels=["Sadness", "Happy"]).labels == ("sad", "happy")


@pytest.mark.parametrize("labels, error", [({"angry", "sad"}, ConfigError), ("angry", ConfigError), (None, TypeError),
                                           ((*EMOTIONS, "sad"), LabelError)])
def test_labels_have_an_order_and_come_once(labels, error, faces):
    with pytest.raises(error):
        FERData(faces.df, faces.array(), labels)


def test_images_are_one_array_or_files(faces):
    for images in (list(faces.array()), [Image.new("L", (8, 8))] * len(faces)):
        with pytest.raises(ImageError, match="one uint8 array, or image files"):
            FERData(faces.df, images)


@pytest.mark.parametrize("rows", [[999], [-61], 3, [[1, 2]]])
def test_rows_that_are_not_there(rows, faces):
    with pytest.raises((IndexError, ValueError, DataError)):
        faces.take(rows)


def test_pictures_of_floats_are_read_by_the_rule_of_arrays(tmp_path, photo):
    as_floats = photo.astype(np.float32) / 255
    assert np.abs(to_array(Image.fromarray(as_floats)).astype(int) - photo).max() <= 1
    Image.fromarray(as_floats).save(tmp_path / "f.tiff")
    assert np.array_equal(read_image(tmp_path / "f.tiff"), to_array(Image.fromarray(as_floats)))
    for odd, said in ((photo.astype(np.float32), "floats from 0 to 1"), (np.full((4, 4), np.nan, np.float32), "floats from 0 to 1"),
                      (photo.astype(np.int32), "8 or 16 bits")):
        with pytest.raises(ImageError, match=said):
            to_array(Image.fromarray(odd))
    sixteen = to_array(Image.fromarray(photo.astype(np.int32) * 257))
    assert np.array_equal(sixteen, photo)
    with pytest.raises(ImageError, match="0 × 0"):
        to_array(Image.new("L", (0, 0)))


@pytest.mark.parametrize("values, said", [([[0, 65_536]], "to 65536"), ([[-1, 300]], "from -1"), ([[0, 255]], "8 or 16 bits"),
                                          ([[0, 2**31 - 1]], "up to 65,535")])
def test_wider_integers_than_sixteen_bits_are_refused(tmp_path, values, said):
    picture = Image.fromarray(np.array(values, np.int32))
    picture.save(tmp_path / "wide.tiff")
    for read in (lambda: to_array(picture), lambda: as_image(picture), lambda: as_image(tmp_path / "wide.tiff"),
                 lambda: read_image(tmp_path / "wide.tiff")):
        with pytest.raises(ImageError, match=said):
            read()


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_fewer_bits_are_read_alike_everywhere_and_said(tmp_path, photo, bits):
    deep = (photo.astype(float) * ((1 << bits) - 1) / photo.max()).round().astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    expected = np.round(deep * 255.0 / ((1 << bits) - 1))
    for read in (lambda: read_image(tmp_path / "deep.png"), lambda: as_image(tmp_path / "deep.png"), lambda: as_image(deep),
                 lambda: to_array(Image.fromarray(deep.astype(np.int32))), lambda: as_image(Image.fromarray(deep))):
        with pytest.warns(UserWarning, match=f"read as {bits} bits"):
            assert np.array_equal(read(), expected)


@pytest.mark.parametrize("array", [np.full((9, 9), 7, np.int64), np.full((9, 9), 7, np.uint32), np.full((9, 9), -7, np.int32),
                                   np.full((9, 9), 256.0), np.full((9, 9), 1.5), np.full((9, 9), -.5), np.full((9, 9), np.nan),
                                   np.full((9, 9), np.inf), np.full((9, 9), -np.inf), np.full((9, 9), 1j), np.full((9, 9), True),
                                   np.full((9, 9), "a"), np.zeros((9, 0), np.uint8), np.full((9, 9), 7, np.int8)])
def test_arrays_whose_white_would_have_to_be_guessed_are_refused(array):
    with pytest.raises(ImageError, match="expected"):
        as_image(array)


# ---- budgets and probabilities ----

def test_a_budget_in_grey_levels_is_refused(net):
    x, y = torch.rand(2, 1, 48, 48), torch.tensor([0, 1])
    for call in (lambda: pgd(net, x, y, eps=8, steps=1), lambda: fgsm(net, x, y, eps=8), lambda: AdversarialTraining(eps=8)):
        with pytest.raises(ConfigError, match="8/255"):
            call()
    assert pgd(net, x, y, eps=8.0, steps=1, norm="l2").shape == x.shape  # a Euclidean length may be above 1


def test_numbers_of_numpy_are_numbers(net):
    x, y = torch.rand(2, 1, 48, 48), torch.tensor([0, 1])
    ours = pgd(net, x, y, eps=np.float32(0.03), steps=np.int64(2), random_start=False)
    assert torch.allclose(ours, pgd(net, x, y, eps=0.03, steps=2, random_start=False), atol=1e-6)
    AdversarialTraining(seed=-1)
    assert AdversarialTraining(eps=np.float32(2 / 255)).config()["eps"] == pytest.approx(2 / 255)


@pytest.mark.parametrize("setting", [{"steps": 2.5}, {"guard": 2.5}, {"seed": "a"}, {"eps": "a"}, {"eps": None}, {"ratio": None},
                                     {"steps": "7"}, {"ratio": 2}])
def test_adversarial_training_checks_its_settings_before_it_trains(setting):
    with pytest.raises(ConfigError, match=next(iter(setting))):
        AdversarialTraining("pgd", **setting)


def test_probabilities_are_not_logits(faces, net):
    p = np.random.default_rng(0).dirichlet(np.ones(7), len(faces))
    y = faces.targets()
    for call in (lambda: ece(p, y), lambda: fit_temperature(p, y), lambda: evaluate(p, faces),
                 lambda: evaluate(Softened(net), faces)):
        with pytest.raises(ConfigError, match="probabilities"):
            call()
    assert ece(np.log(p), y) >= 0


class Softened(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net, self.labels = net, net.labels

    def forward(self, x):
        return self.net(x).softmax(1)


# ---- callbacks ----

def test_percentages_are_no_accuracies():
    for acc in ([[60.0], [62.0]], [[np.nan], [0.5]], [[-0.1], [0.5]]):
        with pytest.raises(ConfigError, match="shares from 0 to 1"):
            eadd_weights(acc, 0.1)
    with pytest.raises(ConfigError, match="T=0; a positive number"):
        distill_loss(torch.zeros(2, 3), torch.zeros(2, 3), 0)


@pytest.mark.parametrize("teachers", ["one", ["x.safetensors"], [nn.Linear(2, 2)], []])
def test_teachers_are_a_list_of_networks(teachers, net):
    with pytest.raises(ConfigError, match="teacher"):
        EADD(net if teachers == "one" else teachers)


def test_sqs_refuses_what_it_would_ignore():
    with pytest.raises(ConfigError, match="purity=50"):
        SQS(purity=50)
    with pytest.raises(ConfigError, match="lam"):
        SQS(lam="a")
    with pytest.raises(ConfigError, match="alpha: first values"):
        attach_sqs(HyFER(7, 1, "light"), alpha=2)


def test_sqs_refuses_two_heads_of_different_classes(faces):
    from fastai.learner import Learner
    from fer_nb.loaders import dataloaders
    own = attach_sqs(HyFER(3, 1, "light"))
    own.reset_classifier(7)
    with pytest.raises(ConfigError, match="the enhanced classifier has 3 classes, the network 7"):
        Learner(dataloaders(faces.where(split="train"), faces.where(split="valid"), 16), own, nn.CrossEntropyLoss(), cbs=[SQS()]).fit(1)


# ---- models and files ----

def test_folding_twice_is_folding_once(net):
    x = torch.rand(2, 1, 48, 48)
    for model in (net, HyFER(7, 1, "light_res").eval()):
        once = fuse(model)
        assert torch.equal(fuse(once)(x), once(x))
    assert len(Recogniser(fuse(net), crop=False).batch([np.zeros((48, 48), np.uint8)])) == 1


def test_models_refuse_what_they_cannot_be(tmp_path, net):
    for call, said, *error in ((lambda: HyFER("light"), "num_classes='light'"), (lambda: HyFER(variant=None), "variant=None"),
                       (lambda: HyFER(3, labels="abc"), "labels='abc'"), (lambda: HyFER(3, labels=["a", "a", "b"]), "more than once"),
                       (lambda: teacher_table(["resnet34"]), "resnet34", KeyError),
                       (lambda: save_teacher(nn.Linear(2, 2), tmp_path / "t.safetensors"), "a Linear is no HyFER"),
                       (lambda: save_hyfer(net, tmp_path / "h.safetensors", accuracy=object()), "numbers, text, lists")):
        with pytest.raises(tuple(error) or ConfigError, match=said):
            call()
    assert not list(tmp_path.iterdir())


def test_an_exported_network_is_recognised_and_not_exported_again(tmp_path, net, faces):
    file = to_onnx(net, tmp_path / "m.onnx")
    exported = OnnxModel(file)
    image = faces.array()[0]
    one, other = (Recogniser(m, crop=False).batch([image])[0][0].probs for m in (exported, net))
    assert one == pytest.approx(other, abs=1e-4)
    with pytest.raises(ConfigError, match="an ONNX file already"):
        to_onnx(exported, tmp_path / "again.onnx")
    small = quantize(file, tmp_path / "m8.onnx", faces.where(split="train"), n=16)
    with pytest.raises(DataError, match="8-bit already"):
        quantize(small, tmp_path / "m88.onnx", faces.where(split="train"), n=16)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m8.onnx"]


@pytest.mark.parametrize("level", [95, 0, 1, -0.5])
def test_a_level_is_a_share(level):
    for call in (lambda: mcnemar([True, False], [True, True], level=level), lambda: paired_t([1, 2], [2, 4], level=level)):
        with pytest.raises(ConfigError, match="level"):
            call()


@pytest.mark.parametrize("size", ["48", (48, 48), 48.0, 0])
def test_an_input_size_is_a_whole_number(size):
    with pytest.raises(ConfigError, match=re.escape(f"images of {size!r} px")):
        create_teacher("resnet18", 7, False, size)


def test_one_picture_and_many_are_told_apart(net, tmp_path):
    recognise = Recogniser(net, crop=False)
    with pytest.raises(ImageError, match="^photo.jpg: no such file"):    # one path is a list of one
        recognise.batch("photo.jpg")
    with pytest.raises(ConfigError, match=r"^list: one folder expected; several paths: results\(\)"):
        recognise.folder([tmp_path, tmp_path])


def test_tables_over_runs_have_a_metric_and_a_value():
    wide = pd.DataFrame({"seed": [0, 1, 2], "accuracy": [0.5, 0.6, 0.7]})
    with pytest.raises(DataError, match="no column 'metric', 'value'"):
        compare(wide, wide)


@pytest.mark.parametrize("seed", [-1, 0.5])
def test_seeds_of_resamples_are_whole_numbers(seed):
    with pytest.raises(ConfigError, match=f"seed={seed}"):
        next(resample_counts(np.zeros(4), 2, seed))


def test_networks_that_cannot_be_built_are_refused():
    with pytest.raises(ConfigError, match="dim=130"):
        HyFER(variant=replace(HYFER["light"], dim=130))
    with pytest.raises(ConfigError, match="drop=2"):
        HyFER(variant="light", drop=2)


def test_weights_for_a_place_that_cannot_be_written_are_an_os_error(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        save_hyfer(HyFER(7, 1, "light"), tmp_path / "w.safetensors")
    assert not list(tmp_path.iterdir())


def test_studies_refuse_a_first_generation_that_they_would_not_train(tmp_path):
    for study in (distillation_study, kfold_study):
        with pytest.raises(ConfigError, match="born_again"):
            study(make_faces(50)[0], SHIP, out=tmp_path / "study")
    assert not list(tmp_path.iterdir())


# ---- the command ----

@pytest.fixture
def two_people(tmp_path, photo):
    save_hyfer(HyFER(7, 1, "light"), tmp_path / "toy.safetensors")
    for person in ("anna", "ben"):
        (tmp_path / person).mkdir()
        Image.fromarray(photo).resize((200, 200)).save(tmp_path / person / "x.jpg")
    return tmp_path


def said(root, capsys, *argv):
    status = main(["predict", *map(str, argv), "--no-crop", "--weights", str(root / "toy.safetensors")])
    return status, *capsys.readouterr()


def test_pictures_of_one_name_do_not_overwrite_each_other(two_people, capsys):
    root = two_people
    for k, given in enumerate((["anna", "ben"], ["anna/x.jpg", "ben/x.jpg"], ["ben", "anna/x.jpg", "anna"])):
        status, _, _ = said(root, capsys, *(root / g for g in given), "--out", "annotated", "--to", root / f"drawn{k}")
        drawn = sorted(p.relative_to(root / f"drawn{k}").as_posix() for p in (root / f"drawn{k}").rglob("*.jpg"))
        assert status == 0 and drawn == [f"{'ben' if k < 2 else 'anna'}/x.jpg", "x.jpg"]


def test_places_that_cannot_be_written_and_nothing_that_can_be_read(two_people, capsys):
    root = two_people
    (root / "a.csv").write_text("kept")
    for argv in ((root / "anna", "--to", root / "ben", "--overwrite"), (root / "anna", "--out", "annotated", "--to", root / "a.csv", "--overwrite"),
                 (root / "anna", "--to", root / "a.csv/x.csv"), (root / "nowhere.jpg",), (root / "anna", "--every", "0"),
                 (root / "anna", "--smooth", "-1")):
        status, _, err = said(root, capsys, *argv)
        assert status == 2 and err.startswith("fer-nb: ") and "Traceback" not in err
    assert (root / "a.csv").read_text() == "kept"
