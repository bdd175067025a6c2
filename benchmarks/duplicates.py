"""The search for duplicates by its stages, beside the bare products that a comparison of all pairs cannot do without."""
from pathlib import Path

import torch
from audit_peers import cpu
from common import arguments, fer2013, report

import fer_nb.duplicates
from fer_nb.data import FERData
from fer_nb.duplicates import DuplicateSearch, find_duplicates, grey_thumbs


def in_tiles(
    views: list[torch.Tensor],  # unit vectors (M, D) of each view
    block: int,                 # rows and columns of a tile
) -> None:
    "All products of the views with the first, in tiles that stay in the cache, into one buffer."
    buffer, vectors = torch.empty(block * block), views[0]
    for top in range(0, len(vectors), block):
        for left in range(0, len(vectors), block):
            w = vectors[left:left + block]
            for view in views:
                q = view[top:top + block]
                torch.mm(q, w.T, out=buffer[:len(q) * len(w)].view(len(q), len(w)))


def distinct(
    ds: FERData,      # the dataset
) -> torch.Tensor:    # uint8 (M, 48, 48)
    "The thumbnails of the different pictures."
    thumbs = grey_thumbs(ds)
    return thumbs[sorted({image.tobytes(): k for k, image in reversed(list(enumerate(ds.array())))}.values())]


def main() -> None:
    "Run the benchmark: processor time, one run of each stage a repeat."
    parser = arguments("duplicates", __doc__, 0, 1)
    parser.add_argument("--found", type=Path, help="file for the pairs")
    parser.add_argument("--cells", action="store_true", help="search by cells too, and count what that loses")
    options = parser.parse_args()
    ds, search, times = fer2013(options.images), DuplicateSearch(), {}
    thumbs, kept = distinct(ds), {}

    def timed(name: str, what: object) -> None:
        start = cpu()
        kept[name] = what()
        times.setdefault(name, []).append(cpu() - start)

    for _ in range(options.repeats):
        timed("find_duplicates", lambda: find_duplicates(ds, search))
        if options.found:
            kept["find_duplicates"].to_csv(options.found, index=False)
        timed("descriptions (views)", lambda: search.views(thumbs))
        views = kept["descriptions (views)"][0]
        timed("bare products of the views, tiles", lambda: in_tiles(views, search.block))
        timed("find_duplicates, exact only", lambda: find_duplicates(ds, None))
    found = kept["find_duplicates"]
    settings = {"data": ds.name, "images": len(ds), "distinct": len(thumbs), "block": search.block, "seconds": "of the processor",
                "views": len(views), "numbers": views[0].shape[1], "repeats": options.repeats,
                "pairs": found.how.value_counts().sort_index().to_dict()}
    if options.cells:
        fer_nb.duplicates.EXHAUSTIVE = 0
        there, cells = (set(zip(t.i, t.j)) for t in (x[x.how != "similar"] for x in (found, find_duplicates(ds, search))))
        settings["by cells"] = {"lost": len(there - cells), "further": len(cells - there)}
    base = "bare products of the views, tiles"
    report(times, {name: base for name in times if name != base}, settings, options.out)


if __name__ == "__main__":
    main()
