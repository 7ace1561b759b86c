"""How pnc_cli is built: who may import whom, what knows no torch, what prints, and how long it is.

Imports are read from the source, at module level and inside functions alike.
"""

import ast
import io
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HOUSE = ROOT / "pnc_cli"

# From the top of the house to its ground: a module imports from rows below its own, and from its own
# folder.  Whoever imports ``pnc_cli`` itself gets all of it, but for ``__version__``, which is free.
ROWS = [
    ["__init__", "__main__", "convert"],
    ["cli"],
    ["commands"],
    ["report"],  # what is printed: of no use below the commands
    ["api"],
    ["given"],
    ["chosen"],
    ["evaluation", "plot", "remarks"],
    ["placement"],
    ["branch"],
    ["channels"],
    ["network"],
    ["data"],
    ["files"],
    ["manifest"],
    ["plan"],
    ["schema"],
    ["gates", "streams"],
    ["allocator", "errors", "limits", "progress"],
]
ROW = {room: k for k, row in enumerate(ROWS) for room in row}
HEAVY = {"torch", "timm", "numpy"}  # not for files: it is read and written at disk speed
SILENT = ["network", "channels", "branch", "placement", "files"]
LINES_OF_FUNCTION, LINES_OF_FILE, UNFORMATTED = 60, 350, 10

SOURCES = sorted(HOUSE.rglob("*.py"))
MODULES = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in SOURCES}
PACKAGES = {".".join(p.parent.relative_to(ROOT).parts) for p in SOURCES if p.name == "__init__.py"}


def imported(tree, module):
    """The modules that ``module`` imports anywhere in ``tree``, and those of pnc_cli that it takes
    names from."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            here = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*here, *filter(None, [node.module])])
            for alias in node.names:
                name = f"{base}.{alias.name}"
                if name != "pnc_cli.__version__":
                    yield name if name in MODULES or name in PACKAGES else base


def room_of(module):
    """``pnc_cli.files.header`` is in the room ``files``; ``pnc_cli`` is its ``__init__``."""
    return [*module.split("."), "__init__"][1]


def wrong_imports(module, text):
    """What ``module`` with the source ``text`` imports and may not."""
    own, path = room_of(module), module.replace(".", "/") + ".py"
    if own not in ROW:
        return [f"{path} stands in no row of {Path(__file__).name}"]
    ours = {n for n in imported(ast.parse(text), module) if n.split(".")[0] == "pnc_cli"}
    wrong = []
    for name in sorted(n for n in ours if room_of(n) != own):
        row = ROW.get(room_of(name))
        if row is None:
            wrong.append(f"{path} imports {name}, which stands in no row of {Path(__file__).name}")
        elif row <= ROW[own]:
            where = "beside" if row == ROW[own] else "above"
            wrong.append(f"{path} imports {name}, which is {where} it")
    return wrong


def test_imports_point_down_the_house():
    wrong = [w for module, path in MODULES.items() for w in wrong_imports(module, path.read_text())]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "module, text, found",
    [
        ("pnc_cli.files.x", "from ..network.load import load_network", "pnc_cli.network.load"),
        ("pnc_cli.files.x", "import pnc_cli.network.load", "pnc_cli.network.load"),
        ("pnc_cli.files.x", "from .. import data", "pnc_cli.data"),
        (
            "pnc_cli.branch.x",
            "def f():\n    from ..placement import search",
            "pnc_cli.placement.search",
        ),
        ("pnc_cli.network.x", "from .. import load", "pnc_cli"),
        ("pnc_cli.network.x", "import pnc_cli", "pnc_cli"),
        ("pnc_cli.api", "from .report import Report", "pnc_cli.report"),
        ("pnc_cli.errors", "from .manifest import Plan", "pnc_cli.manifest"),
    ],
)
def test_an_import_that_points_up_is_found(module, text, found):
    path = module.replace(".", "/") + ".py"
    assert wrong_imports(module, text) == [f"{path} imports {found}, which is above it"]


def test_rooms_of_one_row_and_rooms_of_none_are_found():
    [beside] = wrong_imports("pnc_cli.plot", "from .evaluation import METRICS")
    assert beside == "pnc_cli/plot.py imports pnc_cli.evaluation, which is beside it"
    [attic] = wrong_imports("pnc_cli.attic", "")
    assert "pnc_cli/attic.py stands in no row" in attic


@pytest.mark.parametrize(
    "module, text",
    [
        (
            "pnc_cli.files.x",
            "from .. import __version__\nfrom ..errors import BadInput\nimport json",
        ),
        ("pnc_cli.files.x", "from . import header\nfrom .header import read_header"),
        ("pnc_cli.cli", "from .commands.clone import clone\nfrom .report import print_error"),
        ("pnc_cli.branch.x", "from ..channels import prune\nfrom timm import data"),
    ],
)
def test_an_import_that_points_down_is_not(module, text):
    assert wrong_imports(module, text) == []


def test_files_know_neither_torch_nor_timm_nor_numpy():
    low = [m for m in MODULES if room_of(m) in ("files", "manifest", "errors")]
    assert len(low) > 10
    names = [m.removesuffix(".__init__") for m in low]
    code = f"import sys, {', '.join(names)}; print(*({HEAVY!r} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (ran.stdout.strip(), ran.stderr) == ("", "")
    late = [
        f"{m} imports {n}"
        for m in low
        for n in imported(ast.parse(MODULES[m].read_text()), m)
        if n.split(".")[0] in HEAVY
    ]
    assert not late, late


def printing(tree):
    """Lines of ``tree`` that print, or import what prints, but for its own ``main``: a script."""
    tree.body = [n for n in tree.body if getattr(n, "name", "") != "main"]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print":
            yield node.lineno
        elif isinstance(node, ast.Attribute) and node.attr in ("stdout", "stderr"):
            yield node.lineno
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module]
            if {(n or "").split(".")[0] for n in names} & {"typer", "rich"}:
                yield node.lineno


def test_what_computes_prints_nothing():
    loud = [
        f"{path.relative_to(ROOT)}:{line} prints"
        for module, path in MODULES.items()
        if room_of(module) in SILENT
        for line in printing(ast.parse(path.read_text()))
    ]
    assert not loud, "\n".join(loud)


@pytest.mark.parametrize(
    "text, lines",
    [
        ("def f():\n    print(1)", [2]),
        ("import rich.table", [1]),
        ("from typer import echo", [1]),
        ("import sys\nsys.stderr.write('')", [2]),
        ("from . import header\nprinted = pprint(1)", []),
        ("def main():\n    print(1)", []),
        ("class C:\n    def main(self):\n        print(1)", [3]),
    ],
)
def test_printing_is_found(text, lines):
    assert list(printing(ast.parse(text))) == lines


def first_statement(function):
    """The first one behind arguments and docstring, which are as long as what they say."""
    documented = ast.get_docstring(function) is not None and len(function.body) > 1
    return function.body[documented]


def test_a_function_is_one_screen():
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name} has {lines} lines"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and (lines := node.end_lineno - first_statement(node).lineno + 1) > LINES_OF_FUNCTION
    ]
    assert not long, "\n".join(long)


def documentation(tree):
    """Lines of docstrings: they are as long as what they say."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, kinds) and ast.get_docstring(node) is not None:
            yield node.body[0].end_lineno - node.body[0].lineno + 1


def test_a_file_is_one_sitting():
    counts = {
        p.relative_to(ROOT): len(p.read_text().splitlines())
        - sum(documentation(ast.parse(p.read_text())))
        for p in SOURCES
    }
    long = [f"{p} has {count} lines" for p, count in counts.items() if count > LINES_OF_FILE]
    assert not long, "\n".join(long)


def test_the_formatter_is_told_to_skip_few_tables():
    skips = [
        f"{path.relative_to(ROOT)}:{token.start[0]}"
        for folder in ("pnc_cli", "tests", "examples")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
        if token.type == tokenize.COMMENT and token.string.startswith(("# fmt: skip", "# fmt: off"))
    ]
    assert len(skips) <= UNFORMATTED, "\n".join(skips)
