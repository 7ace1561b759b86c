"""Whether a search finds what somebody would who tried positions by hand.

    python -m examples.benchmark.hand_grid cifar10 --of-pair 0.5

makes a clone at each place of a grid laid by hand, within a part of what the whole source would add:
cuts at even depths of the source, each read at the tap that is as deep in the target, with as much
of the module as the budget leaves room for; and the image at coarser maps.  Each is measured on
test images beside the search's own choice.  Rows go to GRID.jsonl, and the table of all to GRID.md.
"""

from __future__ import annotations

import json
from pathlib import Path

from pnc_cli.branch.cost import Amounts
from pnc_cli.network.position import INPUT
from pnc_cli.placement.grid import Grid
from pnc_cli.placement.ranking import worth
from pnc_cli.placement.search import COARSER, Budget, search
from pnc_cli.placement.study import Study
from pnc_cli.plan import Candidate, Place

from .__main__ import HERE
from .clock import Clock
from .methods.cloning import budget_of
from .order import given, parser_of, refined
from .scenario import Variant

KEY = ("scenario", "images", "of_pair", "seed")  # of rows in one table
CUTS = 6  # positions of the source, the image among them


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument(
        "--of-pair", type=float, default=0.5, help="the budget, of the source's cost"
    )
    parser.add_argument(
        "--rows", type=Path, default=HERE / "GRID.jsonl", help="the table lies beside it"
    )
    args = parser.parse_args()
    problem, task, grid = given(args)
    budget = budget_of(Variant("half", of_pair=args.of_pair), task, grid)
    clock = Clock()
    study = Study.of(task, grid, args.seed)
    chosen = search(task, grid, seed=args.seed, budget=budget, study=study).best
    searching = clock.passed().cpu
    for kind, c in [("search", chosen), *(("hand", c) for c in by_hand(study, grid, budget))]:
        clock = Clock()
        average, branch = refined(problem, task, grid, c)
        row = {
            "scenario": args.scenario,
            "images": problem.scenario.images_per_class,
            "of_pair": args.of_pair,
            "seed": args.seed,
            "kind": kind,
            "place": f"{c.tap} -> {c.cut}, {c.kept}",
            "macs": c.macs / grid.target_macs,
            "parameters": c.parameters / task.target.parameters,
            "predicted": worth(c),
            "average": average,
            "branch": branch,
            "seconds": clock.passed().cpu + (searching if kind == "search" else 0.0),
        }
        print(json.dumps(row), flush=True)
        with args.rows.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        write(args.rows)


def by_hand(study: Study, grid: Grid, budget: Budget) -> list[Candidate]:
    """The candidates of the grid, within the budget."""
    room = budget.room(grid, study.task)
    known = {c.place for c in study.score_pairs()}
    cuts = sorted({p.cut for p in known}, key=lambda cut: grid.source.position(cut).depth)
    deepest = grid.source.position(cuts[-1]).depth
    places = []
    for wanted in (deepest * k / CUTS for k in range(CUTS)):
        cut = min(cuts, key=lambda c: abs(grid.source.position(c).depth - wanted))
        depth = grid.source.position(cut).depth
        taps = [p for p in known if p.cut == cut]
        at = min(taps, key=lambda p: (abs(grid.tap(p).depth - depth), p))
        places.append(study.largest(at, room))
    for resolution in COARSER:
        place = Place(INPUT, INPUT, resolution=resolution)
        if study.reads(place):
            places.append(study.largest(place, room))
    scored = study.score_places(dict.fromkeys(places))
    return [c for c in scored if Amounts.of(c).within(room)]


def write(rows: Path) -> None:
    """GRID.md from all rows."""
    found = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    groups: dict[tuple, list[dict]] = {}
    for row in found:
        groups.setdefault(tuple(row[k] for k in KEY), []).append(row)
    lines = [
        "# The search's choice beside a grid laid by hand",
        "",
        "`python -m examples.benchmark.hand_grid SCENARIO --of-pair PART` (what the grid is stands there). Averages "
        "are of test images; *predicted* is what the search said of the place before it was refined. MACs and "
        "parameters are beside the target's.",
    ]
    for key, rows_of_it in groups.items():
        ours = next(r for r in rows_of_it if r["kind"] == "search")
        by_place = {r["place"]: r for r in rows_of_it}
        best = max(r["average"] for r in rows_of_it)
        lines += [
            "",
            f"## {key[0]}, {key[1]} images a class, {key[2]:g} of the source's cost, seed {key[3]}",
            "",
            f"The search's choice: {ours['average']:.3f}; the best of all: {best:.3f}.",
            "",
            "| place | MACs | parameters | predicted | average | branch | CPU s |",
            "|---|---|---|---|---|---|---|",
        ]
        for r in by_place.values():
            star = "**" if r["place"] == ours["place"] else ""
            lines.append(
                f"| {star}{r['place']}{star} | {r['macs']:.2f} | {r['parameters']:.2f} | {r['predicted']:.3f} "
                f"| {r['average']:.3f} | {r['branch']:.3f} | {r['seconds']:.0f} |"
            )
    (rows.parent / "GRID.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
