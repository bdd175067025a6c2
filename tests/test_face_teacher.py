"""The teacher that has seen faces: TensorFlow.js files, Keras's MobileNet against its arithmetic written out in NumPy,
folded batch norms, and where the weights come from. The published weights are not needed: files of the same form are
made here."""
import copy
import json

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import nn

from fer_nb import models
from fer_nb.core import ConfigError, DataError, DownloadError, file_sha256
from fer_nb.models import absorb_norms, create_teacher, face_weights_file, load_teacher, read_tfjs, save_teacher
from fer_nb.pipeline import Preset, TeacherSpec, fit_teacher, make_splits
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
    parts = make_splits(faces, preset := Preset((spec,), targets=None, clean=False), 0)
    seen = {}

    def peek(net, dls, *_, **__):
        seen["net"] = net.net
        with torch.no_grad():
            x = next(iter(dls.train))[0]
            seen["apart"] = float((net.train()(x) - net.eval()(x)).abs().mean() / net(x).abs().mean())
        raise StopIteration
    monkeypatch.setattr("fer_nb.pipeline.fit_model", peek)
    with pytest.raises(StopIteration):
        fit_teacher(0, parts, preset)
    norms = [m for m in seen["net"].modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(m.running_mean.abs().sum() > 0 for m in norms)           # the norms know the images
    assert seen["apart"] < 1                                            # so training starts where the weights are


def test_a_run_trains_it(folder):
    faces = make_faces(200, defects=None, balance="uniform")[0]
    preset = Preset((TeacherSpec("mobilenet_vggface2", 32, 1, 1e-4, bs=16),), targets=None, clean=False)
    net, history = fit_teacher(0, make_splits(faces, preset, 0), preset)
    assert net.name == "mobilenet_vggface2" and np.isfinite(history.train_loss).all() and not net.training
