"""Are the reported pairs of FER2013 the same photograph? Pairs drawn for reading by eye, and what was read.

First `python benchmarks/by_eye.py --sheets FOLDER` writes contact sheets and a table `pairs.csv` with an empty column
`verdict`; write same, similar, different or doubtful there, and run `python benchmarks/by_eye.py --read FOLDER/pairs.csv`."""
import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from audit_peers import before, cpu, pool
from common import HERE, fer2013, machine, save, sheet

from fer_nb.data import FERData
from fer_nb.duplicates import components, find_duplicates


def drawn(
    found: pd.DataFrame,   # pairs of the search
    n: int,                # of each kind
) -> pd.DataFrame:         # the same, with the column `why`
    "Pairs drawn at random and pairs with the lowest scores, of those that are not byte-identical."
    near = found[~found.how.isin(["exact", "similar"])]
    rank = "chance" if "chance" in near else "score"
    lowest = near.sort_values(rank, ascending=rank == "score", kind="stable").head(n)
    return pd.concat([near.sample(min(n, len(near)), random_state=1).assign(why="random"), lowest.assign(why="lowest")])


def leaked(
    ds: FERData,            # both splits
    found: pd.DataFrame,    # pairs
) -> set[int]:              # positions in `valid`
    "Images of PublicTest whose group holds a training image."
    group = pd.Series(components(len(ds), *found.loc[found.how != "similar", ["i", "j"]].to_numpy().T))
    trained = set(group[(ds.df.split == "train").to_numpy()])
    return {k for k in np.flatnonzero(ds.df.split == "valid") if group[k] in trained}


def main() -> None:
    "Draw the pairs, or read the verdicts."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sheets", type=Path, help="folder for contact sheets and pairs.csv")
    parser.add_argument("--found", type=Path, help="pairs that `duplicates.py --found` has written")
    parser.add_argument("--read", type=Path, nargs="*", help="tables with verdicts")
    parser.add_argument("--before", type=Path, help="folder with an earlier version of the package")
    parser.add_argument("--singles", type=Path, help="as for audit_peers.py")
    parser.add_argument("--pairs", type=int, default=100, help="of each kind")
    parser.add_argument("--out", type=Path, default=HERE / "by_eye.json")
    options = parser.parse_args()
    if options.read:
        rows = pd.concat([pd.read_csv(p) for p in options.read])
        counts = pd.crosstab(rows.why, rows.verdict)
        print(counts)
        facts = pd.read_json(options.read[0].with_name("facts.json"), typ="series").to_dict()
        save(options.out, {"settings": facts, "machine": machine(), "counts": counts.reset_index().to_dict("records"),
                           "pairs": rows[["why", "id_i", "id_j", "how", "score", "verdict"]].to_dict("records")})
        return
    options.sheets.mkdir(parents=True, exist_ok=True)
    ds, start = fer2013(0), cpu()
    found = pd.read_csv(options.found) if options.found else find_duplicates(ds)
    facts = {"images": len(ds), "pairs": found.how.value_counts().to_dict()}
    facts |= {} if options.found else {"cpu_seconds": round(cpu() - start, 1)}
    chosen = [drawn(found, options.pairs)]
    leaks = leaked(ds, found)
    facts["leaks"] = len(leaks)
    if options.before:
        old = before(options.before)(ds)
        earlier = leaked(ds, old)
        facts |= {"pairs_before": old.how.value_counts().to_dict(), "leaks_before": len(earlier),
                  "further_leaks": len(leaks - earlier), "lost_leaks": len(earlier - leaks)}
        groups = components(len(ds), old.i, old.j)
        new = found[(groups[found.i] != groups[found.j]) & (found.how != "similar")]
        facts["pairs_between_groups_of_before"] = len(new)
        chosen.append(new.sample(min(options.pairs // 2, len(new)), random_state=2).assign(why="new"))
        groups = components(len(ds), found.i, found.j)
        lost = old[groups[old.i] != groups[old.j]]
        facts["pairs_of_before_that_are_lost"] = len(lost)
        chosen.append(lost.sample(min(options.pairs // 2, len(lost)), random_state=2).assign(why="lost"))
    if "similar" in set(found.how):
        alike = found[found.how == "similar"]
        chosen.append(alike.sample(min(options.pairs // 2, len(alike)), random_state=3).assign(why="similar"))
    singles = pool("FER2013", options.singles, options.before)
    singles = singles.take(np.linspace(0, len(singles) - 1, min(len(singles), 10_000)).astype(int))
    at = {id: k for k, id in enumerate(ds.df.id)}
    place = [at[id] for id in singles.df.id]
    alone = found[found.i.isin(place) & found.j.isin(place) & (found.how != "similar")]
    chosen.append(alone.assign(why="single"))
    facts |= {"single_images": len(singles), "pairs_of_single_images": len(alone)}
    table = pd.concat(chosen, ignore_index=True)
    table = table.assign(number=np.arange(len(table)), id_i=ds.df.id.to_numpy()[table.i], id_j=ds.df.id.to_numpy()[table.j], verdict="")
    for why, part in table.groupby("why", sort=False):
        for k in range(0, len(part), 49):
            sheet(ds.array(), part[k:k + 49], options.sheets / f"{why}{k // 49}.png")
    table.to_csv(options.sheets / "pairs.csv", index=False)
    pd.Series(facts).to_json(options.sheets / "facts.json", indent=1)
    print(facts)


if __name__ == "__main__":
    main()
