"""What a fresh installation must do: python tests/smoke.py [TABLE.csv], in its environment; `.ci/smoke` makes one.

Every module is imported, and `fer-nb predict` reads a public-domain portrait (scikit-image's astronaut, a smiling woman) with
the weights of the package. With a table, a row says which versions did it.
"""
import csv
import importlib
import json
import pkgutil
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

SHOWN = ("torch", "torchvision", "fastai", "timm", "numpy", "pandas", "mediapipe")


def every_module() -> int:  # their number
    "Import all of fer_nb, from an installed copy. Raises `AssertionError` where it is the checkout."
    import fer_nb
    home = Path(fer_nb.__file__).resolve().parent
    assert home != Path(__file__).resolve().parents[1] / "fer_nb", f"{home}: the checkout, not an installation"
    names = [m.name for m in pkgutil.iter_modules(fer_nb.__path__) if not m.name.startswith("_")]
    for name in names:
        importlib.import_module(f"fer_nb.{name}")
    return len(names)


def portrait(
    folder: Path,  # for the picture
) -> dict:         # what the command says of its face
    "Read the portrait with the command. Raises `AssertionError` unless it finds one face, where it is, and reads a smile."
    from PIL import Image
    from skimage.data import astronaut
    Image.fromarray(astronaut()).save(folder / "portrait.png")
    command = Path(sys.executable).with_name("fer-nb")
    done = subprocess.run([command, "predict", "portrait.png", "--out", "json"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    face, = json.loads(done.stdout)["faces"]
    x, y, w, h = face["box"]
    assert x < 225 < x + w and y < 115 < y + h, face["box"]  # the tip of her nose
    assert face["emotion"] == "happy" and abs(sum(face["probs"].values()) - 1) < 1e-3, face
    return face


def main() -> None:
    "Do both, and print or append what did it."
    face = portrait(Path.cwd())
    row = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}", "fer-nb": version("fer-nb"),
           **{p: version(p) for p in SHOWN}, "modules imported": every_module(), "portrait": f"happy {face['probs']['happy']:.3f}"}
    print(*(f"{k} {v}" for k, v in row.items()), sep=", ")
    for table in map(Path, sys.argv[1:]):
        new = not table.exists()
        with table.open("a", newline="") as f:
            writer = csv.DictWriter(f, list(row), lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(row)


if __name__ == "__main__":
    main()
