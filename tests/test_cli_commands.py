"""Commands that need no peer: help, usage errors, patches and plans."""

import io
import json
import os
import sys
from pathlib import Path

import click
import pytest

from dwcp_fast import delta
from dwcp_fast.cli.program import program, run
from dwcp_fast.cli.settings import members_of

COMMANDS = members_of(program)
MEMBERS = [(name, member) for name, group in COMMANDS.items() for member in members_of(group)]


def test_every_command_is_found_by_its_own_name() -> None:
    assert {name: command.name for name, command in COMMANDS.items()} == {name: name for name in COMMANDS}


@pytest.mark.parametrize("name", [(), *((name,) for name in COMMANDS), *MEMBERS])
def test_help_begins_with_an_example(name: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*name, "-h"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines[0].startswith("Usage:")
    assert lines[1] == "Example:" and lines[2].startswith(" ".join(["dwcp", *name]))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["send", "x"], "--to"),
        (["send", "--to", "h:1"], "PATH"),
        (["send", "x", "--to", "h:1", "--bwlimit", "500"], "500Mbps"),
        (["send", "x", "--to", "h:1", "--bwlimit", "08:00-18:00=5"], "500Mbps"),
        (["send", "x", "--to", "h:1", "--congestion", "BBR"], "congestion"),
        (["send", "x", "--to", "h:1", "--from", "host"], "host"),
        (["send", "x", "--to", "h:1", "--streams", "0"], "1 to 256"),
        (["send", "x", "--to", "h:1", "--codec", "brotli"], "brotli"),
        (["send", "x", "--to", "h:1", "--block-size", "1000"], "power of two|65536"),
        (["send", "x", "--to", "h:1", "--insecure", "--cert", "c"], "contradict"),
        (["send", "x", "--to", "h:1", "--cert", "c"], "--key"),
        (["send", "x", "--to", "h:1", "--base", "none", "--base", "y"], "--base"),
        (["send", "x", "--to", "h:1", "--base", "missing"], "missing"),
        (["recv", "--into", "x", "--dict-dir", "missing"], "missing"),
        (["recv", "--into", "x", "--allow-v1", "nonsense"], "nonsense"),
        (["recv"], "--into"),
        (["delta", "diff", "a", "b", "-o", "missing/p"], "missing is no directory"),
        (["serve", ".", "--clients", "0"], "any"),
        (["pull", "h:1"], "DIR"),
        (["pull", "h:1", "x", "--streams", "0"], "1 to 256"),
        (["delta", "apply", "p", "--base", "b"], "--in-place"),
        (["delta", "apply", "p", "--base", "b", "-o", "n", "--in-place"], "--in-place"),
        (["frobnicate"], "frobnicate"),
    ],
)
def test_wrong_usage_is_exit_code_2_and_names_the_option(
    arguments: list[str],
    named: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    told = capsys.readouterr()
    assert told.out == "" and any(word in told.err for word in named.split("|"))
    first, *more = told.err.splitlines()
    assert first.startswith("error: ") and all(line.startswith("hint: ") for line in more)


def test_wrong_usage_is_one_object_for_a_program(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in (
        ["send", "--json"],
        ["send", "x", "--to", "h:1", "--json", "--frobnicate"],
        ["serve", ".", "--json"],
    ):
        assert run(wrong) == 2
        told = json.loads(capsys.readouterr().out)
        assert (told["type"], told["code"], told["exit_code"]) == ("error", "usage", 2)


def test_a_source_that_is_missing_is_exit_code_3(capsys: pytest.CaptureFixture[str]) -> None:
    commands = (
        ["serve"],
        ["send", "--to=h:1"],
        ["snap", "info"],
        ["delta", "recover"],
        ["dict", "train", "-od"],
    )
    for command in commands:
        assert run([*command, "missing"]) == 3, command
        assert "missing" in capsys.readouterr().err


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe, out = str(tmp_path / "pipe"), str(tmp_path / "out")
    os.mkfifo(pipe)
    for command in (
        ["snap", "pack", pipe, "-o", out],
        ["snap", "info", pipe],
        ["delta", "diff", pipe, pipe, "-o", out],
    ):
        assert run(command) == 2
        assert "is a pipe" in capsys.readouterr().err


def test_every_option_has_the_variable_of_its_own_name() -> None:
    commands = [command for group in (program, *COMMANDS.values()) for command in members_of(group).values()]
    options = [one for command in commands for one in command.params if isinstance(one, click.Option)]
    assert len(options) > 50
    for option in options:
        assert option.name is not None
        assert f"--{option.name.replace('_', '-')}" in option.opts


def test_the_environment_mirrors_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "state-file").write_bytes(bytes(10))
    monkeypatch.setenv("DWCP_SEND_TO", "host:7443")
    monkeypatch.setenv("DWCP_SEND_STREAMS", "9")
    monkeypatch.setenv("DWCP_SEND_JSON", "1")
    assert run(["send", str(tmp_path / "state-file"), "--dry-run"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["to"] == "host:7443" and plan["why"]["streams"].startswith("9")


def test_a_dry_run_looks_and_connects_to_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_bytes(bytes(5000))
    assert run(["send", str(tmp_path / "tree"), "--to", "192.0.2.1:7443", "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["entries"], plan["files"], plan["bytes_raw"]) == (2, 1, 5000)
    assert run(["send", str(tmp_path / "missing"), "--to", "192.0.2.1:7443", "--dry-run"]) == 3


def test_patches_are_made_and_applied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new, patch, made = (str(tmp_path / name) for name in ("old", "new", "patch", "made"))
    Path(old).write_bytes(bytes(100_000))
    Path(new).write_bytes(bytes(99_999) + b"!")
    assert run(["delta", "diff", old, new, "-o", patch, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["type"] == "diff" and told["patch_bytes"] == Path(patch).stat().st_size
    assert run(["delta", "apply", patch, "--base", old, "-o", made]) == 0
    assert "verified" in capsys.readouterr().out
    assert Path(made).read_bytes() == Path(new).read_bytes()
    assert run(["delta", "apply", patch, "--base", old, "--in-place"]) == 0
    assert Path(old).read_bytes() == Path(new).read_bytes()


def test_a_name_that_is_no_text_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = os.fsdecode(os.fsencode(tmp_path / "made") + b"\xff")
    base, patch = str(tmp_path / "base"), str(tmp_path / "patch")
    Path(base).write_bytes(b"old")
    Path(patch).write_bytes(delta.encode(b"old", b"new"))
    apply = ["delta", "apply", patch, "--base", base, "-o", made]
    assert run(apply) == 0
    assert "made\ufffd: " in capsys.readouterr().out
    assert run([*apply[:-1], f"{made}/missing"]) == 2
    assert "made\ufffd" in capsys.readouterr().err
    plain = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(plain, encoding="ascii"))
    assert run(apply) == 0
    assert b"made?: " in plain.getvalue()


def test_a_patch_for_another_base_is_exit_code_6(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "patch").write_bytes(delta.encode(b"old", b"new"))
    (tmp_path / "base").write_bytes(b"odd")
    arguments = [
        "delta",
        "apply",
        str(tmp_path / "patch"),
        "--base",
        str(tmp_path / "base"),
        "-o",
        str(tmp_path / "x"),
    ]
    assert run([*arguments, "--json"]) == 6
    told = capsys.readouterr()
    assert json.loads(told.out)["code"] == "base-mismatch" and told.err.startswith("error: ")
    assert not (tmp_path / "x").exists()


def test_a_file_that_is_no_patch_is_exit_code_6(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "patch").write_bytes(b"no patch")
    assert (
        run(["delta", "apply", str(tmp_path / "patch"), "--base", str(tmp_path / "patch"), "--in-place"]) == 6
    )
    assert "DWCD" in capsys.readouterr().err
    assert (tmp_path / "patch").read_bytes() == b"no patch"


def test_an_address_of_another_machine_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recv", "--listen", "192.0.2.1:7443", "--into", str(tmp_path / "inbox")]) == 1
    assert "error: 192.0.2.1:7443: " in capsys.readouterr().err
