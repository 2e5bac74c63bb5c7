"""What is kept on disk: made once, secret, and never half written."""

import threading
from pathlib import Path

import pytest

from dwcp_fast import state
from dwcp_fast.errors import ConfigError
from dwcp_fast.state import (
    KeptPairing,
    client_identity,
    forget_pairing,
    keep_pairing,
    kept_pairing,
    state_dir,
)

PAIRING = KeptPairing(identity=b"identity", tickets=b"t" * 65, port=7443)


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the tests' state out of the user's."""
    monkeypatch.setenv("DWCP_STATE_DIR", str(tmp_path / "state"))


def stage(into: Path) -> Path:
    """Leave an unfinished transfer in a target directory."""
    folder = into / ".dwcp" / ("0" * 31 + "1")
    (folder / "data").mkdir(parents=True)
    return folder


def test_the_state_directory_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert state_dir() == tmp_path / "state"
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    monkeypatch.delenv("DWCP_STATE_DIR")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    assert state_dir() == tmp_path / "xdg" / "dwcp"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert state_dir() == tmp_path / "home" / ".local" / "state" / "dwcp"


def test_all_who_ask_at_once_get_the_same_identity() -> None:
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(client_identity().fingerprint)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 8 and len(set(found)) == 1
    assert [path.name for path in state_dir().iterdir()] == ["identity"]


def test_a_damaged_identity_is_not_replaced_in_silence() -> None:
    (state_dir() / "identity").write_bytes(b"rubbish")
    (state_dir() / "identity").chmod(0o600)
    with pytest.raises(ConfigError, match="identity"):
        client_identity()
    assert (state_dir() / "identity").read_bytes() == b"rubbish"


def test_a_pairing_is_found_again_only_while_something_is_staged(tmp_path: Path) -> None:
    keep_pairing(tmp_path, PAIRING)
    assert kept_pairing(tmp_path) is None
    folder = stage(tmp_path)
    assert kept_pairing(tmp_path) == PAIRING
    assert (tmp_path / ".dwcp" / "pairing.json").stat().st_mode & 0o777 == 0o600
    forget_pairing(tmp_path)
    assert kept_pairing(tmp_path) == PAIRING
    (folder / "data").rmdir()
    folder.rmdir()
    forget_pairing(tmp_path)
    assert not (tmp_path / ".dwcp").exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"identity": 1, "tickets": "", "port": 1}'])
def test_a_damaged_pairing_is_named(tmp_path: Path, text: str) -> None:
    stage(tmp_path)
    path = tmp_path / ".dwcp" / "pairing.json"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="pairing"):
        kept_pairing(tmp_path)


def test_a_secret_that_others_may_read_is_refused(tmp_path: Path) -> None:
    stage(tmp_path)
    keep_pairing(tmp_path, PAIRING)
    (tmp_path / ".dwcp" / "pairing.json").chmod(0o640)
    with pytest.raises(ConfigError, match="others may read"):
        kept_pairing(tmp_path)


def test_nothing_is_left_beside_a_secret_that_could_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "taken").write_bytes(b"first")
    with pytest.raises(FileExistsError):
        state.write_private(tmp_path / "taken", b"second", replace=False)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
    assert (tmp_path / "taken").read_bytes() == b"first"
