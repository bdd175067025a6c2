"""The search for duplicates beside the bare matrix products that a search over all pairs cannot do without."""
import torch
import torch.nn.functional as F
from common import arguments, fer2013, report, take_turns

from fer_nb.data import FERData
from fer_nb.duplicates import BLANK_STD, DuplicateSearch, find_duplicates, grey_thumbs, similar_pairs, unit_vectors, whitened


def coarse_vectors(
    ds: FERData,  # the dataset
) -> tuple[torch.Tensor, torch.Tensor]:  # unit vectors (M, 144) of the distinct pictures, and of their mirror images
    "The 12 × 12 averages of what is compared."
    first = {image.tobytes(): k for k, image in reversed(list(enumerate(ds.array())))}
    thumbs = grey_thumbs(ds)[sorted(first.values())].float()
    thumbs = thumbs[thumbs.flatten(1).std(1) > BLANK_STD]
    coarse = F.avg_pool2d(thumbs, 4)
    return unit_vectors(coarse), unit_vectors(coarse.flip(2))


def in_rows(
    queries: torch.Tensor,  # unit vectors (M, D)
    vectors: torch.Tensor,  # unit vectors (M, D)
    block: int = 2048,      # rows at once
) -> None:
    "All products on and above the diagonal, a band of rows at a time."
    for start in range(0, len(queries), block):
        queries[start:start + block] @ vectors[start:].T


def in_tiles(
    queries: torch.Tensor,  # unit vectors (M, D)
    vectors: torch.Tensor,  # unit vectors (M, D)
    block: int,             # rows and columns of a tile
) -> None:
    "The same products in tiles that stay in the cache, into one buffer."
    buffer = torch.empty(block * block, dtype=vectors.dtype)
    for top in range(0, len(queries), block):
        for left in range(top, len(vectors), block):
            q, w = queries[top:top + block], vectors[left:left + block]
            torch.mm(q, w.T, out=buffer[:len(q) * len(w)].view(len(q), len(w)))


def main() -> None:
    "Run the benchmark."
    options = arguments("duplicates", __doc__, 0, 3).parse_args()
    ds, search = fer2013(options.images), DuplicateSearch()
    coarse, turned = coarse_vectors(ds)
    vectors, mirrored = whitened(coarse, turned)
    found = {}

    def rows() -> None:
        in_rows(coarse, coarse), in_rows(turned, coarse)

    def tiles(a: torch.Tensor, b: torch.Tensor) -> None:
        in_tiles(a, a, search.block), in_tiles(b, a, search.block)

    def proposals() -> None:
        for queries in (vectors, mirrored):
            similar_pairs(queries, vectors, search.candidate, search.block)

    def duplicates() -> None:
        found["pairs"] = find_duplicates(ds, search)

    def exact() -> None:
        find_duplicates(ds, None)

    half, half_mirrored = vectors.bfloat16(), mirrored.bfloat16()
    times = take_turns({
        "bare products, 144 numbers, bands of rows": rows, "bare products, 144 numbers, tiles": lambda: tiles(coarse, turned),
        "bare products, 64 numbers, tiles": lambda: tiles(vectors, mirrored),
        "bare products, 64 numbers, tiles, bfloat16": lambda: tiles(half, half_mirrored),
        "proposals (similar_pairs)": proposals, "find_duplicates": duplicates, "find_duplicates, exact only": exact}, options.repeats)
    settings = {"data": ds.name, "images": len(ds), "distinct": len(vectors), "block": search.block,
                "repeats": options.repeats, "pairs": found["pairs"].how.value_counts().sort_index().to_dict()}
    base = "bare products, 144 numbers, tiles"
    report(times, {name: base for name in times if name != base}, settings, options.out)


if __name__ == "__main__":
    main()
