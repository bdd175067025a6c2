"""The attacks of the installed package: properties, invariants of the model, and parity with foolbox."""
import copy
import warnings
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fer_nb.attacks import deepfool, fgsm, margin, pgd, square_search
from fer_nb.core import ConfigError, FERError, ImageError, LabelError

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    foolbox = pytest.importorskip("foolbox")


@pytest.fixture(scope="module")
def torchattacks():
    "No dependency of any extra (its own pins are old): `pip install --no-deps torchattacks==3.5.1` to run these."
    return pytest.importorskip("torchattacks")


ATTACKS = {
    "fgsm": fgsm,
    "fgsm-rs": lambda m, x, y: fgsm(m, x, y, random_start=True),
    "pgd": lambda m, x, y: pgd(m, x, y, steps=3, restarts=2),
    "pgd-l2": lambda m, x, y: pgd(m, x, y, eps=0.5, steps=3, norm="l2"),
    "pgd-rule": lambda m, x, y: pgd(m, x, F.one_hot(y, 4).float(), steps=3, alpha=lambda t: 0.01 / (1 + t)),
    "deepfool": lambda m, x, y: deepfool(m, x, y, steps=5),
    "deepfool-linf": lambda m, x, y: deepfool(m, x, steps=5, norm="linf"),
}


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def net(chans=3, classes=4):
    return nn.Sequential(nn.Conv2d(chans, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1),
                         nn.BatchNorm2d(16), nn.SiLU(), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
                         nn.Linear(64, classes))


def blobs(n, seed):
    "Four classes: noise with one bright quadrant."
    g = gen(seed)
    y = torch.arange(n) % 4
    x = 0.6 * torch.rand(n, 3, 12, 12, generator=g)
    for i, k in enumerate(y.tolist()):
        x[i, :, 6 * (k // 2):6 * (k // 2) + 6, 6 * (k % 2):6 * (k % 2) + 6] += 0.1
    return x, y


@pytest.fixture(scope="module")
def toy():
    torch.manual_seed(0)
    model = net()
    opt = torch.optim.Adam(model.parameters(), 1e-2)
    for step in range(60):
        x, y = blobs(64, step)
        opt.zero_grad()
        F.cross_entropy(model(x), y).backward()
        opt.step()
    model.zero_grad()
    x, y = blobs(40, 1000)
    model.eval()
    with torch.no_grad():
        assert (model(x).argmax(1) == y).float().mean() > 0.9
    return model, x, y


def state(model):
    return ({k: v.clone() for k, v in model.state_dict().items()}, [p.requires_grad for p in model.parameters()],
            [None if p.grad is None else p.grad.clone() for p in model.parameters()],
            [m.training for m in model.modules()])


def assert_same(a, b):
    assert all(torch.equal(a[0][k], b[0][k]) for k in a[0])
    assert a[1] == b[1] and a[3] == b[3]
    assert all((g is None and h is None) or torch.equal(g, h) for g, h in zip(a[2], b[2]))


@settings(max_examples=25, deadline=None)
@given(b=st.integers(0, 4), c=st.sampled_from([1, 3]), h=st.integers(3, 9), w=st.integers(3, 9),
       eps=st.floats(0, 0.6), steps=st.integers(1, 4), norm=st.sampled_from(["linf", "l2"]), seed=st.integers(0, 99))
def test_ball_and_range(b, c, h, w, eps, steps, norm, seed):
    torch.manual_seed(seed)
    model, x, y = net(c).eval(), torch.rand(b, c, h, w), torch.randint(0, 4, (b,))
    x = torch.where(torch.rand_like(x) < 0.2, x.round(), x)  # some pixels at the ends of the range
    found = {"pgd": pgd(model, x, y, eps, steps=steps, norm=norm, generator=gen(seed)),
             "restarts": pgd(model, x, y, eps, steps=1, norm=norm, restarts=3, generator=gen(seed)),
             "long steps": pgd(model, x, y, eps, lambda t: 9.0 / (1 + t), steps, norm=norm, generator=gen(seed)),
             "soft": pgd(model, x, torch.rand(b, 4).softmax(1), eps, steps=steps, norm=norm, generator=gen(seed))}
    if norm == "linf":
        found |= {"fgsm": fgsm(model, x, y, eps), "rs": fgsm(model, x, y, eps, random_start=True, generator=gen(seed))}
    for name, adv in found.items():
        assert adv.shape == x.shape and adv.dtype == x.dtype and not adv.requires_grad, name
        d = (adv - x).flatten(1)
        assert not b or (d.abs().max() if norm == "linf" else d.norm(dim=1).max()) <= eps * (1 + 1e-5) + 1e-6, name
    found["deepfool"] = deepfool(model, x, steps=steps, norm=norm)
    assert all(not b or (a.min() >= 0 and a.max() <= 1) for a in found.values())


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("frozen", [False, True])
def test_model_is_left_alone(toy, name, frozen):
    _, x, y = toy
    torch.manual_seed(1)
    model = net()
    F.cross_entropy(model(x), y).backward()  # gradients that must survive
    model.eval()
    if frozen:
        for p in list(model.parameters())[:3]:
            p.requires_grad_(False)
    before, keep = state(model), x.clone()
    ATTACKS[name](model, x, y)
    assert_same(before, state(model))
    assert torch.equal(x, keep) and not x.requires_grad


class Bomb(nn.Module):
    def __init__(self, fuse):
        super().__init__()
        self.inner, self.fuse = net(), fuse

    def forward(self, x):
        self.fuse -= 1
        if self.fuse < 0:
            raise RuntimeError("boom")
        return self.inner(x)


@pytest.mark.parametrize("name,fuse", [("fgsm", 0), ("pgd", 2), ("pgd", 4), ("deepfool", 1)])
def test_model_is_left_alone_by_an_exception(toy, name, fuse):
    _, x, y = toy
    torch.manual_seed(1)
    model = Bomb(fuse).eval()
    y = model.inner(x).argmax(1)  # so that DeepFool has work to do
    before = state(model)
    with torch.no_grad(), pytest.raises(RuntimeError, match="boom"):
        ATTACKS[name](model, x, y)
    assert_same(before, state(model))
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("name", ["fgsm", "pgd", "deepfool"])
def test_surroundings_do_not_matter(toy, name):
    model, x, y = toy
    attack = {"fgsm": fgsm, "pgd": lambda m, x, y: pgd(m, x, y, generator=gen()), "deepfool": deepfool}[name]
    want = attack(model, x, y)
    with torch.no_grad():
        assert torch.equal(attack(model, x, y), want)
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        assert torch.equal(attack(model, x.clone(), y.clone()), want)
    with torch.autocast("cpu", torch.bfloat16):
        got = attack(model, x, y)
        assert torch.equal(got, want) and got.dtype == torch.float32 and torch.is_autocast_enabled("cpu")
    assert torch.equal(attack(model, x.clone().requires_grad_(), y.int()), want)


@pytest.mark.parametrize("name", ATTACKS)
def test_channels_last(toy, name):
    model, x, y = toy
    torch.manual_seed(0)
    want = ATTACKS[name](model, x, y)
    torch.manual_seed(0)
    got = ATTACKS[name](model, x.contiguous(memory_format=torch.channels_last), y)
    assert got.is_contiguous(memory_format=torch.channels_last) and not got.is_contiguous()
    if name not in ("fgsm", "fgsm-rs", "pgd", "pgd-rule"):  # signs of near-zero gradients may differ between kernels
        assert torch.allclose(got, want, atol=1e-4)
    assert (got != want).float().mean() < 0.05 or torch.allclose(got, want, atol=1e-4)


def test_float64_and_generator(toy):
    model, x, y = toy
    m64, x64 = net().double().eval(), x.double()
    m64.load_state_dict(model.state_dict())
    assert pgd(m64, x64, y).dtype == torch.float64
    assert torch.equal(pgd(model, x, y, generator=gen(4)), pgd(model, x, y, generator=gen(4)))
    assert not torch.equal(pgd(model, x, y, generator=gen(4)), pgd(model, x, y, generator=gen(5)))
    before = torch.get_rng_state()
    pgd(model, x, y, restarts=2, generator=gen())
    assert torch.equal(before, torch.get_rng_state())


def test_rows_are_independent(toy):
    model, x, y = toy
    assert torch.allclose(fgsm(model, x, y)[7:8], fgsm(model, x[7:8], y[7:8]), atol=1e-6)
    assert torch.allclose(deepfool(model, x)[7:8], deepfool(model, x[7:8]), atol=1e-4)


@pytest.mark.parametrize("gone", [0, 2, 20, 38])
def test_deepfool_does_not_depend_on_how_many_rows_leave(toy, gone):
    model, x, _ = toy
    with torch.no_grad():
        y = model(x).argmax(1)
    y[:gone] = (y[:gone] + 1) % 4  # these rows leave at the first step
    alone = torch.cat([deepfool(model, a[None], b[None]) for a, b in zip(x, y)])
    assert torch.allclose(deepfool(model, x, y), alone, atol=1e-4)
    assert torch.equal(alone[:gone], x[:gone])


def test_linear_model_has_a_known_worst_case():
    "For two classes and a linear model the worst change is eps times the sign (or direction) of the weight difference."
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).eval()
    x, y = 0.3 + 0.4 * torch.rand(20, 3, 2, 2), torch.randint(0, 2, (20,))
    w = model[1].weight.detach()
    up = (w[1 - y] - w[y]).view_as(x)
    assert torch.allclose(fgsm(model, x, y, 0.1), x + 0.1 * up.sign(), atol=1e-6)
    assert torch.allclose(pgd(model, x, y, 0.1, generator=gen()), x + 0.1 * up.sign(), atol=1e-6)
    away = 0.1 * up / up.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    assert torch.allclose(pgd(model, x, y, 0.1, norm="l2", steps=60, alpha=0.05, generator=gen()), x + away, atol=1e-4)


@pytest.mark.parametrize("norm,eps", [("linf", 0.02), ("l2", 0.3)])
def test_restarts_are_monotone(toy, norm, eps):
    model, x, y = toy

    def harm(restarts):
        adv = pgd(model, x, y, eps, steps=2, restarts=restarts, norm=norm, generator=gen())
        with torch.no_grad():
            z = model(adv)
        return F.cross_entropy(z, y, reduction="none").masked_fill(z.argmax(1) != y, float("inf"))
    found = [harm(r) for r in (1, 2, 4, 8)]
    assert all((b >= a - 1e-6).all() for a, b in zip(found, found[1:]))


def test_fgsm_is_foolboxs(toy):
    model, x, y = toy
    fmodel = foolbox.PyTorchModel(model, bounds=(0, 1))
    for eps in (2/255, 8/255, 0.1):
        theirs = foolbox.attacks.FGSM()(fmodel, x, y, epsilons=eps)[1]
        assert torch.allclose(fgsm(model, x, y, eps), theirs, atol=1e-6)


@pytest.mark.parametrize("norm,eps", [("linf", 0.02), ("linf", 0.04), ("l2", 0.3), ("l2", 0.6)])
def test_pgd_is_as_strong_as_foolboxs(toy, norm, eps):
    model, x, y = toy
    fmodel = foolbox.PyTorchModel(model, bounds=(0, 1))
    attack = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}[norm]
    torch.manual_seed(0)
    theirs = attack(abs_stepsize=eps / 4, steps=10, random_start=True)(fmodel, x, y, epsilons=eps)[2].float().mean()
    with torch.no_grad():
        ours = (model(pgd(model, x, y, eps, eps / 4, 10, norm=norm, generator=gen())).argmax(1) != y).float().mean()
    assert ours >= theirs - 0.025  # one of 40 images, for the different random starts
    exact = attack(abs_stepsize=eps / 4, steps=5, random_start=False)(fmodel, x, y, epsilons=eps)[1]
    assert torch.allclose(pgd(model, x, y, eps, eps / 4, 5, norm=norm, random_start=False), exact, atol=1e-5)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_deepfool_is_as_short_as_foolboxs(toy, norm):
    model, x, _ = toy
    with torch.no_grad():
        y = model(x).argmax(1)
    attack = {"l2": foolbox.attacks.L2DeepFoolAttack, "linf": foolbox.attacks.LinfDeepFoolAttack}[norm]
    theirs = attack(steps=50, overshoot=0.02)(foolbox.PyTorchModel(model, bounds=(0, 1)), x, y, epsilons=None)[0]
    ours = deepfool(model, x, y, norm=norm)
    with torch.no_grad():
        assert (model(ours).argmax(1) != y).all()
    p = 2 if norm == "l2" else float("inf")
    length = [(a - x).flatten(1).norm(p=p, dim=1).mean() for a in (ours, theirs)]
    assert length[0] <= 1.02 * length[1]


def deepfool_plainly(model, x0, norm, overshoot=0.02, steps=50):
    "One image, one class after the other, as in the paper."
    x, r, label = x0.clone(), torch.zeros_like(x0), int(model(x0).argmax())
    for _ in range(steps):
        x = x.detach().requires_grad_()
        z = model(x)[0]
        if int(z.argmax()) != label:
            break
        best = None
        for k in range(len(z)):
            if k != label:
                w = torch.autograd.grad(z[k] - z[label], x, retain_graph=True)[0]
                size = w.norm() if norm == "l2" else w.abs().sum()
                distance = (z[k] - z[label]).abs().detach() / size
                if best is None or distance < best[0]:
                    best = distance, w / size if norm == "l2" else w.sign()
        r = r + (best[0] + 1e-4) * best[1]
        x = (x0 + (1 + overshoot) * r).clamp(0, 1)
    return x.detach()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_deepfool_is_the_plain_algorithm_for_seven_classes(norm):
    torch.manual_seed(3)
    model, x = net(classes=7).eval(), torch.rand(24, 3, 12, 12)
    for p in model.parameters():
        p.data.mul_(2)  # so that images need several steps
    plain = torch.cat([deepfool_plainly(model, x[i:i + 1], norm) for i in range(len(x))])
    assert torch.allclose(deepfool(model, x, norm=norm), plain, atol=2e-4)


@pytest.mark.parametrize("norm,eps", [("linf", 0.02), ("linf", 0.04), ("l2", 0.3)])
def test_as_strong_as_torchattacks(toy, torchattacks, norm, eps):
    model, x, y = toy
    fooled = lambda adv: (model(adv).argmax(1) != y).float().mean().item()  # noqa: E731
    attack = {"linf": torchattacks.PGD, "l2": torchattacks.PGDL2}[norm]
    theirs = attack(model, eps=eps, alpha=eps / 4, steps=10, random_start=False)(x, y)
    ours = pgd(model, x, y, eps, eps / 4, 10, norm=norm, random_start=False)
    assert fooled(ours) >= fooled(theirs) and torch.allclose(ours, theirs, atol=1e-5)
    if norm == "linf":
        theirs = torchattacks.FGSM(model, eps=eps)(x, y)
        assert fooled(fgsm(model, x, y, eps)) >= fooled(theirs)
        assert torch.allclose(fgsm(model, x, y, eps), theirs, atol=1e-6)


def test_deepfool_is_as_short_as_torchattacks(toy, torchattacks):
    model, x, _ = toy
    with torch.no_grad():
        y = model(x).argmax(1)
    length = [(a - x).flatten(1).norm(dim=1).mean()
              for a in (deepfool(model, x, y), torchattacks.DeepFool(model, steps=50, overshoot=0.02)(x, y))]
    assert length[0] <= 1.02 * length[1]


def test_step_rule(toy):
    model, x, y = toy
    calls = []

    def rule(t):
        calls.append(t)
        return 0.01
    same = dict(steps=4, generator=gen())
    assert torch.equal(pgd(model, x, y, 0.04, rule, **same), pgd(model, x, y, 0.04, 0.01, 4, generator=gen()))
    assert calls == [0, 1, 2, 3]
    still = pgd(model, x, y, 0.04, lambda t: 0.0, steps=3, random_start=False)
    assert torch.equal(still, x)


def test_soft_labels(toy):
    model, x, y = toy
    hard, one_hot = ({"y": v, "eps": 0.03, "generator": gen(1)} for v in (y, F.one_hot(y, 4).double()))
    for kwargs in ({}, {"restarts": 3}, {"norm": "l2"}):
        hard["generator"].manual_seed(1), one_hot["generator"].manual_seed(1)
        assert torch.allclose(pgd(model, x, **hard, **kwargs), pgd(model, x, **one_hot, **kwargs), atol=1e-5)
    p = model(x).softmax(1).detach()
    adv = pgd(model, x, p, 0.03, generator=gen())
    kl = lambda q: (p * (p.log() - model(q).log_softmax(1))).sum(1).mean()  # noqa: E731
    noise = (x + 0.03 * torch.randn(x.shape, generator=gen()).sign()).clamp(0, 1)
    assert kl(adv) > 3 * kl(noise)
    for bad, why in [(p[:5], r"\(5, 4\)"), (2 * p, "not a distribution"), (p - 1, "not a distribution"),
                     (p * float("nan"), "not a distribution"), (F.pad(p, (0, 1)), "5 classes; the model has 4")]:
        with pytest.raises(LabelError, match=why):
            pgd(model, x, bad)
    with torch.no_grad():
        left = deepfool(model, x, p)
    assert torch.equal(left, deepfool(model, x, p.argmax(1))) and not (model(left).argmax(1) == p.argmax(1)).any()
    assert torch.equal(square_search(model, x, p, 0.03, 20), square_search(model, x, p.argmax(1).int(), 0.03, 20))


GOLDEN = {  # sums of |change| and change squared, and one pixel's change, before the attacks were rewritten for 0.1;
    # pgd since it goes on where the network is too sure for a gradient of the cross-entropy (before: 513.183, 15.832)
    "fgsm": (536.329, 16.7636, 0.0313726), "fgsm-rs": (462.556, 13.302, 0.0313726), "pgd": (514.238, 15.8915, 0.0313726),
    "pgd-l2": (301.021, 9.92836, 0.00492167), "pgd-rule": (314.001, 7.82218, 0.0244405),
    "deepfool": (380.89, 21.9208, 0.0189808), "deepfool-linf": (889.99, 49.4411, 0.0591145)}


@pytest.mark.parametrize("name", ATTACKS)
def test_the_same_seed_gives_the_images_that_it_always_gave(name):
    torch.manual_seed(1)
    model, x = net(), blobs(40, 1000)[0]
    for p in model.parameters():
        p.data.mul_(3)
    with torch.no_grad():
        y = model.eval()(x).argmax(1)
    y[::5] = (y[::5] + 1) % 4
    torch.manual_seed(0)
    change = (ATTACKS[name](model, x, y) - x).double()
    found = change.abs().sum().item(), change.square().sum().item(), change[7, 1, 5, 6].item()
    assert found == pytest.approx(GOLDEN[name], rel=1e-3)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_is_the_plain_loop_to_the_bit(toy, norm):
    model, x, y = toy
    eps, g = {"linf": 0.03, "l2": 0.4}[norm], gen(2)

    def inside(adv):
        d = adv - x
        length = d.flatten(1).norm(dim=1).view(-1, 1, 1, 1).clamp_min(1e-12)
        return (x + (d.clamp(-eps, eps) if norm == "linf" else d * (eps / length).clamp_max(1))).clamp(0, 1)
    if norm == "linf":
        d = torch.rand(x.shape, generator=g) * (2 * eps) - eps
    else:
        d = torch.randn(x.shape, generator=g)
        d = d / d.flatten(1).norm(dim=1).view(-1, 1, 1, 1) * eps * torch.rand(len(x), 1, 1, 1, generator=g) ** (1 / 432)
    adv = inside(x + d)
    for _ in range(5):
        adv = adv.detach().requires_grad_()
        grad = torch.autograd.grad(F.cross_entropy(model(adv), y, reduction="none").sum(), adv)[0]
        step = grad.sign() if norm == "linf" else grad / grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1).clamp_min(1e-12)
        adv = inside(adv.detach() + 2.5 * eps / 5 * step)
    assert torch.equal(pgd(model, x, y, eps, steps=5, norm=norm, generator=gen(2)), adv)


class Odd(nn.Module):
    def __init__(self, out):
        super().__init__()
        self.inner, self.out = net(), out

    def forward(self, x):
        return self.out(self.inner(x))


BAD_OUTPUT = {"tuple": (lambda z: (z, z), "tuple"),
              "softmax": (lambda z: z.softmax(1), "probabilities .remove its softmax"),
              "one column": (lambda z: z[:, :1], "K >= 2"), "NaN": (lambda z: z * float("nan"), "NaN"),
              "detached": (lambda z: z.detach(), "no gradient"), "short": (lambda z: z[1:], r"\(39, 4\) for 40 images")}


@pytest.mark.parametrize("name", ["fgsm", "pgd", "deepfool"])
@pytest.mark.parametrize("case", BAD_OUTPUT)
def test_bad_models_are_refused(toy, name, case):
    _, x, y = toy
    out, why = BAD_OUTPUT[case]
    with pytest.raises(ConfigError, match=why):
        torch.manual_seed(0)
        model = Odd(out).eval()
        y = model.inner(x).argmax(1)
        ATTACKS[name](model, x, y)


@pytest.mark.parametrize("name", ["fgsm", "pgd", "deepfool"])
def test_bad_input_is_refused(toy, name):
    model, x, y = toy
    attack, nan = ATTACKS[name], x.clone()
    nan[5, 0, 0, 0] = float("nan")
    for bad, why in [(nan, "image 5"), (x + 2, "image 0"), (x.bfloat16(), "bfloat16"), (x.numpy(), "ndarray"),
                     (x.flatten(1), "expected \\(B, C, H, W\\)"), (torch.full_like(x, float("inf")), "inf")]:
        with pytest.raises(ImageError, match=why):
            attack(model, bad, y)
    for bad, why in [(y.float(), "float32"), (y.bool(), "bool"), (y.tolist(), "list"), (y[None], "expected \\(40,\\)"),
                     (y + 1, "has 4 classes")]:
        with pytest.raises(LabelError, match=why):
            attack(model, x, bad)
    assert all(issubclass(e, FERError) for e in (ImageError, LabelError, ConfigError))


@pytest.mark.parametrize("name", ["fgsm", "pgd", "deepfool"])
def test_training_mode_and_integer_images_are_refused_and_nothing_is_touched(toy, name):
    _, x, y = toy
    torch.manual_seed(1)
    model = net().eval()
    with pytest.raises(ImageError, match="uint8"):
        ATTACKS[name](model, (x * 255).byte(), y)
    with pytest.raises(ImageError, match="int64"):
        ATTACKS[name](model, x.round().long(), y)
    with pytest.raises(ImageError, match="normalisation belongs inside the model"):
        ATTACKS[name](model, x - 0.5, y)
    part = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)).train()
    before = state(model)
    with pytest.raises(ConfigError, match="training mode"):
        ATTACKS[name](model, x, y)
    assert part.training
    assert_same(before, state(model))


def test_bad_settings_are_refused(toy):
    model, x, y = toy
    for call in [lambda: fgsm(model, x, y, eps=float("nan")), lambda: fgsm(model, x, y, eps="8/255"),
                 lambda: fgsm(model, x, y, alpha=-1), lambda: pgd(model, x, y, eps=float("inf")),
                 lambda: pgd(model, x, y, alpha=lambda t: float("nan")), lambda: pgd(model, x, y, alpha="fast"),
                 lambda: pgd(model, x, y, restarts=0), lambda: pgd(model, x, y, steps=True),
                 lambda: deepfool(model, x, overshoot=-0.1), lambda: deepfool(model, x, norm="L2"),
                 lambda: deepfool(model, x, steps=0)]:
        with pytest.raises(ConfigError):
            call()
    for attack in (fgsm, pgd):
        with pytest.raises(LabelError, match="NoneType"):
            attack(model, x, None)


@pytest.mark.parametrize("scale", [1, 30, 100, 300])
@pytest.mark.parametrize("attack", [fgsm, lambda m, x, y: pgd(m, x, y, steps=5, generator=gen()),
                                    lambda m, x, y: pgd(m, x, F.one_hot(y, 4).float(), steps=5, generator=gen())], ids=["fgsm", "pgd", "shares"])
def test_large_logits_are_no_defence(toy, scale, attack):
    "The same classes with all logits multiplied: what the attack finds must not depend on it."
    class Scaled(nn.Module):
        def forward(self, x):
            return scale * model(x)

    (model, *_), (x, y) = toy, blobs(160, 5)
    left = [(model(attack(m, x, y)).argmax(1) == y).float().mean().item() for m in (model, Scaled().eval())]
    assert left[1] <= left[0] + 0.06


@pytest.mark.parametrize("ask", [lambda m, x, y: square_search(m, x, y, 0.03, 20), margin])
def test_without_gradients_the_same_protection(toy, ask):
    model, x, y = toy[0], *blobs(8, 3)
    found = ask(model, x, y)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ask(model, x, y), found)
    with torch.inference_mode():
        assert torch.equal(other := ask(model, x, y), found) and not other.is_inference()
    with pytest.raises(ImageError):
        ask(model, 255 * x, y)
    loose, mean = copy.deepcopy(model).train(), model[1].running_mean.clone()
    with pytest.raises(ConfigError, match="training mode"):
        ask(loose, x, y)
    assert torch.equal(loose[1].running_mean, mean)


def test_square_search_says_where_its_generator_belongs():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()
    on_a_card = SimpleNamespace(device=torch.device("cuda"))
    with pytest.raises(ConfigError, match="device of the generator=cuda; cpu expected|device of the generator='cuda'"):
        square_search(model, torch.rand(2, 1, 4, 4), torch.tensor([0, 1]), generator=on_a_card)
