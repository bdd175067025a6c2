"""The search for twins beside the bare matrix products that it cannot do without."""
import torch
import torch.nn.functional as F
from common import arguments, fer2013, report, take_turns

from fer_nb.audit import BLANK_STD, TwinSearch, find_twins, grey_thumbs, similar_pairs, unit_vectors
from fer_nb.data import FERData


def coarse_vectors(
    ds: FERData,  # the dataset
) -> tuple[torch.Tensor, torch.Tensor]:  # unit vectors (M, 144) of the distinct pictures, and of their mirror images
    "What `find_twins` multiplies."
    first = {image.tobytes(): k for k, image in reversed(list(enumerate(ds.array())))}
    thumbs = grey_thumbs(ds)[sorted(first.values())].float()
    thumbs = thumbs[thumbs.flatten(1).std(1) > BLANK_STD]
    coarse = F.avg_pool2d(F.avg_pool2d(thumbs[:, None], 2), 2)[:, 0]
    return unit_vectors(coarse), unit_vectors(coarse.flip(2))


def main() -> None:
    "Run the benchmark."
    options = arguments("duplicates", __doc__, 0, 3).parse_args()
    ds, search = fer2013(options.images), TwinSearch()
    vectors, mirrored = coarse_vectors(ds)

    def products() -> None:
        for queries in (vectors, mirrored):
            for start in range(0, len(queries), search.block):
                queries[start:start + search.block] @ vectors[start:].T

    def proposals() -> None:
        for queries in (vectors, mirrored):
            similar_pairs(queries, vectors, search.candidate, search.block)

    found = {}

    def twins() -> None:
        found["pairs"] = find_twins(ds, search)

    def exact() -> None:
        find_twins(ds, None)

    times = take_turns({"bare products": products, "proposals (similar_pairs)": proposals, "find_twins": twins,
                        "find_twins, exact only": exact}, options.repeats)
    settings = {"data": ds.name, "images": len(ds), "distinct": len(vectors), "block": search.block,
                "repeats": options.repeats, "pairs": found["pairs"].how.value_counts().sort_index().to_dict()}
    report(times, {name: "bare products" for name in list(times)[1:]}, settings, options.out)


if __name__ == "__main__":
    main()
