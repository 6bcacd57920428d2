"""The newer families of operations beside their peers, float32: python bench/families.py [--quick] [--families entropy ...]

Every peer has a process of its own; they take turns, and the table has medians over the rounds, in milliseconds, and how
many times sumexp's each is. harness/formulas.py has the cells. Results are compared with sumexp's before anything is timed.
"""

import argparse
import json
import sys

from harness import formulas, rounds, stats, tables


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small shapes")
    parser.add_argument("--families", nargs="*", default=list(formulas.CELLS), choices=list(formulas.CELLS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", help="a file for the seconds of every round")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    records, rows, failed = [], [], []
    with rounds.Fleet(options.threads, note=lambda text: print(text, file=sys.stderr)) as fleet:
        for family in options.families:
            full, small, _, peers = formulas.CELLS[family]
            asked = ["formula:" + name for name in peers]
            ready = fleet.prepare(asked, "formula", family=family, quick=options.quick)
            found = {name[8:]: seconds for name, seconds in fleet.turns(ready, options.rounds, 1).items()}
            failed += [f"{family}: {name[8:]}" for name in asked if name[8:] not in found]
            shape = "x".join(map(str, small if options.quick else full))
            records += [{"family": family, "shape": shape, "peer": p, "seconds": s} for p, s in found.items()]
            ours = stats.median(found["sumexp"]) if "sumexp" in found else float("nan")
            for name, seconds in found.items():
                took = stats.median(seconds)
                rows.append((family, shape, name, f"{took * 1e3:.4g}", tables.figure(took / ours)))
    show = tables.markdown if options.markdown else tables.aligned
    print(show(("family", "shape", "peer", "ms", "times sumexp's"), rows))
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"threads": options.threads, "quick": options.quick, "records": records}, file, indent=1)
    if failed:
        raise SystemExit("not measured: " + ", ".join(failed))


if __name__ == "__main__":
    main()
