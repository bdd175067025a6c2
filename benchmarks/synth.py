"""Synthetic faces a second: the renderer alone, whole clean sets, and sets with planted defects."""
from common import arguments, report, take_turns

from fer_nb.core import EMOTIONS
from fer_nb.synth import make_faces, render_faces, sample_aus


def main() -> None:
    "Run the benchmark."
    parser = arguments("synth", __doc__, 1000, 5)
    parser.add_argument("--size", type=int, default=48, help="side of the faces in pixels (default 48)")
    options = parser.parse_args()
    n, size = options.images, options.size
    labels = [EMOTIONS[k % len(EMOTIONS)] for k in range(n)]

    def render() -> None:
        render_faces(sample_aus(labels, range(n), 0)[0], range(n), range(n), 0, size)

    def clean() -> None:
        make_faces(n, seed=0, defects=None, size=size)

    def planted() -> None:
        make_faces(n, seed=0, size=size)

    times = take_turns({"render_faces": render, "make_faces, clean": clean, "make_faces, defects": planted},
                       options.repeats)
    report(times, {"make_faces, clean": "render_faces", "make_faces, defects": "render_faces"},
           {"images": n, "side": size, "repeats": options.repeats}, options.out, rate=n)


if __name__ == "__main__":
    main()
