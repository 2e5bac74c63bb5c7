"""Options from files and the environment: which goes first, what is refused, and where a value comes from."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dwcp_fast.cli.program import run

Told = Callable[..., Any]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with something to send."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").write_bytes(b"state")
    return tmp_path


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Told:
    """Runs a command and gives the object it prints."""

    def tell(*arguments: str, code: int = 0) -> Any:
        assert run([*arguments, "--json"]) == code
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return tell


def own(text: str) -> None:
    """Write the user's own file."""
    path = Path(os.environ["XDG_CONFIG_HOME"]) / "dwcp" / "config.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def streams(told: Told, *flags: str) -> str:
    """What a plan says of the number of lanes."""
    plan: dict[str, Any] = told("send", "x", "--to", "h:1", "--dry-run", *flags)
    return str(plan["why"]["streams"]).partition(":")[0]


def test_a_flag_goes_before_the_environment_and_so_on_to_the_default(
    folder: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = [streams(told)]
    own("[send]\nstreams = 13")
    seen.append(streams(told))
    (folder / "dwcp.toml").write_text("[send]\nstreams = '14'")
    seen.append(streams(told))
    monkeypatch.setenv("DWCP_SEND_STREAMS", "15")
    seen.append(streams(told))
    seen.append(streams(told, "--streams", "16"))
    assert seen[1:] == ["13", "14", "15", "16"] and seen[0] not in seen[1:]


def test_a_project_file_leaves_what_it_does_not_name_to_the_users_own(folder: Path, told: Told) -> None:
    own("[send]\nstreams = 3\ncodec = 'lz4'")
    (folder / "dwcp.toml").write_text("[send]\ncodec = 'none'")
    plan = told("send", "x", "--to", "h:1", "--dry-run")
    assert plan["why"]["codec"].startswith("none") and streams(told) == "3"


def test_each_value_tells_where_it_comes_from(
    folder: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    own("[send]\nto = 'dwcp://h:1#secret'\n[delta.diff]\ncodec = 'lz4'")
    (folder / "dwcp.toml").write_text("[send]\nfrom = ['10.0.0.1']\npolite = true")
    monkeypatch.setenv("DWCP_SEND_BWLIMIT", "5Mbps")
    shown = {
        (entry["command"], entry["option"]): (entry["value"], Path(entry["origin"]).name)
        for entry in told("config", "show")["settings"]
    }
    assert shown == {
        ("send", "to"): ("dwcp://h:1#...", "config.toml"),
        ("send", "from"): (["10.0.0.1"], "dwcp.toml"),
        ("send", "polite"): (True, "dwcp.toml"),
        ("send", "bwlimit"): ("5Mbps", "DWCP_SEND_BWLIMIT"),
        ("delta diff", "codec"): ("lz4", "config.toml"),
    }
    of_send = {entry["option"]: entry for entry in told("config", "show", "send")["settings"]}
    assert of_send["block-size"] | {"command": ""} == {
        "command": "",
        "option": "block-size",
        "value": "1MiB",
        "origin": "default",
    }


def test_a_variable_that_commands_share_is_told_as_their_origin(
    folder: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    own("[rollout.status]\nflags = 'other.json'")
    (folder / "dwcp.toml").write_text("[send]\nlink-memory = false")
    monkeypatch.setenv("DWCP_FLAGS_FILE", "flags.json")
    monkeypatch.setenv("DWCP_NODE_NAME", "node-7")
    shown = {
        (entry["command"], entry["option"]): (entry["value"], entry["origin"])
        for entry in told("config", "show")["settings"]
    }
    assert shown["rollout status", "flags"] == ("flags.json", "DWCP_FLAGS_FILE")
    assert shown["send", "link-memory"] == (False, "dwcp.toml")
    assert told("config", "check")["faults"] == []


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[send]\nbwlimt = '5Mbps'", "bwlimit"),
        ("[sned]\nstreams = 1", "send"),
        ("bwlimit = '5Mbps'", "bwlimit"),
        ("send = 5", "table"),
        ("[send]\nstreams = 0", "1 to 256"),
        ("[recv]\nidle-timeout = 'soon'", "idle-timeout"),
        ("[serve]\nclients = [1]", "one value"),
        ("[send]\nfrom = '10.0.0.1'", "list"),
        ("[send]\npolite = 7", "true or false"),
        ("[delta.diff]\ncodex = 'lz4'", "codec"),
        ("[send]\ninsecure = true", "--insecure"),
        ("[recv]\nallow-v1 = ''", "--allow-v1"),
        ("[send]\nprotocol = 'v1'", "--protocol"),
        ("[send]\nto = 'h:1'", "config.toml"),
        ("[send]\nca = 'x.pem'", "config.toml"),
        ("[send\n", "TOML"),
        ("\xff", "TOML"),
        ("[send]\n" + "#" * (1 << 20), "1048576 bytes"),
    ],
)
def test_a_mistake_in_a_file_is_named_by_check_and_by_every_command(
    folder: Path, told: Told, text: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "dwcp.toml").write_text(text, encoding="latin-1")
    found = told("config", "check", code=2)
    (fault,) = found["faults"]
    assert named in f"{fault['message']} {fault['hint']}" and "dwcp.toml" in fault["message"]
    # Of a command that has nothing to do with it, too.
    assert run(["doctor", "--json"]) == 2
    out, err = capsys.readouterr()
    assert named in err and json.loads(out)["code"] == "usage"
    assert run(["doctor", "-h"]) == 0
    # And of the one that shows what holds.
    assert run(["config", "show"]) == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variable", "value", "named"),
    [
        ("DWCP_SEND_STREAM", "4", "DWCP_SEND_STREAMS"),
        ("DWCP_DELTA_DIFF_CODECS", "lz4", "DWCP_DELTA_DIFF_CODEC"),
        ("DWCP_RECV_IDLE_TIMEOUT", "soon", "300ms"),
        ("DWCP_STATE_DIRR", "x", "DWCP_STATE_DIR"),
        ("DWCP_OUTCOME_FILE", "x", "DWCP_OUTCOMES_FILE"),
        ("DWCP_NODE_NAMES", "x", "DWCP_NODE_NAME"),
        ("DWCP_LINK_PROBE_TIMES", "1s", "DWCP_LINK_PROBE_TIME"),
        ("DWCP_SEND_MODE", "lan", "datacenter"),
    ],
)
def test_a_mistake_in_the_environment_is_named(
    folder: Path, told: Told, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, named: str
) -> None:
    assert told("config", "check")["faults"] == []
    monkeypatch.setenv(variable, value)
    (fault,) = told("config", "check", code=2)["faults"]
    assert fault["message"].startswith(variable) and named in f"{fault['message']} {fault['hint']}"


def test_a_misspelt_variable_stops_the_command_and_one_of_others_does_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DWCP_OPERATOR_MOOD", "good")
    assert run(["send", "x", "--to", "h:1", "--dry-run"]) == 0
    monkeypatch.setenv("DWCP_SEND_BWLIMT", "5Mbps")
    assert run(["send", "x", "--to", "h:1", "--dry-run"]) == 2
    assert "DWCP_SEND_BWLIMIT" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "option", "value"),
    [
        ("rollout.watch", "flags", "'flags.json'"),
        ("rollout.rollback", "flags", "'flags.json'"),
        ("rollout.watch", "outcomes", "['outcomes']"),
        ("rollout.status", "outcomes", "['outcomes']"),
    ],
)
def test_a_directory_cannot_say_which_fleet_is_moved_nor_by_what_it_is_judged(
    folder: Path, told: Told, command: str, option: str, value: str
) -> None:
    own(f"[{command}]\n{option} = {value}")
    assert told("config", "check")["faults"] == []
    (folder / "dwcp.toml").write_text(f"[{command}]\n{option} = {value}")
    (fault,) = told("config", "check", code=2)["faults"]
    assert f"{option} cannot be set in the file of a project" in fault["message"]
    (folder / "flags.json").write_text("{}")
    assert run(["rollout", "rollback", "--flags", "flags.json"]) == 2
    assert (folder / "flags.json").read_text() == "{}", "what a directory says has moved no fleet"


def test_what_is_shown_can_be_put_into_a_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own("[send]\nbwlimit = '08:00-18:00=5Mbps,otherwise=off'\nfrom = ['10.0.0.1', '10.1.0.1']\npolite = true")
    assert run(["config", "show"]) == 0
    shown = capsys.readouterr().out
    own(shown)
    assert run(["config", "show"]) == 0
    assert capsys.readouterr().out == shown and "polite = true" in shown
