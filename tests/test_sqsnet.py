"""SQSNet of the exported package: every fusion, what pretrained means, files, and what is refused."""
import itertools

import pytest
import torch
from torch import nn

from fer_nb.core import EMOTIONS, ConfigError, DataError, DownloadError, ImageError
from fer_nb.models import (SQSNET, ConcatFusion, CrossFusion, FeatureMap, SQSNet, SQSNetConfig, count_macs,
                           create_teacher, load_hyfer, load_sqsnet, load_teacher, save_sqsnet, save_teacher, sqsnet_table)

SWIN = {"embed_dim": 24, "depths": [1, 1], "num_heads": [2, 4], "window_size": 3}
TINY = SQSNetConfig("test_efficientnet", "swin_tiny_patch4_window7_224", 32, 48, "cross", 2, {"output_stride": 8}, SWIN)
KINDS = ("cross", "residual", "concat", "cnn", "transformer")


def net(seed=0, **kwargs):
    torch.manual_seed(seed)
    return SQSNet(**{"variant": TINY, **kwargs})


def faces(n=2, c=1, side=48, seed=0):
    return torch.rand(n, c, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("fusion", KINDS)
@pytest.mark.parametrize("side, c", [(48, 1), (63, 3)])
def test_every_fusion_trains(fusion, side, c):
    model = net(fusion=fusion).train()
    logits = model(faces(4, c, side))
    assert logits.shape == (4, 7) and logits.isfinite().all()
    assert model.forward_features(faces(1)).shape == (1, 32, 6, 6)
    nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 3])).backward()
    no_grad = {n.split(".")[0] for n, p in model.named_parameters() if p.grad is None}
    assert no_grad == {"enhanced"}
    assert set(model.backbones) == ({fusion} if fusion in ("cnn", "transformer") else {"cnn", "transformer"})


def test_the_contract():
    model = net(num_classes=8, labels=(*EMOTIONS, "contempt"))
    assert (model.in_chans, model.input_size, model.num_features, model.num_classes) == (3, 48, 32, 8)
    assert model.labels == (*EMOTIONS, "contempt") and model.get_classifier() is model.fc
    own, base = model.enhanced[1].weight, model.fc.weight
    assert own.shape == base.shape and not torch.equal(own, base)
    assert model.forward_head(model.forward_features(faces()), pre_logits=True).shape == (2, 32)
    model.reset_classifier(0)
    assert model.enhanced is None and model(faces()).shape == (2, 32)
    model.reset_classifier(5)
    assert model.enhanced[1].out_features == 5 and model(faces()).shape == (2, 5)
    assert net(shared=True).enhanced is None


def test_each_backbone_gets_its_own_normalisation():
    model = SQSNet(variant="light_64")
    cnn, transformer = (model.backbones[part].adapt.mean.flatten().tolist() for part in ("cnn", "transformer"))
    assert cnn == pytest.approx([0.5] * 3) and transformer == pytest.approx([0.485, 0.456, 0.406])
    with pytest.raises(ImageError, match="float"):
        model(torch.zeros(1, 1, 48, 48, dtype=torch.uint8))
    with pytest.raises(ImageError, match="is not"):
        model(torch.zeros(48, 48))


@torch.no_grad()
def test_only_cross_attention_is_blind_to_constant_queries():
    a, b = torch.rand(2, 6, 3, 4), torch.rand(2, 5, 2, 5)
    one_key = b[:, :, :1, :1]
    for residual, blind in ((False, True), (True, False)):
        torch.manual_seed(0)
        cross = CrossFusion(6, 5, 8, 2, residual)
        assert torch.allclose(cross(a, one_key), cross(torch.rand_like(a), one_key), atol=1e-6) is blind
        assert cross(a, b).shape == (2, 8, 3, 4)
        order = torch.randperm(10)  # keys are a set: their order says nothing
        mixed = b.flatten(2)[..., order].unflatten(2, (2, 5))
        assert torch.allclose(cross(a, b), cross(a, mixed), atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("heads", [1, 4])
def test_cross_fusion_is_torch_attention(heads):
    torch.manual_seed(0)
    cross, a, b = CrossFusion(16, 16, 16, heads), torch.rand(2, 16, 3, 3), torch.rand(2, 16, 4, 4)
    expected = nn.MultiheadAttention(16, heads, batch_first=True)
    expected.in_proj_weight.copy_(torch.cat([cross.q.weight, cross.kv.weight]))
    expected.in_proj_bias.copy_(torch.cat([cross.q.bias, cross.kv.bias]))
    expected.out_proj.weight.copy_(torch.eye(16))
    expected.out_proj.bias.zero_()
    q, kv = cross.norm_q(a.flatten(2).mT), cross.norm_kv(b.flatten(2).mT)
    assert torch.allclose(cross(a, b).flatten(2).mT, expected(q, kv, kv, need_weights=False)[0], atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("grids", list(itertools.product([(3, 3), (6, 5)], [(2, 2), (3, 3), (7, 4)])))
def test_concat_lies_on_the_first_grid(grids):
    maps = [torch.rand(1, c, *grid) for c, grid in zip((4, 3), grids)]
    assert ConcatFusion((4, 3), 8).eval()(*maps).shape == (1, 8, *grids[0])


def test_pretrained_is_the_cnn_where_the_transformer_is_of_our_own():
    torch.manual_seed(0)
    model, scratch = SQSNet(variant="light_64", pretrained=True), SQSNet(variant="light_64")
    teacher = create_teacher("efficientnet_lite0", input_size=64)
    own, expected = model.backbones["cnn"].net.state_dict(), teacher.net.state_dict()
    assert all(torch.equal(own[k], expected[k]) for k in own) and "classifier.weight" not in own
    assert not torch.equal(scratch.backbones["cnn"].net.conv_stem.weight, own["conv_stem.weight"])


def test_weights_that_cannot_be_had(monkeypatch):
    import timm
    create = timm.create_model

    def offline(name, pretrained=False, **kwargs):
        if pretrained:
            raise OSError("no network")
        return create(name, pretrained=False, **kwargs)
    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(DownloadError, match="test_efficientnet"):
        FeatureMap("test_efficientnet", 64, pretrained=True)


@pytest.mark.parametrize("kwargs, match", [
    (dict(variant="heavy"), "'heavy'"), (dict(fusion="sum"), "'sum'"), (dict(labels=EMOTIONS[:3]), "3 labels for 7"),
    (dict(variant=SQSNetConfig("resnet_none", "swin_tiny_patch4_window7_224", 8, 48)), "'resnet_none'"),
    (dict(variant=SQSNetConfig("test_efficientnet", "swin_none", 8, 48)), "'swin_none'"),
    (dict(variant=SQSNetConfig("test_efficientnet", "crossvit_9_240", 8, 240)), "no feature map"),
    (dict(variant=SQSNetConfig("test_efficientnet", "vit_tiny_patch16_224", 8, 100)), "100 px"),
    (dict(variant=SQSNetConfig("test_efficientnet", "swin_tiny_patch4_window7_224", 8, 48, cnn_args={"colour": 1})),
     "colour"),
])
def test_refused(kwargs, match):
    with pytest.raises(ConfigError, match=match):
        net(**kwargs)


@pytest.mark.parametrize("heads", [0, 3])
def test_heads_divide_the_width(heads):
    with pytest.raises(ConfigError, match="heads"):
        SQSNetConfig("a", "b", 32, 48, heads=heads)


@torch.no_grad()
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("fusion", ["cross", "cnn"])
def test_round_trip(tmp_path, fusion, shared):
    model = net(fusion=fusion, shared=shared, drop=0.3, num_classes=3).eval()
    model.name = "mine"
    path = save_sqsnet(model, tmp_path / "a.safetensors", seed=3)
    back = load_sqsnet(path)
    assert torch.equal(back(faces()), model(faces())) and back.config == model.config and not back.training
    assert (back.record, back.name, back.labels, back.drop.p) == ({"seed": 3}, "mine", model.labels, 0.3)
    assert set(back.state_dict()) == set(model.state_dict())
    frozen = load_teacher(path)
    assert frozen.name == "mine" and not any(p.requires_grad for p in frozen.parameters())


def test_learned_weights_of_the_quads_are_not_saved(tmp_path):
    from fer_nb.sqs import attach_sqs
    with pytest.raises(ConfigError, match="quad_weights"):
        save_sqsnet(attach_sqs(net(), learnable=True), tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


def test_files_that_are_something_else(tmp_path):
    path = save_sqsnet(net(), tmp_path / "a.safetensors")
    with pytest.raises(DataError, match="HyFER"):
        load_hyfer(path)
    other = save_teacher(create_teacher("test_efficientnet", pretrained=False), tmp_path / "t.safetensors")
    with pytest.raises(DataError, match="SQSNet"):
        load_sqsnet(other)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError):
        load_sqsnet(path)
    with pytest.raises(DataError, match="none: no such file"):
        load_sqsnet(tmp_path / "none")


@pytest.mark.parametrize("name", [n for n in SQSNET if n != "sqsnet"])  # the paper's pair once
def test_every_variant_on_the_meta_device(name):
    size = SQSNET[name].input_size
    with torch.device("meta"):
        model = SQSNet(variant=name)
        out = model.forward_features(torch.zeros(2, 3, size, size))
    side = size // (32 if name == "paper" else 16)
    assert out.shape == (2, SQSNET[name].dim, side, side) and model.input_size == size
    if name == "paper":
        assert [b.num_features for b in model.backbones.values()] == [2304, 768] and model.num_features == 1024
        assert (model.fuse.heads, model.fuse.residual, size) == (1, False, 224)


def test_table_counts_what_is_there():
    table = sqsnet_table(["light_64"]).set_index("model")
    model = SQSNet(variant="light_64", shared=True)
    row = table.loc["SQSNet (light_64)"]
    assert row["parameters (M)"] == round(sum(p.numel() for p in model.parameters()) / 1e6, 2)
    assert row.GMACs == round(count_macs(model, 64) / 1e9, 2)


@pytest.mark.slow
def test_a_training_step_of_the_full_pair():
    model = SQSNet(shared=False).train()
    optimiser = torch.optim.AdamW(model.parameters(), 3e-4, weight_decay=1e-5)
    nn.functional.cross_entropy(model(faces(4, 3, 224)), torch.arange(4)).backward()
    optimiser.step()
    assert all(p.isfinite().all() for p in model.parameters())
