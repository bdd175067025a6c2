"""Augmented batches, beside the sampling of the same images alone."""
import time

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from common import arguments, fer2013, report, take_turns

from fer_nb.augment import Augment, affine_maps
from fer_nb.core import keep_freed_memory
from fer_nb.data import FERData, resized
from fer_nb.loaders import ReplayLoader

KINDS = {"geometry": Augment(), "colour": Augment(brightness=0.1, contrast=0.2), "erased": Augment(erase=0.5, erase_size=(0.14, 0.57)),
         "texture": Augment(brightness=0.15, contrast=0.25, noise=0.03, blur=0.7)}


def batches(
    ds: FERData,       # images
    bs: int,           # batch size
    augment: Augment,  # changes
) -> float:            # CPU seconds
    "All batches of a loader."
    loader, start = ReplayLoader(ds, bs, True, augment), time.process_time()
    for _ in loader:
        pass
    return time.process_time() - start


def sampling(
    ds: FERData,   # images
) -> float:        # CPU seconds
    "What rotating costs alone: floats and places are there already."
    x = torch.from_numpy(ds.array()[:2]).float() / 255
    x = x.permute(0, 3, 1, 2).contiguous() if x.ndim == 4 else x[:, None]
    maps = affine_maps(x.shape[-2:], torch.tensor([7.0, -7.0]), torch.ones(2), torch.zeros(2, 2), torch.ones(2, 2))
    grid = F.affine_grid(maps, list(x.shape), align_corners=False)
    start = time.process_time()
    for _ in range(len(ds) // 2):
        F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    return time.process_time() - start


def opencv(
    ds: FERData,   # images
) -> float:        # CPU seconds
    "The same rotation of bytes by OpenCV, which leaves bytes."
    x, angle = ds.array()[0], np.deg2rad(7)
    side = len(x)
    turn = np.array([[np.cos(angle), -np.sin(angle), 3], [np.sin(angle), np.cos(angle), -2]])
    start = time.process_time()
    for _ in range(len(ds)):
        cv2.warpAffine(x, turn, (side, side), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE)
    return time.process_time() - start


def main() -> None:
    "Run the benchmark."
    options = arguments("augment", __doc__, 256, 9).parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    keep_freed_memory()
    grey = fer2013(options.images)
    large = resized(grey, 224)
    sets = {"224 px, colour": (large.replace(images=large.array()[..., None].repeat(3, 3)), 32), "48 px, grey": (grey, 128)}
    contestants, baseline = {}, {}
    for name, (ds, bs) in sets.items():
        contestants[f"{name}: sampling alone"] = lambda ds=ds: sampling(ds)
        contestants[f"{name}: OpenCV"] = lambda ds=ds: opencv(ds)
        for kind, augment in KINDS.items():
            contestants[f"{name}: {kind}"] = lambda ds=ds, bs=bs, augment=augment: batches(ds, bs, augment)
        baseline |= {f"{name}: {kind}": f"{name}: sampling alone" for kind in ("OpenCV", *KINDS)}
    times = take_turns(contestants, options.repeats)
    report(times, baseline, {"images": len(grey), "batch": {n: bs for n, (_, bs) in sets.items()}, "clock": "CPU seconds of one thread"},
           options.out, rate=len(grey))


if __name__ == "__main__":
    main()
