"""What lanes are made of, and when that is TCP instead of RDMA."""

import pytest

from dwcp_fast import carriers
from dwcp_fast.doctor import rdma_limits
from dwcp_fast.errors import AuthError, ConfigError, DeadlineError, PeerError, TransportError
from dwcp_fast.policy.carrier import RdmaOffer, choose_carrier, fall_back, offers_rdma, patience_s

THERE = RdmaOffer(("mlx5_0",), None)
NONE = RdmaOffer((), "no device")


def test_auto_takes_rdma_only_where_it_is_there_and_nobody_wants_to_be_known() -> None:
    assert choose_carrier("auto", plain=True, offer=THERE).value == "rdma"
    assert "mlx5_0" in choose_carrier("auto", plain=True, offer=THERE).why
    assert choose_carrier("auto", plain=True, offer=NONE).value == "tcp"
    assert choose_carrier("auto", plain=True, offer=NONE).why == "no device"
    assert choose_carrier("auto", plain=False, offer=THERE).value == "tcp"
    assert choose_carrier("tcp", plain=True, offer=THERE).value == "tcp"
    # Asked for by name: the error tells what is missing.
    assert choose_carrier("rdma", plain=True, offer=NONE).value == "rdma"
    assert [offers_rdma(asked, plain=True, offer=THERE) for asked in ("auto", "tcp", "rdma")] == [
        True,
        False,
        True,
    ]
    assert not offers_rdma("auto", plain=False, offer=THERE)


def test_rdma_is_refused_where_peers_are_to_know_each_other() -> None:
    with pytest.raises(ConfigError, match="neither encrypted nor authenticated"):
        choose_carrier("rdma", plain=False, offer=THERE)
    with pytest.raises(ConfigError, match="neither encrypted nor authenticated"):
        offers_rdma("rdma", plain=False, offer=THERE)


def test_only_auto_falls_back_and_says_why() -> None:
    chosen = choose_carrier("auto", plain=True, offer=THERE)
    other = fall_back("auto", chosen, "nobody listens")
    assert other is not None and (other.value, other.why) == ("tcp", "fallen back from rdma: nobody listens")
    assert fall_back("rdma", chosen, "nobody listens") is None
    assert fall_back("auto", other, "nobody listens") is None
    assert (patience_s("auto", 10.0), patience_s("auto", 1.0), patience_s("rdma", 10.0)) == (3.0, 1.0, 10.0)


@pytest.mark.parametrize("error", [TransportError("gone"), DeadlineError("late")])
def test_what_fails_over_rdma_is_dialled_over_tcp_and_told(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # There is no device here: what a machine with one does is decided by what it is told.
    monkeypatch.setattr(carriers, "rdma_offer", lambda: THERE)
    tried: list[tuple[str, float]] = []
    told: list[dict[str, object]] = []

    def make(carrier: str, connect_timeout_s: float) -> str:
        tried.append((carrier, connect_timeout_s))
        if carrier == "rdma":
            raise error
        return carrier

    made, link = carriers.dial("auto", 10.0, make, plain=True, events=told.append)
    assert made == "tcp" and tried == [("rdma", 3.0), ("tcp", 10.0)]
    assert told == [{"type": "link", "link": "tcp", "why": f"fallen back from rdma: {error}"}]
    assert link.why == told[0]["why"] and "tcp instead of rdma" in caplog.text
    with pytest.raises(type(error)):
        carriers.dial("rdma", 10.0, make, plain=True, events=None)


@pytest.mark.parametrize("error", [PeerError("refused"), AuthError("unknown")])
def test_a_peer_that_has_answered_over_rdma_is_not_asked_again(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carriers, "rdma_offer", lambda: THERE)

    def make(carrier: str, _: float) -> str:
        assert carrier == "rdma"
        raise error

    with pytest.raises(type(error)):
        carriers.dial("auto", 10.0, make, plain=True, events=None)


def test_little_memory_that_may_be_locked_gets_an_advice() -> None:
    device = {"name": "mlx5_0", "max_qp_wr": 32768}
    poor = rdma_limits([device], None, 65_536)
    assert poor.state == "advice" and "mlx5_0: max_qp_wr 32768; 65536 bytes may be locked" in poor.value
    assert rdma_limits([device], None, None).state == "ok"
    assert rdma_limits([], "no device", 65_536).state == "ok"
