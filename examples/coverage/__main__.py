"""``python -m examples.coverage``: what pnc can do with each architecture of timm's registry.

Walks all names on shapes alone, runs one small network of each of timm's model files as target and
as source, and writes ``names.jsonl``, ``families.jsonl`` and ``TABLE.md``.  What is in the files
already is not done again; ``--fresh`` begins anew.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.coverage", description=__doc__)
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time (default 1)")
    parser.add_argument("--out", type=Path, default=HERE, help="the folder for the three files")
    parser.add_argument("--fresh", action="store_true", help="forget what the files hold")
    parser.add_argument("names", nargs="*", help="only these names or families (default: all)")
    args = parser.parse_args()

    from .family import Family, run_family
    from .structure import Structure, describe, families
    from .table import table
    from .walk import walk

    args.out.mkdir(parents=True, exist_ok=True)
    files = {n: args.out / f"{n}.jsonl" for n in ("names", "families")}
    if args.fresh:
        for file in files.values():
            file.unlink(missing_ok=True)
    wanted = [n for n, f in families().items() if not args.names or {n, f} & {*args.names}]
    names = walk(files["names"], "name", wanted, describe, args.jobs)
    structures = [Structure(**row) for row in names]
    run = partial(run_family, structures)
    modules = sorted({families()[n] for n in wanted})
    rows = [Family(**row) for row in walk(files["families"], "family", modules, run, args.jobs)]
    (args.out / "TABLE.md").write_text(table(structures, rows))


if __name__ == "__main__":
    main()
