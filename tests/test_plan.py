"""The plan before a run: what the machine is asked for reaches it, and what is free is read from made-up files of the kernel."""
import os
from dataclasses import replace

import pytest
import torch

from fer_nb import plan
from fer_nb.config import PRESETS, Fit, override
from fer_nb.core import ConfigError, DataError
from fer_nb.launch import machine
from fer_nb.sqs_studies import SQS_PRESETS, sqs_parts
from fer_nb.synth import make_faces

N = plan.Images(360, 540, 40, 100, chans=1)
SMALL = replace(PRESETS["tiny"], teachers=())


@pytest.fixture
def a_card(monkeypatch):
    "A machine with a card as its second one, of which 7 bytes are free."
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (7 if device == 1 else 9, 99))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: f"card {device}")
    real = plan.pick_device
    monkeypatch.setattr(plan, "pick_device", lambda device=None: torch.device(device) if device and "cuda" in device else real(device))


def test_the_precision_of_the_machine_reaches_the_plan():
    with machine(amp="bf16", device="cpu"):
        assert plan.halved(Fit(amp=None)) and plan.halved(Fit(amp="fp16"))
    with machine(amp="off"):
        assert not plan.halved(Fit(amp="bf16"))
        table = plan.plan(replace(SMALL, student=replace(SMALL.student, amp="bf16")), N, cores=1)
    pd_equal = table["hours, a card"].tolist() == plan.plan(SMALL, N, cores=1)["hours, a card"].tolist()
    assert pd_equal and not plan.halved(Fit(amp="auto", device="cpu"))


def test_mixed_precision_is_recommended_to_those_who_have_none():
    with pytest.raises(ConfigError, match=r"mixed precision \(amp\) or another preset"):
        plan.need_memory(SMALL, N, (10**6, "a toy"))
    with machine(amp="bf16"), pytest.raises(ConfigError) as e:
        plan.need_memory(SMALL, N, (10**6, "a toy"))
    assert "mixed precision" not in str(e.value) and "another preset" in str(e.value)


def test_memory_is_that_of_the_device_that_is_asked_for(a_card):
    assert plan.available("cuda:1") == (7, "card 1")
    with machine(device="cpu"):
        assert plan.available()[1] == "this machine" and not plan.halved(Fit(amp="auto"))
        plan.need_memory(SMALL, N)
        assert plan.halved(Fit(amp="auto", device="cuda:1"))
        with pytest.raises(ConfigError, match="card 1"):
            plan.need_memory(replace(SMALL, student=replace(SMALL.student, device="cuda:1")), N)


def test_a_device_that_is_not_there_is_named_before_anything_is_timed(monkeypatch):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: pytest.fail("no card is asked for"))
    with pytest.raises(ConfigError, match="device='mps' cannot be used here"):
        plan.measured_rates(replace(SMALL, student=replace(SMALL.student, device="mps")), N, .1)
    waited = []
    monkeypatch.setattr(torch.mps, "synchronize", lambda: waited.append("mps"))
    plan._wait(torch.device("mps")), plan._wait(torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: waited.append(str(device)))
    plan._wait(torch.device("cuda:1"))
    assert waited == ["mps", "cuda:1"]


def test_rates_are_timed_in_the_precision_that_is_asked_for(monkeypatch):
    real, seen = torch.autocast, []
    monkeypatch.setattr(torch, "autocast", lambda *a, **k: seen.append((a, k["enabled"])) or real(*a, **k))
    one = replace(SMALL, student=replace(SMALL.student, bs=2))
    with machine(device="cpu"):
        plan.measured_rates(one, N, .01)
        assert seen and not any(enabled for _, enabled in seen)
        seen.clear()
        with machine(amp="bf16"):
            plan.measured_rates(one, N, .01)
    assert seen and all(enabled and a == ("cpu", torch.bfloat16) for a, enabled in seen)


@pytest.mark.parametrize("text, cores", [("4,2", 4), ("3", 3), (" 2 ", 2), ("", os.cpu_count()), ("many", os.cpu_count())])
def test_threads_are_read_as_openmp_reads_them(monkeypatch, text, cores):
    from fer_nb.launch import threads
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert plan.plan(SMALL, N).columns[-2] == f"hours, {cores} core{'s' * (cores > 1)}"
    assert threads() == (cores if text.strip()[:1].isdigit() else 0)


V1 = {"limit_in_bytes": "9000", "usage_in_bytes": "7000", "stat": "cache 5\ninactive_file 1\ntotal_inactive_file 400\n"}
V2 = {"max": "9000", "current": "7000", "stat": "anon 1\ninactive_file 300\nactive_file 5000\n"}


@pytest.mark.parametrize("files, free", [
    ({"": V2}, 2300), ({"": V2 | {"max": "max\n"}}, 50 * 1024), ({"": {k: V2[k] for k in ("max", "current")}}, 2000),
    ({"memory/": V1}, 2400), ({"memory/": V1 | {"limit_in_bytes": "9223372036854771712"}}, 50 * 1024), ({"": V2, "memory/": V1}, 2300),
    ({}, 50 * 1024)])
def test_free_memory_is_what_the_kernel_can_give(tmp_path, files, free):
    group = tmp_path / "sys/fs/cgroup"
    for place, texts in files.items():
        for name, text in texts.items():
            path = group / f"{place}memory.{name}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal:  99 kB\nMemAvailable:     50 kB\n")
    assert plan.free_memory(tmp_path) == free


@pytest.mark.parametrize("protocol", [None, "ferplus", "affectnet", "rafdb"])
@pytest.mark.parametrize("splits", [(0.5, 0.2, 0.3), (0.7, 0, 0.3), (0.7, 0.3, 0)])
def test_the_parts_of_sqsnet_are_planned_as_they_are_made(protocol, splits):
    faces = make_faces(300, seed=0, defects=None, size=32, splits=splits)[0]
    preset = override(SQS_PRESETS["light"], ["data.near_duplicates=false"] + [f"data.protocol={protocol}"] * bool(protocol))
    try:
        made = sqs_parts(faces, preset)
    except DataError:   # a split that the protocol needs is not there
        return
    planned = plan.images_in(faces, preset)
    assert abs(planned.train - len(made.train)) <= 15 and abs(planned.valid - len(made.valid)) <= 15      # groups are held out whole
    assert planned.train + planned.valid == len(made.train) + len(made.valid) and planned.test == len(made.test)
    fits = [part.name for part in plan.parts_of(preset, planned) if part.fit]
    assert len(fits) == 1 + (made.everything is not None) and planned.again == len(made.everything or ())


def test_a_network_of_a_file_is_counted_and_a_second_pass_too(tmp_path):
    from fer_nb.models import HyFER, save_hyfer
    file = str(save_hyfer(HyFER(7, 1, "light").eval(), tmp_path / "st.safetensors") or tmp_path / "st.safetensors")
    by_name, by_file = plan.cost_of("light", 48, 1), plan.cost_of(file, 48, 1)
    assert (by_file.parameters, by_file.macs) == (by_name.parameters, by_name.macs) and by_file.kept > 0
    plain, sam = (plan.parts_of(override(SMALL, [f"student.sam={v}"]), N)[0].passes for v in ("null", "0.05"))
    assert sam == plain + 3 * SMALL.student.epochs * N.shown


@pytest.mark.parametrize("accumulate, steps", [(None, 12), (1, 12), (4, 3), (5, 2)])
def test_batches_that_make_one_step_are_counted_as_one(accumulate, steps):
    """What is left of an epoch goes on in the next one, as `train.Accumulate` does."""
    fit = replace(SMALL.student, epochs=2, bs=90, accumulate=accumulate)
    part = next(p for p in plan.parts_of(replace(SMALL, student=fit), N) if p.name == "student, no teacher")
    assert part.steps == steps and part.passes == 2 * (3 * N.shown + N.valid)
