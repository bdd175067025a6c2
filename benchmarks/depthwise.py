"""Forward and backward of a depthwise 3×3 convolution on the CPU, with stride 1 and 2, in float32 and in bfloat16."""
from functools import partial

import torch
from common import arguments, report, take_turns
from torch import nn

MAPS = ((64, 48), (128, 24), (256, 12))  # channels, side: where a MobileNet for 48-px faces halves its maps


def step(
    conv: nn.Conv2d,      # depthwise
    x: torch.Tensor,      # its input, of the same precision
    slope: torch.Tensor,  # the loss's gradient by its output
) -> None:
    "Output, and the gradients of weights and input."
    conv(x).backward(slope)
    conv.zero_grad()
    x.grad = None


def main() -> None:
    "Run the benchmark."
    options = arguments("depthwise", __doc__, 64, 7).parse_args()
    contestants, baseline = {}, {}
    for chs, side in MAPS:
        for stride in (1, 2):
            name = f"{chs} × {side} × {side}, stride {stride}"
            for dtype in (torch.float32, torch.bfloat16):
                conv = nn.Conv2d(chs, chs, 3, stride, 1, groups=chs, bias=False, dtype=dtype).to(memory_format=torch.channels_last)
                x = torch.rand(options.images, chs, side, side, dtype=dtype).to(memory_format=torch.channels_last).requires_grad_()
                contestants[f"{name}, {str(dtype)[6:]}"] = partial(step, conv, x, torch.rand_like(conv(x)))
            baseline[f"{name}, bfloat16"] = f"{name}, float32"
    settings = {"maps at once": options.images, "repeats": options.repeats}
    report(take_turns(contestants, options.repeats), baseline, settings, options.out)


if __name__ == "__main__":
    main()
