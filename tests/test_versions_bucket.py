"""Versions in an object store, over HTTP with a real server that speaks S3."""

import socket
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING
from urllib.request import Request, urlopen

import pytest

from dwcp_fast.errors import ConfigError, ConflictError, IntegrityError, TransportError
from dwcp_fast.versions import DeltaPublisher, DeltaSubscriber
from versions_double import is_exactly, publish, take_newest, version_arrays

pytest.importorskip("obstore", reason="the extra 'object-store' is not installed")
moto_server = pytest.importorskip("moto.server", reason="the S3 server for tests is not installed")

from obstore.store import S3Store  # noqa: E402 - only where it is installed

if TYPE_CHECKING:
    from dwcp_fast.versions.bucket import BucketStore

Open = Callable[..., "BucketStore"]

# The server's own libraries warn of themselves.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    with urlopen(Request(f"{url}/bucket", method="PUT"), timeout=30) as answer:
        assert answer.status == 200
    yield url
    server.stop()


@pytest.fixture
def open_bucket(endpoint: str, request: pytest.FixtureRequest) -> Open:
    from dwcp_fast.versions.bucket import BucketStore

    def open_store(bucket: str = "bucket", url: str = endpoint) -> BucketStore:
        store = S3Store(
            bucket,
            prefix=request.node.name,
            endpoint=url,
            region="us-east-1",
            access_key_id="id",
            secret_access_key="secret",
            client_options={"allow_http": True, "timeout": "20s"},
            retry_config={"max_retries": 0},
        )
        return BucketStore(store, poll_s=0.05)

    return open_store


def test_versions_go_through_a_bucket(open_bucket: Open) -> None:
    follower = DeltaSubscriber(open_bucket())
    with DeltaPublisher(open_bucket(), anchor_every=2, keep=2) as opened:
        assert follower.wait(0) is None
        for number in range(1, 6):
            publish(opened, number)
            staged = follower.wait(10)
            assert staged is not None
            assert staged.commit().kind == ("anchor" if number == 1 else "delta")
            assert is_exactly(follower.tensors(), version_arrays(number))
            assert follower.wait(0) is None
    assert len(list(open_bucket().list_keys())) <= 8
    with DeltaPublisher(open_bucket()) as again:
        assert again.newest == 5
        publish(again, 6)
    assert is_exactly(take_newest(open_bucket())[1], version_arrays(6))


def test_the_bucket_itself_refuses_the_publisher_that_was_replaced(open_bucket: Open) -> None:
    first = DeltaPublisher(open_bucket())
    publish(first, 1)
    second = DeltaPublisher(open_bucket())
    with pytest.raises(ConflictError):
        publish(first, 2)
    publish(second, 2)
    assert is_exactly(take_newest(open_bucket())[1], version_arrays(2))


def test_an_object_that_was_altered_in_the_bucket_is_found(open_bucket: Open) -> None:
    store = open_bucket()
    with DeltaPublisher(store) as opened:
        publish(opened, 1)
    pack = next(key for key in store.list_keys() if key.startswith("packs/"))
    data = bytearray(store.read(pack, 1 << 20))
    data[100] ^= 1
    store.write(pack, bytes(data))
    with pytest.raises(IntegrityError):
        DeltaSubscriber(open_bucket()).wait(0)
    store.remove(pack)
    store.remove(pack)
    with pytest.raises(IntegrityError, match="missing"):
        DeltaSubscriber(open_bucket()).wait(0)
    with pytest.raises(FileNotFoundError):
        store.read("../head.json", 10)


def test_an_object_is_never_read_beyond_its_length(open_bucket: Open) -> None:
    store = open_bucket()
    key = "packs/" + "0" * 32
    store.write(key, bytes(3_000_000))
    assert len(store.read(key, 1000)) == 1001


def test_a_store_that_cannot_be_reached_is_a_transport_error(open_bucket: Open) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        store = open_bucket(url=f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(TransportError):
            DeltaPublisher(store)


def test_a_url_that_names_no_store_is_refused() -> None:
    with pytest.raises(ConfigError):
        DeltaPublisher("gopher://bucket/prefix")
