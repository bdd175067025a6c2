"""The search for duplicates by its stages, beside the bare products that a comparison of all pairs cannot do without."""
from pathlib import Path

import torch
<<<<<<< HEAD
from audit_peers import cpu
from common import arguments, fer2013, report

from fer_nb.data import FERData
from fer_nb.duplicates import DuplicateSearch, find_duplicates, grey_thumbs
=======
from common import arguments, fer2013, report, take_turns

from fer_nb.data import FERData
from fer_nb.duplicates import BLANK_STD, DuplicateSearch, find_duplicates, grey_thumbs, nearest_pairs


def distinct(
    ds: FERData,  # the dataset
) -> torch.Tensor:  # uint8 (M, 48, 48): the distinct pictures that are not blank
    "What is compared."
    first = {image.tobytes(): k for k, image in reversed(list(enumerate(ds.array())))}
    thumbs = grey_thumbs(ds)[sorted(first.values())]
    return thumbs[thumbs.float().flatten(1).std(1) > BLANK_STD]


def in_rows(
    queries: torch.Tensor,  # unit vectors (M, D)
    vectors: torch.Tensor,  # unit vectors (M, D)
    block: int = 2048,      # rows at once
) -> None:
    "All products, a band of rows at a time."
    for start in range(0, len(queries), block):
        queries[start:start + block] @ vectors.T
>>>>>>> h-a


def in_tiles(
    views: list[torch.Tensor],  # unit vectors (M, D) of each view
    block: int,                 # rows and columns of a tile
) -> None:
<<<<<<< HEAD
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
    options = parser.parse_args()
    ds, search, times = fer2013(options.images), DuplicateSearch(), {}
    thumbs, kept = distinct(ds), {}

    def timed(name: str, what: object) -> None:
        start = cpu()
        kept[name] = what()
        times.setdefault(name, []).append(cpu() - start)

    for _ in range(options.repeats):
        timed("descriptions (views)", lambda: search.views(thumbs))
        views = kept["descriptions (views)"][0]
        timed("bare products of the views, tiles", lambda: in_tiles(views, search.block))
        timed("find_duplicates, exact only", lambda: find_duplicates(ds, None))
        timed("find_duplicates", lambda: find_duplicates(ds, search))
    found = kept["find_duplicates"]
    if options.found:
        found.to_csv(options.found, index=False)
    settings = {"data": ds.name, "images": len(ds), "distinct": len(thumbs), "block": search.block, "seconds": "of the processor",
                "views": len(views), "numbers": views[0].shape[1], "repeats": options.repeats,
                "pairs": found.how.value_counts().sort_index().to_dict()}
    base = "bare products of the views, tiles"
=======
    "The same products in tiles that stay in the cache, into one buffer."
    buffer = torch.empty(block * block, dtype=vectors.dtype)
    for top in range(0, len(queries), block):
        for left in range(0, len(vectors), block):
            q, w = queries[top:top + block], vectors[left:left + block]
            torch.mm(q, w.T, out=buffer[:len(q) * len(w)].view(len(q), len(w)))


def main() -> None:
    "Run the benchmark."
    options = arguments("duplicates", __doc__, 0, 3).parse_args()
    ds, search = fer2013(options.images), DuplicateSearch()
    vectors, ways = search.views(distinct(ds))
    found = {}

    def rows() -> None:
        for view in vectors:
            in_rows(view, vectors[0])

    def tiles() -> None:
        for view in vectors:
            in_tiles(view, vectors[0], search.block)

    def candidates() -> None:
        for top in range(0, len(vectors[0]), search.block):
            nearest_pairs(vectors, vectors[0], search.least, search.candidates, search.block, top)

    def duplicates() -> None:
        found["pairs"] = find_duplicates(ds, search)

    def exact() -> None:
        find_duplicates(ds, None)

    times = take_turns({
        "bare products, bands of rows": rows, "bare products, tiles": tiles, "candidates (nearest_pairs)": candidates,
        "find_duplicates": duplicates, "find_duplicates, exact only": exact}, options.repeats)
    settings = {"data": ds.name, "images": len(ds), "distinct": len(vectors[0]), "views": len(ways), "block": search.block,
                "repeats": options.repeats, "pairs": found["pairs"].how.value_counts().sort_index().to_dict()}
    base = "bare products, tiles"
>>>>>>> h-a
    report(times, {name: base for name in times if name != base}, settings, options.out)


if __name__ == "__main__":
    main()
