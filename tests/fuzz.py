"""Coverage-guided fuzzing of the readers with atheris, by hand: python tests/fuzz.py KIND [-max_total_time=60]

KIND is a function of test_hostile.py that makes a valid file: fer2013, votes, affectnet_arrays, ... Atheris is no
dependency (`pip install atheris`, which has wheels for some versions of Python only). A crash is any error that is not
one of ours; its input is left in the working folder. The ordinary tests mutate the same files with hypothesis.
"""
import sys
import tempfile
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["fer_nb", "csv"]):
    import test_hostile
from fer_nb.core import FERError

warnings.simplefilter("ignore")
folder = Path(tempfile.mkdtemp())
path, read = getattr(test_hostile, sys.argv[1])(folder / "files")
(folder / "corpus").mkdir()
(folder / "corpus/valid").write_bytes(path.read_bytes())


def one(data: bytes) -> None:
    "Read these bytes in the place of the valid file."
    path.write_bytes(data)
    try:
        read(path)
    except FERError:
        pass


atheris.Setup([sys.argv[0], *sys.argv[2:], str(folder / "corpus")], one)
atheris.Fuzz()
