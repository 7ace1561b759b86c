"""A long walk that can be broken off: one line of JSON for each thing done."""

from __future__ import annotations

import json
import multiprocessing
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

import torch


def walk(
    file: Path, key: str, wanted: Iterable[str], work: Callable[[str], object], jobs: int
) -> list[dict]:
    """The rows of ``file`` once it holds ``work`` of each of ``wanted``, sorted by ``key``.

    ``work`` returns a dataclass, and runs in ``jobs`` processes that are replaced now and then.
    """
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {row[key] for row in rows}
    todo = [w for w in wanted if w not in done]
    context = multiprocessing.get_context("forkserver")
    with file.open("a") as f, context.Pool(jobs, torch.set_num_threads, (1,), 50) as pool:
        for k, result in enumerate(pool.imap_unordered(work, todo), start=1):
            row = asdict(result)
            rows.append(row)
            f.write(_line(row))
            f.flush()
            print(f"{k}/{len(todo)} {row[key]}: {_outcome(row)}", file=sys.stderr)
    rows.sort(key=lambda row: row[key])
    file.write_text("".join(map(_line, rows)))
    return rows


def _line(row: dict) -> str:
    return json.dumps(row, separators=(",", ":")) + "\n"


def _outcome(row: dict) -> str:
    if row["target"] == row["source"] == "yes":
        return "target and source"
    return f"target: {row['target']}; source: {row['source']}"
