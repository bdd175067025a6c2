"""Exported networks: what the files hold, that they compute the same, and every way to fail."""
from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from torch import nn

from fer_nb.core import EMOTIONS, ConfigError, DataError, ImageError, LabelError
from fer_nb.data import FERData, resized
from fer_nb.evaluate import predict_logits
from fer_nb.export import ExportError, OnnxModel, efficiency, parity, peak_memory, quantize, to_onnx
from fer_nb.models import (GeometryTeacher, HyFER, HyFERConfig, SQSNet, SQSNetConfig, create_teacher, fuse, load_hyfer,
                           save_hyfer)
from fer_nb.predict import Network
from fer_nb.synth import make_faces

onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
REP = HyFERConfig(8, ((16, 1, 0), (16, 2, 0)), 32, 1, 1, 48, True, "relu", 48)
IR = HyFERConfig(8, ((16, 2, 2), (24, 2, 2)), 32, 1, 2, 48, False, "silu", 48)
WINDOWS = {"embed_dim": 24, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
PAIR = SQSNetConfig("mobilenetv3_small_050", "swin_tiny_patch4_window7_224", 32, 64, "residual", 2, {}, WINDOWS)


def shaken(net: nn.Module, seed: int = 0) -> nn.Module:
    "Batch norms that do something, as after training."
    g = torch.Generator().manual_seed(seed)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.copy_(torch.randn(m.running_mean.shape, generator=g) * .2)
            m.running_var.copy_(torch.rand(m.running_var.shape, generator=g) + .5)
    return net.eval()


def hyfer(variant: HyFERConfig | str = REP, in_chans: int = 1, **kwargs: object) -> HyFER:
    torch.manual_seed(0)
    return shaken(HyFER(kwargs.pop("num_classes", 7), in_chans, variant, **kwargs))


def batch(n: int, c: int, side: int) -> torch.Tensor:
    return torch.rand(n, c, side, side, generator=torch.Generator().manual_seed(1))


def nothing_left(folder: object) -> bool:
    return not list(folder.iterdir())


@pytest.fixture(scope="module")
def faces() -> FERData:
    return make_faces(120, seed=3, defects=None, splits=(.6, .2, .2))[0]


@pytest.fixture(scope="module")
def model() -> HyFER:
    return hyfer()


@pytest.fixture(scope="module")
def exported(model: HyFER, tmp_path_factory: pytest.TempPathFactory):
    return to_onnx(model, tmp_path_factory.mktemp("onnx") / "model.onnx", temperature=1.5, data="abc")


@pytest.fixture(scope="module")
def small(exported, faces: FERData):
    return quantize(exported, exported.with_name("int8.onnx"), faces.where(split="train"), n=40)


# ---------------------------------------------------------------- float

@pytest.mark.parametrize("make", [
    lambda: hyfer(REP, 3), lambda: hyfer(IR), lambda: fuse(hyfer(IR)),
    lambda: hyfer(REP, 1, num_classes=3, labels=["x", "y", "z"]),
    lambda: create_teacher("mobilenetv3_small_050", pretrained=False, input_size=32).eval(),
    lambda: shaken(SQSNet(7, PAIR)),
], ids=["rgb", "patches", "fused", "three labels", "teacher", "sqsnet"])
def test_every_kind_of_network_answers_alike(make, tmp_path) -> None:
    net = make()
    own = OnnxModel(to_onnx(net, tmp_path / "m.onnx"))
    assert (own.labels, own.input_size, own.in_chans, own.temperature) == (
        tuple(net.labels), net.input_size, net.in_chans, 1)
    for n in (1, 3, 5):
        x = batch(n, net.in_chans, net.input_size)
        with torch.no_grad():
            torch.testing.assert_close(own(x), net(x), atol=1e-4, rtol=0)


def test_the_file_needs_nothing_of_ours(exported, model) -> None:
    session = ort.InferenceSession(str(exported), providers=["CPUExecutionProvider"])
    x = batch(4, 1, 48)
    assert [(i.name, i.type, i.shape[1:]) for i in session.get_inputs()] == [("images", "tensor(float)", [1, 48, 48])]
    assert [o.name for o in session.get_outputs()] == ["logits"]
    with torch.no_grad():
        np.testing.assert_allclose(session.run(None, {"images": x.numpy()})[0], model(x).numpy(), atol=1e-4)
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["labels"]) == list(EMOTIONS) and facts["input_size"] == "48" and facts["in_chans"] == "1"
    assert float(facts["temperature"]) == 1.5 and json.loads(facts["record"])["data"] == "abc" and facts["fer_nb"]


def test_the_graph_is_clean(exported) -> None:
    kinds = [n.op_type for n in onnx.load(exported).graph.node]
    assert not {"BatchNormalization", "Constant", "Identity", "Dropout"} & set(kinds)
    assert kinds.count("Conv") == 8  # stem, two blocks of one each, four in the EPC block, projection
    assert len(onnx.load(exported).graph.node) < 100


def test_the_model_stays_as_it_was(tmp_path) -> None:
    net = hyfer().train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    to_onnx(net, tmp_path / "m.onnx")
    assert net.training and all(m.training for m in net.modules()) and all(p.requires_grad for p in net.parameters())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_what_training_recorded_goes_along(tmp_path) -> None:
    net = load_hyfer(save_hyfer(hyfer(), tmp_path / "m.safetensors", temperature=2.5, data="f00d"))
    own = OnnxModel(to_onnx(net, tmp_path / "m.onnx", note="x"))
    assert own.temperature == 2.5 and own.record == {"temperature": 2.5, "data": "f00d", "note": "x"}


def test_other_image_sizes_and_colours_go_through_the_wrapper(exported, model) -> None:
    own = OnnxModel(exported)
    assert own(batch(2, 3, 48)).shape == own(batch(2, 1, 96)).shape == (2, 7)
    x = batch(2, 3, 48)
    with torch.no_grad():
        torch.testing.assert_close(own(x), model(x), atol=1e-4, rtol=0)


def test_a_file_is_replaced_and_kept_when_the_next_export_fails(exported, model, tmp_path, monkeypatch) -> None:
    path = to_onnx(model, tmp_path / "m.onnx", note="first")
    to_onnx(model, path, note="second")
    assert OnnxModel(path).record["note"] == "second"
    with pytest.raises(ExportError, match="not written"):
        to_onnx(model, path, tolerance=-1., note="third")
    assert OnnxModel(path).record["note"] == "second" and len(list(tmp_path.iterdir())) == 1


def test_the_check_runs_on_the_images_given(model, tmp_path) -> None:
    to_onnx(model, tmp_path / "m.onnx", images=batch(3, 3, 70))
    with pytest.raises(ExportError, match="not written.*batches of 0"):
        to_onnx(model, tmp_path / "n.onnx", images=batch(3, 1, 48)[:0])
    with pytest.raises(ExportError, match="differ by up to nan"):
        to_onnx(model, tmp_path / "n.onnx", images=batch(3, 1, 48) * float("nan"))
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


class Odd(HyFER):
    "Leaves PyTorch on the way: tracing takes two images' sums for constants."

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + torch.from_numpy(np.sort(x.detach().numpy().sum((1, 2, 3))))[:, None]


@pytest.mark.parametrize("net, error, match", [
    (nn.Linear(2, 2), ConfigError, "Linear has no labels"), (GeometryTeacher(), ConfigError, "input_size, in_chans"),
    (hyfer(num_classes=0, labels=[]), ConfigError, "has no labels"), (Odd(7, 1, REP), ExportError, "does not run on batches of 8 and 1"),
])
def test_what_cannot_be_exported_says_so(net, error, match, tmp_path) -> None:
    with pytest.raises(error, match=match):
        to_onnx(net, tmp_path / "m.onnx")
    assert nothing_left(tmp_path)


@pytest.mark.parametrize("record, error, match", [
    ({"temperature": -1}, ConfigError, "temperature=-1;"), ({"temperature": "warm"}, ConfigError, "temperature='warm'"),
    ({"temperature": float("nan")}, ConfigError, "temperature=nan"), ({"x": object()}, TypeError, "JSON")])
def test_a_record_that_makes_no_sense(model, record, error, match, tmp_path) -> None:
    with pytest.raises(error, match=match):
        to_onnx(model, tmp_path / "m.onnx", **record)
    assert nothing_left(tmp_path)


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime", "onnxscript"])
def test_without_the_extra(model, missing, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ConfigError, match=rf'package {missing}: pip install "fer-nb\[export\]"'):
        to_onnx(model, tmp_path / "m.onnx")
    assert nothing_left(tmp_path)


def test_the_module_imports_nothing_of_the_extra() -> None:
    import ast
    import fer_nb.export as module
    with open(module.__file__, encoding="utf-8") as f:
        body = ast.parse(f.read()).body
    tops = {n.module or "" for n in body if isinstance(n, ast.ImportFrom)} | {
        a.name for n in body if isinstance(n, ast.Import) for a in n.names}
    assert tops and not [t for t in tops if t.startswith("onnx")]


def test_a_place_that_cannot_be_written(model, exported, small, faces, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    for write in (lambda p: to_onnx(model, p),
                  lambda p: quantize(exported, p, faces.where(split="train"), n=2)):
        with pytest.raises(OSError, match="file"):
            write(tmp_path / "file" / "m.onnx")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(OSError, match="folder.onnx"):
        to_onnx(model, tmp_path / "folder.onnx")
    assert {p.name for p in tmp_path.iterdir()} == {"file", "folder.onnx"}


# ---------------------------------------------------------------- files that are not ours

def foreign(path, **facts: str):
    "A valid ONNX file: the identity."
    h = onnx.helper
    io_ = [h.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [None, 1, 48, 48]) for n in ("images", "logits")]
    graph = h.make_model(h.make_graph([h.make_node("Identity", ["images"], ["logits"])], "g", io_[:1], io_[1:]),
                         opset_imports=[h.make_opsetid("", 17)], ir_version=8)
    h.set_model_props(graph, facts)
    onnx.save(graph, path)
    return path


OURS = {"labels": '["a", "b"]', "input_size": "48", "in_chans": "1", "temperature": "1", "record": "{}"}


@pytest.mark.parametrize("facts, match", [
    ({}, "KeyError"), ({k: v for k, v in OURS.items() if k != "labels"}, "labels"), (OURS | {"labels": "a, b"}, "JSON"),
    (OURS | {"input_size": "big"}, "big"), (OURS | {"temperature": ""}, "ValueError"), (OURS | {"labels": "7"}, "TypeError"),
])
def test_an_onnx_file_of_others(facts, match, tmp_path, faces) -> None:
    path = foreign(tmp_path / "m.onnx", **facts)
    for use in (OnnxModel, lambda p: quantize(p, tmp_path / "q.onnx", faces.where(split="train"), n=2), peak_memory,
                lambda p: efficiency({"m": p}, repeats=0), lambda p: parity(p, p, faces)):
        with pytest.raises(DataError, match=f"not one of fer_nb.export.*{match}|{match}"):
            use(path)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.parametrize("content", [b"", b"no network", b"\x08\x08" * 40])
def test_files_that_are_no_onnx(content, tmp_path) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(DataError, match="m.onnx"):
        OnnxModel(tmp_path / "m.onnx")
    with pytest.raises(DataError, match="no such file"):
        OnnxModel(tmp_path / "gone.onnx")


def test_a_truncated_file(exported, tmp_path) -> None:
    (tmp_path / "m.onnx").write_bytes(exported.read_bytes()[:-2000])
    with pytest.raises(DataError, match="cannot open it"):
        OnnxModel(tmp_path / "m.onnx")


@pytest.mark.slow
def test_the_newer_exporter(model, tmp_path) -> None:
    own, x = OnnxModel(to_onnx(model, tmp_path / "m.onnx", dynamo=True)), batch(5, 1, 48)
    with torch.no_grad():
        torch.testing.assert_close(own(x), model(x), atol=1e-4, rtol=0)
        torch.testing.assert_close(own(x[:1]), model(x[:1]), atol=1e-4, rtol=0)


# ---------------------------------------------------------------- int8

def weights_of(path) -> dict[str, np.ndarray]:
    return {i.name: onnx.numpy_helper.to_array(i) for i in onnx.load(path).graph.initializer}


def test_int8_is_per_channel_and_signed(small) -> None:
    nodes = onnx.load(small).graph.node
    weights, used = weights_of(small), {name for n in nodes if n.op_type == "DequantizeLinear" for name in n.input[:1]}
    convs = [w for name, w in weights.items() if name in used and w.dtype == np.int8 and w.ndim == 4]
    scales = {n.input[0]: weights[n.input[1]] for n in nodes if n.op_type == "DequantizeLinear" and n.input[1] in weights}
    assert len(convs) == 6 and all(len(np.atleast_1d(scales[n])) == len(w) for n, w in weights.items()
                                   if n in used and w.dtype == np.int8 and w.ndim == 4)
    assert all(abs(w.astype(int)).max() <= 127 for w in convs)


def test_attention_and_norms_stay_in_float_unless_asked(exported, small, faces, tmp_path) -> None:
    def quantised_inputs(path, kind: str) -> list[bool]:
        graph = onnx.load(path).graph
        behind = {o for n in graph.node if n.op_type == "DequantizeLinear" for o in n.output}
        return [all(i in behind for i in n.input[:2]) for n in graph.node if n.op_type == kind]

    both = quantize(exported, tmp_path / "q.onnx", faces.where(split="train"), n=8, attention=True)
    assert sum(quantised_inputs(small, "MatMul")) == 2 and len(quantised_inputs(small, "MatMul")) == 6
    assert sum(quantised_inputs(both, "MatMul")) == 6
    assert not any(quantised_inputs(small, "LayerNormalization")) and not any(quantised_inputs(small, "Softmax"))


def test_int8_answers_nearly_alike(exported, small, faces) -> None:
    z, q = (predict_logits(OnnxModel(p), faces) for p in (exported, small))
    assert np.abs(z - q).max() < .1 * np.ptp(z) + .05
    own = OnnxModel(small)
    assert own.labels == OnnxModel(exported).labels and own.temperature == 1.5 and own.record["data"] == "abc"
    assert json.loads(own.metadata["int8"])["images"] == 40


def test_the_same_images_give_the_same_file(exported, small, faces, tmp_path) -> None:
    again = quantize(exported, tmp_path / "q.onnx", faces.where(split="train"), n=40)
    a, b = weights_of(small), weights_of(again)
    assert a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def test_the_first_convolution_and_named_nodes_stay_in_float(exported, faces, tmp_path) -> None:
    train = faces.where(split="train")
    convs = [n.name for n in onnx.load(exported).graph.node if n.op_type == "Conv"]

    def floats(**changed) -> int:
        path = quantize(exported, tmp_path / "q.onnx", train, n=8, **changed)
        return sum(w.dtype == np.float32 and w.ndim == 4 for w in weights_of(path).values())

    least = floats(first=True)
    assert [floats(), floats(keep=convs[3:5])] == [least + 1, least + 3]
    with pytest.raises(ConfigError, match="no nodes nowhere"):
        quantize(exported, tmp_path / "p.onnx", train, n=8, keep=["nowhere"])


def test_calibration_sees_training_images_alone(exported, faces, tmp_path) -> None:
    train = faces.where(split="train")
    one_more = faces.take([*np.flatnonzero(faces.df.split == "train"), int(np.flatnonzero(faces.df.split == "valid")[0])])
    cases = [(one_more, 8, "split 'valid'"), (faces.where(split="test"), 8, "split 'test'"), (train.take([]), 8, "no images to calibrate on")]
    for ds, n, match in cases:
        with pytest.raises(DataError, match=match):
            quantize(exported, tmp_path / "q.onnx", ds, n=n)
    for wrong, match in (({"method": "mean"}, "method='mean'"), ({"n": 0}, "n=0;"), ({"n": -5}, "n=-5; a whole number"), ({"n": 2.5}, "n=2.5")):
        with pytest.raises(ConfigError, match=match):
            quantize(exported, tmp_path / "q.onnx", train, **wrong)
    assert nothing_left(tmp_path)


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_every_method_takes_any_number_of_images(exported, faces, tmp_path, method) -> None:
    path = quantize(exported, tmp_path / "q.onnx", faces.where(split="train"), n=37, method=method)  # no multiple of 32
    assert json.loads(OnnxModel(path).metadata["int8"])["images"] == 37


def test_colour_images_of_another_size_calibrate_a_grey_network(exported, faces, tmp_path) -> None:
    train = faces.where(split="train").take(range(6))
    big = np.repeat(np.repeat(np.repeat(train.array(), 2, 1), 2, 2)[..., None], 3, 3)
    assert quantize(exported, tmp_path / "q.onnx", FERData(train.df, big), n=6).is_file()


# ---------------------------------------------------------------- parity and costs

def test_parity_counts_what_it_says(model, exported, faces) -> None:
    other = hyfer(IR)
    table = parity(model, other, faces)
    z = [predict_logits(m, faces) for m in (model, other)]
    y, best = faces.targets(), [v.argmax(1) for v in z]
    right = [b == y for b in best]
    assert list(table.n) == [len(faces)] * 2 and table.accuracy.tolist() == [r.mean() for r in right]
    assert table.agreement.tolist() == [1, (best[0] == best[1]).mean()]
    assert table.only_right.tolist() == [(right[0] & ~right[1]).sum(), (right[1] & ~right[0]).sum()]
    assert table.max_difference.tolist() == [0, np.abs(z[1] - z[0]).max()]
    assert table.change[1] == pytest.approx(table.accuracy[1] - table.accuracy[0])


def test_parity_refuses_other_labels_and_no_images(exported, model, faces) -> None:
    with pytest.raises(LabelError):
        parity(exported, hyfer(REP, labels=EMOTIONS[::-1]), faces)
    with pytest.raises(ConfigError, match="ds=0; at least 1 image"):
        parity(exported, model, faces.take([]))


def test_costs_of_networks_and_files(model, exported, small) -> None:
    table = efficiency({"net": model, "file": exported}, {"net": .6}, batches=[1, 2], threads=[1], repeats=2)
    assert len(table) == 4 and (table.latency_ms > 0).all() and (table.cpu_ms > 0).all()
    net, file = (table[table.model == m] for m in ("net", "file"))
    assert (net.params == sum(p.numel() for p in fuse(model).parameters())).all() and file.params.isna().all()
    assert (net.accuracy == .6).all() and file.accuracy.isna().all()
    if sys.platform == "linux":
        assert table.peak_mb.between(1, 500).all()


@pytest.mark.parametrize("change", [{"models": {}}, {"batches": [0]}, {"threads": [1, -1]}, {"repeats": -1},
                                    {"batches": []}, {"threads": []}])
def test_costs_of_nothing(model, change) -> None:
    with pytest.raises(ConfigError, match=rf"{next(iter(change))}.*; at least 1 expected"):
        efficiency(**({"models": {"net": model}} | change))


# ---------------------------------------------------------------- real images

@pytest.mark.realdata
@pytest.mark.slow
def test_parity_on_fer2013(fer2013_npz, tmp_path) -> None:
    "The shipped weights: float to single precision, int8 to half a point on 3,000 images that calibration did not see."
    import pandas as pd
    try:
        net = HyFER.from_pretrained()
    except DataError as e:
        pytest.skip(str(e))
    pixels, emotion, usage = fer2013_npz
    df = pd.DataFrame({"id": [str(k) for k in range(len(pixels))], "label": np.array(EMOTIONS)[emotion],
                       "split": np.where(usage == "Training", "train", "valid")})
    ds = FERData(df, pixels, EMOTIONS, "fer2013")
    judge = ds.where(split="valid").take(range(3000))
    path = to_onnx(net, tmp_path / "m.onnx")
    apart = np.abs(predict_logits(net, judge) - predict_logits(OnnxModel(path), judge)).max(axis=1)
    assert np.quantile(apart, .99) <= 1e-4 and apart.max() <= 5e-4  # single precision costs both of them as much
    assert parity(net, path, judge).agreement.min() == 1
    assert abs(parity(path, quantize(path, tmp_path / "q.onnx", ds.where(split="train")), judge).change[1]) <= .005


class Soft(HyFER):
    "Ends in a softmax."

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).softmax(1)


@pytest.mark.parametrize("change, match", [
    (lambda net: setattr(net, "labels", ("a",) * 7), "labels that differ"), (lambda net: setattr(net, "labels", ("a", "b")), "2 finite numbers"),
    (lambda net: setattr(net, "__class__", Soft), "gives probabilities")])
def test_what_no_reader_would_take_is_not_written(change, match, tmp_path) -> None:
    net = hyfer()
    change(net)
    with pytest.raises(DataError, match=f"m.onnx, not written: .*{match}"):
        to_onnx(net, tmp_path / "m.onnx")
    assert nothing_left(tmp_path)


@pytest.mark.parametrize("change, temperature", [
    ({"labels": np.array(list("abcdefg"))}, 1), ({"record": None}, 1), ({"record": {"temperature": None}}, 1),
    ({"record": {"temperature": torch.tensor(1.5)}}, 1.5), ({"record": {"temperature": np.float32(1.5)}}, 1.5)])
def test_temperatures_and_labels_of_every_kind(change, temperature, tmp_path) -> None:
    net = hyfer()
    for name, value in change.items():
        setattr(net, name, value)
    file = OnnxModel(to_onnx(net, tmp_path / "m.onnx"))
    assert (Network.read(net).temperature, file.temperature, Network.read(tmp_path / "m.onnx").temperature) == (temperature,) * 3
    assert file.labels == tuple(net.labels)


def test_no_file_takes_the_place_of_another(model, exported, faces, tmp_path) -> None:
    save_hyfer(model, tmp_path / "keep.safetensors")
    before, train = (tmp_path / "keep.safetensors").read_bytes(), faces.where(split="train")
    with pytest.raises(ConfigError, match="keep.safetensors"):
        to_onnx(model, tmp_path / "keep.safetensors")
    with pytest.raises(ConfigError, match="keep.safetensors"):
        quantize(exported, tmp_path / "keep.safetensors", train, n=2)
    (tmp_path / "link.onnx").symlink_to(exported)
    whole = exported.read_bytes()
    for out in (exported, tmp_path / "link.onnx"):
        with pytest.raises(DataError, match="it cannot be written too"):
            quantize(exported, out, train, n=2)
    assert exported.read_bytes() == whole and (tmp_path / "keep.safetensors").read_bytes() == before


def test_parity_is_of_two_forms_at_one_size(model, exported, faces) -> None:
    large = resized(faces.take(range(9)), 100)
    for a, b in ((model, exported), (exported, model)):
        with pytest.raises(ConfigError, match=r"100 × 100 pixels for a HyFER of 48 × 48.*resized\(ds, 48\)"):
            parity(a, b, large)
    assert parity(exported, exported, large).agreement.tolist() == [1, 1]      # files resize both


# ---------------------------------------------------------------- what was taken without a check

def test_accuracies_are_shares_of_networks_that_are_there(exported) -> None:
    for accuracy, why in (({"b": .5}, "a name of accuracy='b'; 'a' expected"), ({"a": 66.}, "a number from 0 to 1 expected")):
        with pytest.raises(ConfigError, match=why):
            efficiency({"a": exported}, accuracy, repeats=0, memory=False)


def test_images_for_the_check_are_floats_of_any_library(model, exported, faces, tmp_path) -> None:
    assert to_onnx(model, tmp_path / "a.onnx", np.zeros((4, 1, 48, 48), np.float32)).exists()
    with pytest.raises(ImageError, match="bytes are divided by 255 first"):
        to_onnx(model, tmp_path / "b.onnx", np.zeros((4, 1, 48, 48), np.uint8))
    with pytest.raises(ConfigError, match="threads=-3"):
        OnnxModel(exported, threads=-3)
    with pytest.raises(ConfigError, match="no nodes Conv_0$"):
        quantize(exported, tmp_path / "c.onnx", faces.where(split="train"), n=4, keep="Conv_0")
