"""A training step of HyFER with PyTorch's fused attention kernel and with attention written out, in float32 and in bfloat16."""
from functools import partial

import torch
import torch.nn.functional as F
from common import arguments, fer2013, report, take_turns

from fer_nb.core import keep_freed_memory
from fer_nb.models import HyFER


def steps(
    model: HyFER,            # to train; changed in place
    batches: list[tuple[torch.Tensor, torch.Tensor]],  # images in [0, 1], targets
    fused: bool,             # PyTorch's kernel
    half: bool,              # autocast to bfloat16
) -> None:
    "Forward and backward over all batches, without an optimiser."
    for layer in model.epc.layers:
        layer.attn.fused_attn = fused
    for x, y in batches:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            z = model(x)
        F.cross_entropy(z.float(), y).backward()
        model.zero_grad()


def main() -> None:
    "Run the benchmark."
    parser = arguments("attention", __doc__, 512, 5)
    parser.add_argument("--bs", type=int, default=128, help="batch size (default 128)")
    parser.add_argument("--students", nargs="+", default=["light", "light_rep_wide", "light_res"], help="HyFER variants")
    options = parser.parse_args()
    keep_freed_memory()
    ds = fer2013(options.images)
    x, y = torch.from_numpy(ds.array())[:, None] / 255, torch.tensor(ds.targets())
    batches, contestants, baseline = list(zip(x.split(options.bs), y.split(options.bs))), {}, {}
    for student in options.students:
        torch.manual_seed(0)
        model = HyFER(in_chans=1, variant=student).to(memory_format=torch.channels_last).train()
        for precision in ("float32", "bfloat16"):
            plain, fused = (f"{student}, {precision}, {how}" for how in ("written out", "fused"))
            contestants |= {name: partial(steps, model, batches, name == fused, precision == "bfloat16") for name in (plain, fused)}
            baseline[fused] = plain
    settings = {"data": ds.name, "images": len(ds), "batch size": options.bs, "side": x.shape[-1], "tokens": 36, "repeats": options.repeats}
    report(take_turns(contestants, options.repeats), baseline, settings, options.out, len(ds))


if __name__ == "__main__":
    main()
