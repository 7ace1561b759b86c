"""report.py: results on stdout, all else on stderr, and nothing that steers a terminal."""

import json

import pytest

from pnc_cli.errors import BadInput
from pnc_cli.progress import duration
from pnc_cli.report import Lines, Report, amount, clean, figure, print_error, print_json, table


def test_text_from_files_cannot_steer_a_terminal():
    assert clean("a\x1b[31mb\r\x07\x9b\u202e") == "a\\x1b[31mb\\r\\x07\\x9b\\u202e"
    assert clean("roe deer, é 猫") == "roe deer, é 猫"


def test_results_go_to_stdout_and_notes_to_stderr(capsys):
    report = Report("info")
    report.note("careful\x1b")
    report.result({"a": 1}, "line 1\nline 2\x1b")
    assert capsys.readouterr() == ("line 1\nline 2\\x1b\n", "careful\\x1b\n")


def test_quiet_silences_notes_alone(capsys):
    report = Report("info", quiet=True)
    report.note("careful")
    report.result({}, "result")
    assert capsys.readouterr() == ("result\n", "")


def test_json_is_one_object_with_sorted_keys(capsys):
    Report("info", as_json=True).result({"b": 1, "a": "é"}, "text")
    out = capsys.readouterr().out
    assert json.loads(out) == {"schema": "pnc.info/1", "ok": True, "b": 1, "a": "é"}
    assert out.index('"a"') < out.index('"b"') < out.index('"ok"')


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_never_holds_nan(value):
    with pytest.raises(ValueError):
        print_json({"a": value})


def test_an_error_says_what_to_do_next(capsys):
    print_error(BadInput("x\x1b: broken", hint="mend it"), "info", as_json=True)
    out, err = capsys.readouterr()
    assert json.loads(out) == {
        "schema": "pnc.info/1",
        "ok": False,
        "error": {"code": "bad_input", "message": "x\x1b: broken", "hint": "mend it"},
    }
    assert err == "pnc: error: x\\x1b: broken\n  try: mend it\n"


def test_no_bars_where_there_is_no_terminal(capsys):
    with Report("clone").progress() as progress:
        progress("reading", 1, 2)
    assert capsys.readouterr() == ("", "")


def test_a_table_is_aligned_and_never_cut():
    text = table(["tap", "score"], [["layer1", "0.5"], ["a" * 100, "0.25\x1b"]])
    lines = text.splitlines()
    assert lines[0] == "tap".ljust(100) + "  " + "score".rjust(8)
    assert lines[2] == "layer1".ljust(100) + "  " + "0.5".rjust(8)
    assert lines[3] == "a" * 100 + "  0.25\\x1b"


@pytest.mark.parametrize(
    "value, text", [(0, "0"), (999, "999"), (1234, "1.23k"), (5.6e6, "5.6M"), (2e9, "2G")]
)
def test_amounts_are_short(value, text):
    assert amount(value) == text


@pytest.mark.parametrize("value, text", [(None, "-"), (0.5, "0.500"), (1, "1.000")])
def test_shares_have_three_places(value, text):
    assert figure(value) == text


def test_progress_without_a_terminal_is_a_line_now_and_then():
    """With what is left; none for what takes a moment."""
    clock, said = [0.0], []
    lines = Lines(said.append, now=lambda: clock[0])
    for done in range(0, 11):
        lines("judging", done, 10)
        clock[0] += 4.0
    lines("judging", 0, 2)
    clock[0] += 15.0
    lines("judging", 1, 2)
    lines("quick", 0, 2)
    lines("quick", 1, 2)
    lines("quick", 2, 2)
    assert said == [
        "judging: 3 of 10, about 28 s left",
        "judging: 6 of 10, about 16 s left",
        "judging: 9 of 10, about 4 s left",
        "judging: 1 of 2, about 15 s left",  # it began again
    ]


@pytest.mark.parametrize(
    ("seconds", "said"), [(4.4, "4 s"), (89, "89 s"), (100, "2 min"), (5400, "1.5 h")]
)
def test_durations_are_said_as_people_do(seconds, said):
    assert duration(seconds) == said
