"""The teacher, and the student, that have seen faces: TensorFlow.js files, Keras's MobileNet against its arithmetic
written out in NumPy, folded batch norms, and where the weights come from. The published weights are not needed: files of
the same form are made here."""
import copy
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import nn

from fer_nb import models
from fer_nb.core import ConfigError, DataError, DownloadError, file_sha256
from fer_nb.hyfer_studies import train_shipped
from fer_nb.models import (HYFER, HyFER, absorb_norms, create_teacher, face_weights_file, load_teacher, read_tfjs, save_teacher,
                           start_from_faces)
from fer_nb.pipeline import Preset, TeacherSpec, fit_student, fit_teacher, make_splits
from fer_nb.synth import make_faces

WIDTHS = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)  # of MobileNet-V1 (Howard et al., 2017)
STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
MEAN = np.array([103.939, 116.779, 123.68])                                  # blue, green, red


def write_tfjs(folder, weights, name="faceres", half=True, shards=1):
    listed, raw = [], b""
    for key, a in weights.items():
        kind = np.float16 if half and a.dtype == np.float32 else a.dtype
        raw += a.astype(kind).tobytes()
        listed.append({"name": key, "shape": list(a.shape), "dtype": str(a.dtype)}
                      | ({"quantization": {"dtype": "float16", "original_dtype": "float32"}} if kind == np.float16 else {}))
    cuts = np.linspace(0, len(raw), shards + 1).astype(int)
    paths = [f"{name}.bin"] if shards == 1 else [f"{name}-{k}.bin" for k in range(shards)]
    for path, a, b in zip(paths, cuts[:-1], cuts[1:]):
        (folder / path).write_bytes(raw[a:b])
    (folder / f"{name}.json").write_text(json.dumps({"weightsManifest": [{"paths": paths, "weights": listed}]}))
    return folder / f"{name}.json"


@pytest.fixture(scope="module")
def keras():
    "Weights with the names and shapes of the published file, that keep activations alive through 27 layers."
    rng, out = np.random.default_rng(0), {}

    def layer(name, kernel, shape, fan):
        out[name + kernel] = rng.normal(0, np.sqrt(2 / fan), shape)
        if "_dw_" in name:
            out[f"{name}_bn/batchnorm_1/mul"] = rng.uniform(0.5, 1.5, (1, 1, 1, shape[2]))
        width = shape[2] if "_dw_" in name else shape[3]
        out[f"{name}_bn/batchnorm_1/sub"] = rng.normal(0.2, 0.3, (1, 1, 1, width))

    layer("conv1", "/convolution/merged_input", (3, 3, 3, 32), 27 * 100**2)
    for i, (before, width) in enumerate(zip((32, *WIDTHS), WIDTHS), 1):
        layer(f"conv_dw_{i}", "/depthwise_kernel", (3, 3, before, 1), 9)
        layer(f"conv_pw_{i}", "/convolution/merged_input", (1, 1, before, width), before)
    out = {k: v.astype(np.float16).astype(np.float32) for k, v in out.items()}
    return out | {"axis": np.array([1, 2], np.int32)}


@pytest.fixture
def folder(tmp_path, keras, monkeypatch):
    write_tfjs(tmp_path, keras)
    monkeypatch.setattr(models, "_FACES_SHA256", {n: file_sha256(tmp_path / n) for n in ("faceres.json", "faceres.bin")})
    monkeypatch.setenv("FER_NB_FACERES", str(tmp_path))
    return tmp_path


def same(x, stride):
    "TensorFlow's SAME padding for 3×3 windows: what is odd goes to the right and below. x (H, W, C) -> windows."
    pads = []
    for n in x.shape[:2]:
        total = max((-(-n // stride) - 1) * stride + 3 - n, 0)
        pads.append((total // 2, total - total // 2))
    return sliding_window_view(np.pad(x, (*pads, (0, 0))), (3, 3), (0, 1))[::stride, ::stride]


def by_hand(keras, rgb):
    "Pooled features of one picture (H, W, 3) in [0, 255], as Keras computes them, in float64."
    def norm(x, name):
        return np.clip(x * keras.get(f"{name}_bn/batchnorm_1/mul", np.ones(1)).reshape(-1)
                       + keras[f"{name}_bn/batchnorm_1/sub"].reshape(-1), 0, 6)
    x = rgb[..., ::-1].astype(np.float64) - MEAN
    x = norm(np.einsum("hwcij,ijco->hwo", same(x, 2), keras["conv1/convolution/merged_input"].astype(np.float64)), "conv1")
    for i, stride in enumerate(STRIDES, 1):
        kernel = keras[f"conv_dw_{i}/depthwise_kernel"][..., 0].astype(np.float64)
        x = norm(np.einsum("hwcij,ijc->hwc", same(x, stride), kernel), f"conv_dw_{i}")
        x = norm(x @ keras[f"conv_pw_{i}/convolution/merged_input"][0, 0].astype(np.float64), f"conv_pw_{i}")
    return x.mean((0, 1))


@pytest.mark.parametrize("size", [32, 45])
def test_features_are_those_of_keras(folder, keras, size):
    teacher = create_teacher("mobilenet_vggface2", input_size=size).eval()
    teacher.net.reset_classifier(0)
    rgb = np.random.default_rng(size).integers(0, 256, (size, size, 3))
    x = torch.from_numpy(rgb).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        ours = teacher(x)[0].numpy()
        turned = teacher(x.flip(1))[0].numpy()
    expected = by_hand(keras, rgb)
    assert expected.std() > 0.05 and (expected > 0).mean() > 0.5       # a picture does come through
    np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-3)
    assert np.abs(turned - expected).max() > 0.05                      # and its colours are not all one


def test_it_travels_with_its_padding_and_normalisation(folder, tmp_path):
    teacher = create_teacher("mobilenet_vggface2", input_size=48).eval()
    x = torch.rand(2, 1, 40, 40)
    with torch.no_grad():
        assert torch.equal(load_teacher(save_teacher(teacher, tmp_path / "t.safetensors"))(x), teacher(x))
    assert sum(p.numel() for p in teacher.net.parameters()) == 3_206_976 + 7 * 1024 + 7   # MobileNet's 3.2 M and a classifier


# ---- files ----

@pytest.mark.parametrize("half, shards", [(True, 1), (False, 1), (True, 3)])
def test_tfjs_weights_are_read(tmp_path, half, shards):
    rng = np.random.default_rng(0)
    wrote = {"kernel": rng.normal(size=(3, 3, 2, 5)).astype(np.float32), "axis": np.array([1, 2], np.int32),
             "bias": rng.normal(size=5).astype(np.float32), "eps": np.float32(0.5).reshape(())}
    read = read_tfjs(write_tfjs(tmp_path, wrote, half=half, shards=shards))
    assert set(read) == {"kernel", "bias", "eps"} and all(v.dtype == torch.float32 for v in read.values())
    for name, value in read.items():
        expected = wrote[name].astype(np.float16 if half else np.float32)
        assert value.shape == wrote[name].shape and np.array_equal(value.numpy(), expected.astype(np.float32))


@pytest.mark.parametrize("spoil", ["cut", "long", "missing", "json", "form"])
def test_files_that_are_not_tfjs_are_named(tmp_path, spoil):
    path = write_tfjs(tmp_path, {"w": np.ones((4, 4), np.float32)})
    numbers = path.with_suffix(".bin")
    {"cut": lambda: numbers.write_bytes(numbers.read_bytes()[:-2]), "long": lambda: numbers.write_bytes(bytes(40)),
     "missing": numbers.unlink, "json": lambda: path.write_text("{"), "form": lambda: path.write_text("{}")}[spoil]()
    with pytest.raises(DataError, match="faceres.json: not a TensorFlow.js model"):
        read_tfjs(path)


def test_weights_of_other_quantisations_are_refused(tmp_path):
    path = write_tfjs(tmp_path, {"w": np.ones((4, 4), np.float32)}, half=False)
    about = json.loads(path.read_text())
    about["weightsManifest"][0]["weights"][0]["quantization"] = {"dtype": "uint8", "scale": 0.1, "min": -1.0}
    path.write_text(json.dumps(about))
    path.with_suffix(".bin").write_bytes(bytes(16))
    with pytest.raises(DataError, match="uint8"):
        read_tfjs(path)


def test_a_folder_without_the_files_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("FER_NB_FACERES", str(tmp_path))
    with pytest.raises(ConfigError, match="FER_NB_FACERES.*faceres.json"):
        create_teacher("mobilenet_vggface2", input_size=48)


def test_other_weights_are_refused(folder):
    (folder / "faceres.bin").write_bytes(b"other")
    with pytest.raises(DownloadError, match="faceres.bin: SHA-256 .* expected"):
        face_weights_file()


def test_without_network_the_message_says_where_to_put_the_files(tmp_path, monkeypatch):
    monkeypatch.delenv("FER_NB_FACERES", raising=False)
    monkeypatch.setenv("FER_NB_CACHE", str(tmp_path))
    monkeypatch.setattr(models, "_FACES_URL", "http://127.0.0.1:9/")
    with pytest.raises(DownloadError, match=r"put the file\s+there yourself: .*faceres.json"):
        create_teacher("mobilenet_vggface2", input_size=48)


def test_what_lies_in_the_cache_needs_no_network(folder, monkeypatch):
    monkeypatch.delenv("FER_NB_FACERES")
    monkeypatch.setenv("FER_NB_CACHE", str(folder))
    monkeypatch.setattr(models, "_FACES_URL", "http://127.0.0.1:9/")
    assert face_weights_file() == folder / "faceres.json"


# ---- norms ----

def test_absorbed_norms_compute_the_same_and_fit_the_data():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8))
    for m in (net[1], net[4]):
        nn.init.uniform_(m.weight, -2, 2), nn.init.normal_(m.bias), nn.init.normal_(m.running_mean), nn.init.uniform_(m.running_var, 0.1, 3)
    x, other = 5 * torch.randn(16, 3, 9, 9) + 2, torch.randn(4, 3, 9, 9)
    with torch.no_grad():
        before, elsewhere = net.eval()(x), net(other)
        assert not torch.allclose(copy.deepcopy(net).train()(x), before, atol=0.1)  # training would forget
        again = absorb_norms(net, x)
        assert again is net and not net.training
        torch.testing.assert_close(net(x), before, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(net(other), elsewhere, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(net.train()(x), before, rtol=1e-3, atol=1e-3)


def test_a_failed_pass_leaves_no_hook():
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3))
    with pytest.raises(RuntimeError):
        absorb_norms(net, torch.rand(2, 3, 2, 2))
    assert not any(m._forward_pre_hooks for m in net.modules())


def test_a_constant_channel_keeps_its_function():
    net = nn.Sequential(nn.BatchNorm2d(2)).eval()
    x = torch.ones(4, 2, 3, 3)
    before = net(x)
    torch.testing.assert_close(absorb_norms(net, x)(x), before, rtol=1e-3, atol=1e-3)


# ---- in a run ----

def test_a_run_starts_from_what_the_face_network_knows(folder, monkeypatch):
    faces = make_faces(200, defects=None, balance="uniform")[0]
    spec = TeacherSpec("mobilenet_vggface2", 32, 1, 1e-4, bs=16)
    splits = make_splits(faces, preset := Preset((spec,), targets=None, clean=False), 0)
    seen = {}

    def peek(net, dls, *_, **__):
        seen["net"] = net.net
        with torch.no_grad():
            x = next(iter(dls.train))[0]
            seen["apart"] = float((net.train()(x) - net.eval()(x)).abs().mean() / net(x).abs().mean())
        raise StopIteration
    monkeypatch.setattr("fer_nb.pipeline.fit_model", peek)
    with pytest.raises(StopIteration):
        fit_teacher(0, splits, preset)
    norms = [m for m in seen["net"].modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(m.running_mean.abs().sum() > 0 for m in norms)           # the norms know the images
    assert seen["apart"] < 1                                            # so training starts where the weights are


def test_a_run_trains_it(folder):
    faces = make_faces(200, defects=None, balance="uniform")[0]
    preset = Preset((TeacherSpec("mobilenet_vggface2", 32, 1, 1e-4, bs=16),), targets=None, clean=False)
    net, history = fit_teacher(0, make_splits(faces, preset, 0), preset)
    assert net.name == "mobilenet_vggface2" and np.isfinite(history.train_loss).all() and not net.training


# ---- a student that begins there ----

def twice(x):
    "Twice the side, bilinear, as images are enlarged: a pixel is ¾ of the nearer one and ¼ of the next. x (H, W, C)."
    for axis in (0, 1):
        x = np.moveaxis(x, axis, 0)
        before, behind = np.concatenate([x[:1], x[:-1]]), np.concatenate([x[1:], x[-1:]])
        x = np.moveaxis(np.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * behind], 1).reshape(-1, *x.shape[1:]), 0, axis)
    return x


@pytest.mark.parametrize("in_chans", [1, 3])
def test_the_student_sees_what_mobilenet_sees_of_the_enlarged_picture(folder, keras, in_chans):
    student = start_from_faces(HyFER(in_chans=in_chans, variant="light_face")).eval()
    rgb = np.repeat(np.random.default_rng(0).integers(0, 256, (20, 20, 1)), 3, 2)
    if in_chans == 3:
        rgb = np.random.default_rng(1).integers(0, 256, (20, 20, 3))
    x = torch.from_numpy(rgb).permute(2, 0, 1)[None, :in_chans].float() / 255
    with torch.no_grad():
        ours = student.blocks[0](student.stem(student.adapt(x)))[0].permute(1, 2, 0).numpy()

    def norm(x, name):
        return np.clip(x * keras.get(f"{name}_bn/batchnorm_1/mul", np.ones(1)).reshape(-1)
                       + keras[f"{name}_bn/batchnorm_1/sub"].reshape(-1), 0, 6)
    y = twice(rgb[..., ::-1].astype(np.float64)) - MEAN
    y = norm(np.einsum("hwcij,ijco->hwo", same(y, 2), keras["conv1/convolution/merged_input"].astype(np.float64)), "conv1")
    y = norm(np.einsum("hwcij,ijc->hwc", same(y, 1), keras["conv_dw_1/depthwise_kernel"][..., 0].astype(np.float64)), "conv_dw_1")
    y = norm(y @ keras["conv_pw_1/convolution/merged_input"][0, 0].astype(np.float64), "conv_pw_1")
    inside = slice(2, -2)                                               # beyond the edge one repeats pixels, the other adds none
    assert y.shape == ours.shape == (20, 20, 64) and y[inside, inside].std() > 0.5
    np.testing.assert_allclose(ours[inside, inside], y[inside, inside], rtol=1e-3, atol=2e-3)


def test_all_its_blocks_are_mobilenets_and_nothing_else_is(folder, keras):
    torch.manual_seed(0)
    fresh = HyFER(in_chans=1, variant="light_face")
    student = start_from_faces(copy.deepcopy(fresh))
    for i, block in enumerate(student.blocks, 1):
        np.testing.assert_array_equal(block[0].conv.weight.detach()[:, 0].permute(1, 2, 0), keras[f"conv_dw_{i}/depthwise_kernel"][..., 0])
        np.testing.assert_array_equal(block[1].conv.weight.detach()[..., 0, 0].T, keras[f"conv_pw_{i}/convolution/merged_input"][0, 0])
        np.testing.assert_array_equal(block[0].bn.bias.detach(), keras[f"conv_dw_{i}_bn/batchnorm_1/sub"].reshape(-1))
    for part in ("neck", "epc", "proj", "fc"):
        assert all(torch.equal(a, b) for a, b in zip(getattr(student, part).parameters(), getattr(fresh, part).parameters()))


def test_a_strided_block_is_mobilenets_one_pixel_further_up_and_left(folder, keras):
    block = start_from_faces(HyFER(in_chans=1, variant="light_face")).eval().blocks[1]
    x = np.random.default_rng(0).uniform(0, 2, (12, 12, 64))
    with torch.no_grad():
        ours = block[0](torch.from_numpy(x).permute(2, 0, 1)[None].float())[0].permute(1, 2, 0).numpy()
    moved = np.zeros_like(x)
    moved[1:, 1:] = x[:-1, :-1]
    z = np.einsum("hwcij,ijc->hwc", same(moved, 2), keras["conv_dw_2/depthwise_kernel"][..., 0].astype(np.float64))
    z = z * keras["conv_dw_2_bn/batchnorm_1/mul"].reshape(-1) + keras["conv_dw_2_bn/batchnorm_1/sub"].reshape(-1)
    np.testing.assert_allclose(ours[:-1, :-1], np.clip(z, 0, 6)[:-1, :-1], rtol=1e-3, atol=2e-3)  # the last pixels moved out
    assert z[:-1, :-1].std() > 0.1


@pytest.mark.parametrize("variant", ["light", "light_res", *(replace(HYFER["light_face"], **other) for other in (
    {"stem_stride": 2}, {"act": "silu"}, {"blocks": ((64, 1, 0), (128, 1, 0))}, {"stem": 24, "blocks": ()}))])
def test_other_students_cannot_begin_there(variant):
    with pytest.raises(ConfigError, match="MobileNet's first blocks"):
        start_from_faces(HyFER(in_chans=1, variant=variant))


def test_a_shorter_student_can(folder, keras):
    student = start_from_faces(HyFER(in_chans=1, variant=replace(HYFER["light_face"], blocks=HYFER["light_face"].blocks[:4])))
    np.testing.assert_array_equal(student.blocks[3][1].conv.weight.detach()[..., 0, 0].T, keras["conv_pw_4/convolution/merged_input"][0, 0])


def test_a_run_begins_with_these_weights(folder, monkeypatch):
    faces = make_faces(200, defects=None, balance="uniform")[0]
    preset = Preset((TeacherSpec("resnet18", 32, 1, 1e-3, False),), targets=None, clean=False, student="light_face",
                    start="vggface2", epochs=1, bs=32)
    splits, seen = make_splits(faces, preset, 0), []
    monkeypatch.setattr("fer_nb.pipeline.fit_model", lambda net, *_, **__: seen.append(copy.deepcopy(net)))
    fit_student(splits, preset)
    fit_student(splits, replace(preset, start=None))
    known, x = start_from_faces(HyFER(in_chans=1, variant="light_face")).eval(), torch.rand(2, 1, 48, 48)
    with torch.no_grad():
        features = [net.eval().blocks(net.stem(net.adapt(x))) for net in (*seen, known)]
    torch.testing.assert_close(features[0], features[2], rtol=1e-3, atol=1e-3)
    assert (features[1] - features[2]).abs().mean() > 0.1
    assert all(m.running_mean.abs().sum() > 0 for m in seen[0].modules() if isinstance(m, nn.BatchNorm2d))


def test_a_long_run_trains_the_student_and_its_card_says_where_it_began(folder, tmp_path):
    faces = make_faces(200, defects=None, balance="uniform")[0]
    preset = Preset((TeacherSpec("resnet18", 32, 1, 1e-3, False),), targets=None, clean=False, student="light_face", views=1,
                    start="vggface2", epochs=1, bs=32, amp="bf16", adv_epochs=1, adv_steps=1)
    card = HyFER.from_pretrained(folder=train_shipped(faces, tmp_path / "s", preset)).card
    assert card["parameters"] == 970_887 and "VGGFace2" in card["record"]["licence"]
    assert np.isfinite(pd.read_csv(tmp_path / "s/history.csv").train_loss).all()


@pytest.mark.parametrize("changed, told", [({"start": "imagenet"}, "start='imagenet'; 'vggface2' or None expected"),
                                           ({"start": "vggface2", "student": "light"}, "student='light'; a student of MobileNet's")])
def test_starts_that_cannot_be_are_refused_before_anything_is_fitted(changed, told):
    with pytest.raises(ConfigError, match=told):
        Preset((TeacherSpec("resnet18", 32, 1, 1e-3, False),), **changed)
