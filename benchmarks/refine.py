"""Faces found a second: one process against several workers, the start of the workers included, and the crops alone."""
import numpy as np

from fer_nb.faces import FaceRefiner


def main() -> None:
    "Run the benchmark."
    from common import arguments, fer2013, report, take_turns  # not above: workers import this file, common torch

    parser = arguments("refine", __doc__, 1500, 3)
    parser.add_argument("--workers", type=int, default=2, help="processes to compare with one (default 2)")
    options = parser.parse_args()
    ds, refiner = fer2013(options.images), FaceRefiner()
    results = {}

    def find(workers: int) -> None:
        results[workers] = refiner.find(ds, workers, cache=False)

    def crops() -> None:
        for i in np.flatnonzero(results[1][0].faces):
            refiner._crop(ds.image(i), results[1][1][i])

    find(1)
    many = f"find, {options.workers} workers"
    times = take_turns({many: lambda: find(options.workers), "find, 1 worker": lambda: find(1), "crops alone": crops},
                       options.repeats)
    for alone, together in zip(results[1][1:], results[options.workers][1:]):
        np.testing.assert_array_equal(alone, together)
    report({k: times[k] for k in ("find, 1 worker", many, "crops alone")},
           {"find, 1 worker": many, "crops alone": "find, 1 worker"},
           {"data": ds.name, "images": len(ds), "workers": options.workers, "repeats": options.repeats,
            "found": round(float((results[1][0].faces > 0).mean()), 4)}, options.out, rate=len(ds))


if __name__ == "__main__":
    main()
