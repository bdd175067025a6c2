"""Networks of sixty timm families as teachers, under attack, in Grad-CAM and in SQS, against a plain reading of their maps; own, compiled and parallel ones."""
from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from fastai.callback.schedule import Learner
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.losses import CrossEntropyLossFlat
from torch import nn

from fer_nb.attacks import fgsm, pgd
from fer_nb.core import EMOTIONS, ConfigError
from fer_nb.evaluate import eval_mode, predict_logits, robust_curve
from fer_nb.models import (SQSNET, SQSNET_TABLE3, TEACHERS, MapLayout, Normalised, Teacher, create_teacher, layout_of, load_teacher,
                           map_layout, save, save_teacher, shell, unwrapped)
from fer_nb.plots import cam_layer, gradcam
from fer_nb.sqs import SQS, attach_sqs, detach_sqs, form_quads, sqs_layout
from fer_nb.synth import make_faces

AVG = {"global_pool": "avg"}  # else the class token alone is classified
Y = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 4, 4])

# name, side of the image, order of the axes and tokens in front (as written in timm's code), settings under which SQS can have the map
QUICK = [("test_efficientnet", 64, "NCHW", 0, {}), ("mobilenetv3_small_050", 64, "NCHW", 0, {}), ("test_mambaout", 64, "NHWC", 0, {}),
         ("test_vit", 160, "NLC", 1, AVG), ("test_resnet", 64, "NCHW", 0, {})]
NCHW = [(name, 64) for name in (
    "fastvit_t8 efficientvit_m0 davit_tiny test_maxvit mobilevit_xxs tf_efficientnet_lite0 mobilenetv2_035 test_byobnet test_convnext "
    "convmixer_768_32 cpubone_nano csatv2 cs3darknet_focus_s cspnext_tiny densenet121 dla46x_c dpn48b edgenext_xx_small "
    "efficientformerv2_s0 efficientvit_b0 fasternet_t0 focalnet_tiny_srf gcvit_xxtiny ghostnet_050 ghostnetv2_100 hardcorenas_b "
    "hgnetv2_b0 hrnet_w18_small iformer_t inception_next_atto lcnet_035 lowformer_b0 test_coatnet poolformerv2_s12 nest_tiny "
    "nextvit_small test_nfnet pvt_v2_b0 rdnet_tiny regnetx_002 repghostnet_050 repvit_m1 resnest14d resnet18 resnetv2_18 rexnet_100 "
    "selecsls42 shvit_s1 skresnet18 starnet_s050 swiftformer_xs swinv2_cr_tiny_224 tiny_vit_5m_224 tresnet_m visformer_tiny "
    "ese_vovnet19b_slim_dw mobilenetv4_conv_small_035 mixnet_s vgg11 caformer_s18 mobileone_s0 botnet26t_256").split()]
SLOW = [*((name, size, "NCHW", 0, {}) for name, size in (*NCHW, ("inception_v3", 128), ("legacy_xception", 96))),
        ("swin_tiny_patch4_window7_224", 64, "NHWC", 0, {}), ("swinv2_tiny_window8_256", 64, "NHWC", 0, {}),
        ("sequencer2d_s", 64, "NHWC", 0, {}), ("levit_128s", 128, "NLC", 0, {}), ("convit_tiny", 64, "NLC", 1, AVG),
        ("vit_tiny_patch16_224", 64, "NLC", 1, AVG), ("deit_tiny_patch16_224", 64, "NLC", 1, AVG),
        ("cait_xxs24_224", 64, "NLC", 1, AVG), ("beit_base_patch16_224", 64, "NLC", 1, {}),
        ("eva02_tiny_patch14_224", 56, "NLC", 1, {}), ("vit_tiny_patch16_dinov3_qkvb", 64, "NLC", 5, {}), ("gmlp_ti16_224", 64, "NLC", 0, {}),
        ("mixer_s32_224", 64, "NLC", 0, {}), ("hiera_tiny_224", 64, "NLC", 0, {}), ("mvitv2_tiny", 64, "NLC", 0, {}),
        ("xcit_nano_12_p16_224", 64, "NLC", 1, AVG), ("volo_d1_224", 64, "NLC", 1, AVG), ("twins_svt_small", 64, "NLC", 0, {}),
        ("tnt_s_legacy_patch16_224", 64, "NLC", 1, AVG), ("test_vit_relpos", 160, "NLC", 0, {}), ("coat_lite_tiny", 64, "NLC", 1, AVG)]
NO_MAP = {"crossvit_9_240": (240, "feature map is a list"), "coat_tiny": (64, "feature map is a list"),
          "efficientvim_m1": (64, "feature map is a tuple|feature map is a list"), "pit_ti_224": (64, "feature map is .2, 1, 256."),
          "deit_tiny_distilled_patch16_224": (64, "reads no place of the map")}


def images(size: int, channels: int = 3) -> DataLoaders:
    "Ten images of noise, two of each of five classes, in one batch."
    x = torch.rand(10, channels, size, size, generator=torch.Generator().manual_seed(0))
    one = [DataLoader(list(zip(x, Y)), bs=10, device=torch.device("cpu"), num_workers=0) for _ in range(2)]
    return DataLoaders(*one, device="cpu")


def fitted(net: nn.Module, dls: DataLoaders, lr: float = 0, **kwargs: float) -> Learner:
    "One step."
    learn = Learner(dls, net, CrossEntropyLossFlat(), cbs=SQS(**kwargs))
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, lr)
    return learn


def alive(net: nn.Module) -> nn.Module:
    "Layers that start as zeros pass nothing on; a trained network has none."
    torch.manual_seed(0)
    for p in net.parameters():
        if p.ndim > 1 and not p.detach().any():
            nn.init.normal_(p, std=0.05)
    return net


def plain(y: np.ndarray, axes: str, prefix: int) -> np.ndarray:
    "The map (B, C, H, W), place by place."
    if axes == "NLC":
        side = round((y.shape[1] - prefix) ** 0.5)
        return np.stack([[y[:, prefix + side * i + j] for j in range(side)] for i in range(side)]).transpose(2, 3, 0, 1)
    return y if axes == "NCHW" else np.stack([y[..., c] for c in range(y.shape[3])], 1)


def terms(net: nn.Module, x: torch.Tensor, axes: str, prefix: int) -> dict[str, float]:
    "The three terms of the first batch, in NumPy, from a network that does not depend on its batch."
    with torch.no_grad():
        y = net.forward_features(x)
        base = net(x).double().numpy()
    m = plain(y.numpy().astype(float), axes, prefix)
    (p, n1, n2), mask = (t.numpy() for t in form_quads(Y))
    assert mask.all()
    unit = m / np.maximum(np.sqrt((m ** 2).sum(1, keepdims=True)), 1e-12)
    ap, an1, an2 = (np.exp(-((unit - unit[q]) ** 2).sum(1)) for q in (p, n1, n2))
    refined, back = m * (1 + 0.5 * (ap - 0.5 * (an1 + an2)))[:, None], y.clone()
    for i in range(m.shape[2]):
        for j in range(m.shape[3]):
            place = (slice(None), prefix + i * m.shape[3] + j) if axes == "NLC" else \
                (slice(None), i, j) if axes == "NHWC" else (slice(None), slice(None), i, j)
            back[place] = torch.from_numpy(refined[:, :, i, j]).to(back)
    with torch.no_grad():
        z = net.enhanced(net.forward_head(back, pre_logits=True)).double()
    log_p, log_q = torch.from_numpy(base).log_softmax(1), z.log_softmax(1)
    return {"enhanced": F.cross_entropy(z, Y).item(), "kl": (log_p.exp() * (log_p - log_q)).sum(1).mean().item(),
            "sqs": (np.maximum(0, 0.5 + an1 - ap) + np.maximum(0, 0.5 + an2 - ap)).mean()}


def steps(net: nn.Module, size: int, axes: str, prefix: int) -> None:
    "A step in training mode; then one whose logged terms are those of `terms`; nothing of either is left."
    before, dls = set(net.state_dict()), images(size)
    learn = fitted(attach_sqs(net), dls)
    assert learn.sqs_log.drop(columns="epoch").notna().all(axis=None) and learn.sqs_log.quads[0] == 1
    frozen = attach_sqs(net).eval()
    frozen.train = lambda mode=True: frozen
    expected = terms(frozen, next(iter(dls.train))[0], axes, prefix)
    found = fitted(frozen, dls).sqs_log.iloc[0]
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-3, abs=2e-5), (name, found[name], value)
    del frozen.train
    assert "forward_features" not in vars(net) and not any(m._forward_hooks for m in net.modules())
    assert set(pickle.loads(pickle.dumps(detach_sqs(net))).state_dict()) == before


@pytest.fixture(scope="module")
def faces():
    return make_faces(12, seed=3, defects=None)[0].take(range(3))


def as_teacher(name: str, size: int, faces, folder) -> Teacher:
    "Logits, the file, both attacks."
    teacher = create_teacher(name, pretrained=False, input_size=size).eval()
    alive(teacher.net)
    z = predict_logits(teacher, faces)
    assert z.shape == (3, 7) and np.isfinite(z).all()
    file = save_teacher(teacher, folder / "teacher.safetensors")
    np.testing.assert_allclose(predict_logits(load_teacher(file), faces), z, atol=1e-4 * max(1, abs(z).max()))
    x, y = torch.rand(2, 1, 48, 48), torch.tensor([0, 3])
    for adv in (fgsm(teacher, x, y, 8/255), pgd(teacher, x, y, 8/255, steps=2)):
        assert 0 < (adv - x).abs().max() <= 8/255 + 1e-6 and adv.min() >= 0 and adv.max() <= 1
    return teacher


def drawn(teacher: Teacher, faces, grid: int) -> None:
    "A map for each image, on the grid of the features where that is one, and hot where Grad-CAM by hand is."
    heat, layer, seen = gradcam(teacher, faces), cam_layer(teacher, 48), []
    assert heat.shape == (3, 48, 48) and np.isfinite(heat).all() and heat.min() >= 0 and heat.max() <= 1
    hook = layer.module.register_forward_hook(lambda module, args, out: seen.append(out))
    x = torch.from_numpy(faces.array()[:, None] / 255).float().requires_grad_()
    z = teacher(x)
    hook.remove()
    assert len(seen) == 1
    a, g = (layer.to_map(t) for t in (seen[0], torch.autograd.grad(z.amax(1).sum(), seen[0])[0]))
    assert a.ndim == 4 and len(a) == 3 and a.shape[2] == a.shape[3] == (grid if grid > 1 else a.shape[3]) > 1
    by_hand = (g.mean((2, 3), keepdim=True) * a).sum(1).relu().detach().flatten(1).amax(1).numpy()
    hot = heat.reshape(3, -1).max(1) > 0.1     # an untrained network may predict a class against its map
    assert hot[by_hand > 1e-4].all() and not hot[by_hand == 0].any()


@pytest.mark.parametrize(("name", "size", "axes", "prefix", "settings"),
                         [*(pytest.param(*row, id=row[0]) for row in QUICK),
                          *(pytest.param(*row, id=row[0], marks=pytest.mark.slow) for row in SLOW)])
def test_a_family_goes_everywhere(name, size, axes, prefix, settings, faces, tmp_path):
    torch.manual_seed(0)
    teacher = as_teacher(name, size, faces, tmp_path)
    with torch.no_grad():
        y = teacher.net.forward_features(torch.rand(2, 3, size, size))
    m = plain(y.numpy(), axes, prefix)
    layout = map_layout(teacher.net, y, (size, size))
    assert layout == MapLayout(axes, m.shape[1], m.shape[2:], prefix)
    np.testing.assert_array_equal(layout.to_map(y), m)
    assert torch.equal(layout.from_map(layout.to_map(y), y), y)
    drawn(teacher, faces, m.shape[2])
    net = teacher.net
    if settings:
        with pytest.raises(ConfigError, match="global_pool='avg'"):
            fitted(attach_sqs(teacher.net), images(size))
        detach_sqs(net)
        net = alive(timm.create_model(name, num_classes=7, img_size=size, **settings))
    steps(net.train(), size, axes, prefix)


@pytest.mark.slow
@pytest.mark.parametrize("name", NO_MAP)
def test_a_family_without_one_map_is_a_teacher_and_no_more(name, faces, tmp_path):
    size, why = NO_MAP[name]
    teacher = as_teacher(name, size, faces, tmp_path)
    drawn(teacher, faces, 0)
    with pytest.raises(ConfigError, match=why):
        fitted(attach_sqs(teacher.net), images(size))


def test_every_family_that_the_package_names_is_tried():
    tried = {timm.models.model_entrypoint(row[0]).__module__ for row in (*QUICK, *SLOW)}
    tried |= {timm.models.model_entrypoint(name).__module__ for name in NO_MAP}
    named = [t[0] for t in TEACHERS.values()] + [t[0] for t in SQSNET_TABLE3.values() if t[0]]
    named += [part for c in SQSNET.values() for part in (c.cnn, c.transformer)]
    assert {timm.models.model_entrypoint(n.split(".")[0]).__module__ for n in named} <= tried
    assert len(tried) >= 12 + 30


# ---------------------------------------------------------------- networks of one's own

class Own(nn.Module):
    "A map of 8 channels on a grid of 8 places a side, channels first or last; the lengths of the axes tell nothing."

    def __init__(self, last: bool = False, wide: int = 12):
        super().__init__()
        self.last, self.num_features, self.head_hidden_size, self.num_classes = last, 8, wide, 7
        self.conv, self.norm = nn.Conv2d(3, 8, 3, 2, 1), nn.LayerNorm(8)
        self.pre, self.fc = nn.Linear(8, wide), nn.Linear(wide, 7)
        self.labels = EMOTIONS

    def forward_features(self, x):
        y = self.norm(self.conv(x).relu().permute(0, 2, 3, 1))
        return y if self.last else y.permute(0, 3, 1, 2)

    def forward_head(self, y, pre_logits: bool = False):
        z = self.pre(y.mean((1, 2) if self.last else (2, 3))).tanh()
        return z if pre_logits else self.fc(z)

    def forward(self, x):
        return self.forward_head(self.forward_features(x))


@pytest.mark.parametrize("last", [False, True])
def test_as_many_channels_as_places_on_a_side(last):
    torch.manual_seed(0)
    net = Own(last)
    x = torch.rand(2, 3, 16, 16)
    assert layout_of(net, x) == MapLayout("NHWC" if last else "NCHW", 8, (8, 8))
    steps(net, 16, "NHWC" if last else "NCHW", 0)
    layer, number = cam_layer(net, 16), torch.arange(512.).view(1, 8, 8, 8)
    assert layer.module is net.norm and torch.equal(layer.to_map(number), number.permute(0, 3, 1, 2))
    net.norm = nn.Identity()
    layer = cam_layer(net, 16)
    assert layer.module is net.conv and torch.equal(layer.to_map(number), number)


@pytest.mark.parametrize(("sides", "tokens", "prefix", "grid"), [((32, 16), 8, 0, (4, 2)), ((16, 32), 9, 1, (2, 4)), ((100, 60), 18, 0, (6, 3)),
                                                                  ((64, 64), 18, 2, (4, 4)), ((64, 64), 12, None, None), ((64, 64), 1, None, None)])
def test_tokens_on_a_grid(sides, tokens, prefix, grid):
    class Head(nn.Module):
        num_features = 6

        def forward_head(self, y, pre_logits=False):
            return y.mean(1)
    if grid is None:
        with pytest.raises(ConfigError, match="grid of the image"):
            map_layout(Head(), torch.rand(2, tokens, 6), sides)
    else:
        y = torch.rand(2, tokens, 6)
        layout = map_layout(Head(), y, sides)
        assert layout == MapLayout("NLC", 6, grid, prefix) and torch.equal(layout.to_map(y)[:, :, 1, 1], y[:, prefix + grid[1] + 1])
        with pytest.raises(ConfigError, match="tokens that are places"):
            layout.to_map(torch.rand(2, tokens + 1, 6))


def test_channels_before_tokens():
    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(4)

        def forward_head(self, y, pre_logits=False):
            return self.norm(y.mean(2))
    y = torch.rand(2, 4, 4)
    layout = map_layout(Head(), y, (8, 8))
    assert layout == MapLayout("NCL", 4, (2, 2)) and torch.equal(layout.to_map(y), y.view(2, 4, 2, 2))
    assert torch.equal(layout.from_map(layout.to_map(y), y), y)


class Pair(Own):
    def forward_features(self, x):
        return super().forward_features(x), x

    def forward_head(self, y, pre_logits: bool = False):
        return super().forward_head(y[0], pre_logits)


class Two(Own):
    def forward(self, x):
        z = super().forward(x)
        return z, z


class Extra(Own):
    def forward_head(self, y, x, pre_logits=False):
        return super().forward_head(y, pre_logits)

    def forward(self, x):
        return self.forward_head(self.forward_features(x), x)


class Scaled(Own):
    def forward(self, x):
        return super().forward(x) / 3


class Stops(Own):
    def forward_head(self, y):
        return super().forward_head(y)


class Elsewhere(Own):
    def forward(self, x):
        return self.fc(self.pre(self.norm(self.conv(x).permute(0, 2, 3, 1)).mean((1, 2))))


class Nameless(Own):
    def __init__(self):
        super().__init__()
        self.head_hidden_size = self.num_classes = None


@pytest.mark.parametrize(("net", "why"), [
    (lambda: attach_sqs(Pair()), "two images|feature map is a tuple"), (lambda: attach_sqs(Two()), "two images|network"),
    (lambda: attach_sqs(Extra()), "TypeError"), (lambda: attach_sqs(Scaled()), "forward does not return forward_head"),
    (lambda: attach_sqs(Stops()), "pre_logits"), (lambda: attach_sqs(Elsewhere()), "forward does not call forward_features"),
    (lambda: attach_sqs(Own(wide=8), False).requires_grad_(True) and attach_sqs(wrong_width()), "mat1 and mat2"),
    (lambda: attach_sqs(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.LazyLinear(7)), False), "has no forward_features"),
])
def test_what_cannot_have_its_map_refined_is_refused_before_a_step(net, why):
    torch.manual_seed(0)
    net = net()
    before = {k: v.clone() for k, v in net.state_dict().items() if not isinstance(v, nn.parameter.UninitializedParameter)}
    with pytest.raises(ConfigError, match=why):
        fitted(net, images(16), lr=1)
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in before.items()) and "forward_features" not in vars(net)


def wrong_width() -> nn.Module:
    net = Own(wide=12)
    net.head_hidden_size = 8
    return net


def test_a_head_that_does_not_say_how_wide_it_is():
    net = Nameless()
    net.num_features = None
    with pytest.raises(ConfigError, match="how wide its head is"):
        attach_sqs(net)
    devices = nn.DataParallel(Own())
    devices.device_ids = [0, 1]
    with pytest.raises(ConfigError, match="cards of DataParallel=2"):
        sqs_layout(devices, torch.rand(2, 3, 16, 16))
    assert fitted(attach_sqs(net, separate=False), images(16)).sqs_log.sqs.notna().all()     # shares the only one
    assert fitted(Stops(), images(16)).sqs_log.sqs.notna().all()                             # needs no pre_logits


def test_a_trial_changes_nothing():
    torch.manual_seed(0)
    net = timm.create_model("test_efficientnet", num_classes=7).train()
    seen = []
    hook = net.conv_head.register_forward_hook(lambda *a: seen.append(1))
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    modes = [m.training for m in net.modules()]
    sqs_layout(net, torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(1)))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items()) and torch.equal(state, torch.get_rng_state())
    assert modes == [m.training for m in net.modules()] and not seen and "forward_features" not in vars(net)
    hook.remove()
    twin = shell(net)
    assert twin.conv_stem.weight is net.conv_stem.weight and twin is not net and not twin.training


def test_a_forward_features_of_the_instance_stays():
    torch.manual_seed(0)
    net = Own()
    net.forward_features = own = torch.compile(net.forward_features, backend="eager")
    fitted(attach_sqs(net), images(16))
    assert vars(net)["forward_features"] is own


# ---------------------------------------------------------------- compiled and parallel ones

def test_compiled_and_parallel_networks_give_the_same_terms():
    torch.manual_seed(0)
    start, dls = attach_sqs(Own(True)).eval(), images(16)

    def log(wrap):
        net = copy.deepcopy(start)
        torch.manual_seed(0)
        learn = fitted(wrap(net), dls, 0.1)
        assert "forward_features" not in vars(net)
        with torch.no_grad():
            assert torch.equal(learn.model.eval()(dls.train.one_batch()[0]), net.eval()(dls.train.one_batch()[0]))
        pickle.dumps(net)
        return learn.sqs_log, net.state_dict()

    def in_place(net):
        net.compile(backend="eager")
        return net
    want, weights = log(lambda net: net)
    for wrap in (lambda net: torch.compile(net, backend="eager"), in_place, nn.DataParallel,
                 lambda net: Normalised(net, (0.,), (1.,)), lambda net: torch.compile(Normalised(net, (0.,), (1.,)), backend="eager")):
        found, state = log(wrap)
        assert (found == want).all(axis=None)
        assert all(torch.equal(v, weights[k]) for k, v in state.items())


def test_distributed_data_parallel_in_one_process(tmp_path):
    import torch.distributed as dist
    if not dist.is_available():
        pytest.skip("PyTorch without torch.distributed")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        torch.manual_seed(0)
        start, dls = attach_sqs(Own()).eval(), images(16)
        logs = []
        for wrap in (lambda net: net, nn.parallel.DistributedDataParallel):
            torch.manual_seed(0)
            logs.append(fitted(wrap(copy.deepcopy(start)), dls, 0.1).sqs_log)
        assert (logs[0] == logs[1]).all(axis=None)
        with pytest.raises(ConfigError, match="attach_sqs before"):
            attach_sqs(nn.parallel.DistributedDataParallel(Own()))
    finally:
        dist.destroy_process_group()


def test_wrapped_networks_elsewhere(faces, tmp_path):
    torch.manual_seed(0)
    teacher = create_teacher("test_efficientnet", pretrained=False, input_size=64).eval()
    plain = predict_logits(teacher, faces)
    for wrap in (lambda net: torch.compile(net, backend="eager"), nn.DataParallel):
        net = wrap(teacher).eval()
        assert unwrapped(net) is teacher and unwrapped(net, adapter=True) is teacher.net
        np.testing.assert_array_equal(gradcam(net, faces), gradcam(teacher, faces))
        back = load_teacher(save(net, tmp_path / "t.safetensors"))
        np.testing.assert_allclose(predict_logits(back, faces), plain, atol=1e-5)
        adv = pgd(net, torch.rand(2, 1, 48, 48), torch.tensor([0, 1]), steps=2, random_start=False)
        assert adv.shape == (2, 1, 48, 48)
    inside = Teacher(torch.compile(teacher.net, backend="eager"), 64)
    back = load_teacher(save(inside, tmp_path / "t.safetensors"))
    np.testing.assert_allclose(predict_logits(back, faces), plain, atol=1e-5)


# ---------------------------------------------------------------- normalisation inside one's own network

def test_normalisation_of_ones_own(faces, tmp_path):
    torch.manual_seed(0)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    net = Normalised(Own(), mean, std, size=16, name="own")
    x = torch.rand(10, 3, 32, 32)
    by_hand = F.interpolate(x, (16, 16), mode="bilinear", antialias=True)
    by_hand = (by_hand - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(net(x), net.net(by_hand))
    steps_of = fitted(attach_sqs(net), images(32)).sqs_log
    assert steps_of.sqs.notna().all() and net.net.enhanced is not None and detach_sqs(net).net.enhanced is None
    table = robust_curve(net.eval(), faces, eps=(0, 8/255), steps=2)
    assert table.query("metric == 'accuracy'").value.between(0, 1).all()
    assert gradcam(net, faces).shape == (3, 48, 48)
    with pytest.raises(ConfigError, match="a network of your own"):
        save(net, tmp_path / "n.safetensors")
    grey = Normalised(nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 7)), (.5,), (.25,), in_chans=1)
    assert grey.eval()(torch.rand(2, 3, 20, 20)).shape == (2, 7)


@pytest.mark.parametrize(("call", "why"), [
    (lambda: Normalised(Own(), (123.7, 116.3, 103.5), (58., 57., 57.)), "mean=123.7"), (lambda: Normalised(Own(), (.5,), (0,)), "std=0"),
    (lambda: Normalised(Own(), (.5, .5), (.2, .2)), r"len\(mean\)=2"), (lambda: Normalised(Own(), (.5,), (.2,), in_chans=4), "in_chans=4"),
    (lambda: Normalised(Normalised(Own(), (.5,), (.2,)), (.5,), (.2,)), "inside already"),
    (lambda: Normalised(Own(), (.5,), (.2,), labels=("a", "a")), "more than once"), (lambda: Teacher(Own(), 48), r"Normalised\(net, mean, std, size=48\)"),
])
def test_normalisation_that_is_refused(call, why):
    with pytest.raises(ConfigError, match=why):
        call()


# ---------------------------------------------------------------- tables that a network keeps

def test_a_network_that_keeps_tables_for_evaluation_is_evaluated_with_those_of_its_weights(faces):
    torch.manual_seed(0)
    net = create_teacher("levit_128s", pretrained=False, input_size=64).train()
    x = torch.rand(2, 1, 48, 48)
    with eval_mode(net), torch.inference_mode():
        net(x)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if "attention_biases" in name:
                p.normal_()
    fresh = create_teacher("levit_128s", pretrained=False, input_size=64).eval()
    fresh.load_state_dict(net.state_dict())
    net.eval()
    with torch.no_grad():
        assert torch.equal(net(x), fresh(x))


def test_a_table_made_in_inference_mode_does_not_stop_gradients(faces):
    torch.manual_seed(0)
    net = create_teacher("convit_tiny", pretrained=False, input_size=64).eval()
    predict_logits(net, faces)
    assert gradcam(net, faces).shape == (3, 48, 48)
    net(torch.rand(1, 1, 48, 48)).sum().backward()
