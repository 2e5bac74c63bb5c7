from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any, Literal, Self, final

from typing_extensions import Buffer

from dwcp_fast.buffers import BufferLike
from dwcp_fast.told import (
    FetchSettings,
    PatchTold,
    ProgressTold,
    ReceiveSettings,
    ReceiveTold,
    SendSettings,
    SendTold,
)

__all__ = [
    "Cancel",
    "DialSecurity",
    "Dictionary",
    "Fetcher",
    "Identity",
    "ListenSecurity",
    "Listener",
    "ReceivedBuffer",
    "Receiver",
    "Scan",
    "SelectorModel",
    "Sender",
    "Server",
    "Snapshot",
    "calibration_sample",
    "compress",
    "compress_into",
    "compress_pages",
    "decompress",
    "decompress_into",
    "decompress_pages_into",
    "digest",
    "max_compressed_length",
    "measure_action",
    "needed_dictionary",
    "pairing_address",
    "patch_apply",
    "patch_apply_files",
    "patch_apply_in_place",
    "patch_apply_in_place_files",
    "patch_apply_onto",
    "patch_encode",
    "patch_encode_files",
    "patch_info",
    "patch_recover",
    "raw_length",
    "select_actions",
    "select_feature_names",
    "select_features",
    "split_address",
    "staged_transfers",
]

def calibration_sample() -> bytes: ...
def compress(buf: BufferLike, codec: str, checksum: bool, dictionary: Dictionary | None) -> bytes: ...
def compress_into(
    buf: BufferLike, out: BufferLike, codec: str, checksum: bool, dictionary: Dictionary | None
) -> int: ...
def compress_pages(
    memory: BufferLike, numbers: BufferLike, page_bytes: int, codec: str, checksum: bool, max_length: int
) -> bytes: ...
def decompress(buf: BufferLike, max_length: int, dictionary: Dictionary | None) -> bytes: ...
def decompress_into(buf: BufferLike, out: BufferLike, dictionary: Dictionary | None) -> int: ...
def decompress_pages_into(
    packed: BufferLike, memory: BufferLike, numbers: BufferLike, page_bytes: int, max_length: int
) -> None: ...
def digest(buf: BufferLike) -> bytes: ...
def max_compressed_length(length: int) -> int: ...
def measure_action(buf: BufferLike, action: str, width: int | None, repeats: int) -> tuple[int, int, int]: ...
def needed_dictionary(buf: BufferLike) -> str | None: ...
def patch_apply(patch: BufferLike, old: BufferLike, threads: int, dictionary: Dictionary | None) -> bytes: ...
def patch_apply_files(
    patch: PathLike[str],
    old: PathLike[str],
    out: PathLike[str],
    threads: int,
    dictionary: Dictionary | None,
) -> PatchTold: ...
def patch_apply_in_place(
    patch: BufferLike, old: BufferLike, threads: int, dictionary: Dictionary | None
) -> None: ...
def patch_apply_in_place_files(
    patch: PathLike[str], file: PathLike[str], threads: int, dictionary: Dictionary | None
) -> PatchTold: ...
def patch_apply_onto(
    patch: BufferLike, old: BufferLike, out: BufferLike, threads: int, dictionary: Dictionary | None
) -> None: ...
def patch_encode(
    old: BufferLike,
    new: BufferLike,
    width: int | None,
    codec: str,
    dictionary: Dictionary | None,
    block_bytes: int | None,
    search: bool,
    threads: int,
) -> bytes: ...
def patch_encode_files(
    old: PathLike[str],
    new: PathLike[str],
    out: PathLike[str],
    width: int | None,
    codec: str,
    dictionary: Dictionary | None,
    block_bytes: int | None,
    search: bool,
    threads: int,
) -> PatchTold: ...
def patch_info(patch: BufferLike) -> PatchTold: ...
def patch_recover(file: PathLike[str]) -> Literal["nothing", "discarded", "finished"]: ...
def raw_length(buf: BufferLike) -> int: ...
def select_actions() -> list[str]: ...
def select_feature_names() -> list[str]: ...
def select_features(buf: BufferLike, width: int | None = None) -> list[float]: ...
def pairing_address(pairing: str) -> str: ...
def split_address(address: str) -> tuple[str, int]: ...
def staged_transfers(into: PathLike[str]) -> list[tuple[str, int]]: ...

@final
class Dictionary:
    def __new__(cls, data: BufferLike) -> Self: ...
    @staticmethod
    def train(samples: Sequence[BufferLike], max_bytes: int) -> Dictionary: ...
    def to_bytes(self) -> bytes: ...
    @property
    def digest(self) -> str: ...

@final
class SelectorModel:
    def __new__(cls, data: BufferLike) -> Self: ...
    @property
    def actions(self) -> list[str]: ...
    @property
    def features(self) -> list[str]: ...
    @property
    def reference(self) -> list[tuple[float, float]]: ...
    @property
    def digest(self) -> str: ...
    def predict(self, features: Sequence[float]) -> list[tuple[float, float, float]]: ...

@final
class Cancel:
    def __new__(cls) -> Self: ...
    @property
    def cancelled(self) -> bool: ...
    def cancel(self) -> None: ...

@final
class Identity:
    @property
    def fingerprint(self) -> str: ...
    @staticmethod
    def generate() -> Identity: ...
    @staticmethod
    def load_pem(certificates: PathLike[str], key: PathLike[str]) -> Identity: ...
    @staticmethod
    def from_blob(blob: bytes) -> Identity: ...
    def to_blob(self) -> bytes: ...

@final
class DialSecurity:
    @staticmethod
    def paired(pairing: str, identity: Identity) -> DialSecurity: ...
    @staticmethod
    def mutual(identity: Identity, ca: PathLike[str], server_name: str) -> DialSecurity: ...
    @staticmethod
    def insecure() -> DialSecurity: ...

@final
class ListenSecurity:
    @staticmethod
    def paired(identity: Identity, tickets: bytes | None, clients: int | None) -> ListenSecurity: ...
    @staticmethod
    def mutual(identity: Identity, ca: PathLike[str]) -> ListenSecurity: ...
    @staticmethod
    def insecure() -> ListenSecurity: ...
    def tickets(self) -> bytes | None: ...
    def pairing(self, host: str, port: int) -> str | None: ...

@final
class Scan:
    def __new__(
        cls,
        paths: list[PathLike[str]],
        block_bytes: int,
        keep_symlinks: bool,
        index: PathLike[str],
        bases: list[PathLike[str]] | None,
        cancel: Cancel,
    ) -> Self: ...
    @property
    def entries(self) -> int: ...
    @property
    def files(self) -> int: ...
    @property
    def has_base(self) -> bool: ...
    @property
    def total_bytes(self) -> int: ...

@final
class Sender:
    def __new__(
        cls,
        address: str,
        security: DialSecurity,
        settings: SendSettings,
        cancel: Cancel,
        observer: Callable[[dict[str, Any]], None] | None,
    ) -> Self: ...
    def send_buffers(self, buffers: list[tuple[str, BufferLike]], block_bytes: int) -> SendTold: ...
    def send_scan(self, scan: Scan) -> SendTold: ...
    def progress(self) -> ProgressTold: ...
    def close(self) -> None: ...

@final
class Fetcher:
    def __new__(
        cls,
        address: str,
        security: DialSecurity,
        settings: FetchSettings,
        cancel: Cancel,
        observer: Callable[[dict[str, Any]], None] | None,
    ) -> Self: ...
    def fetch_buffers(
        self, request: bytes, max_total_bytes: int, timeout_s: float | None
    ) -> tuple[list[tuple[str, Buffer]], ReceiveTold]: ...
    def fetch_into(
        self, request: bytes, buffers: dict[str, BufferLike], timeout_s: float | None
    ) -> ReceiveTold: ...
    def fetch_tree(
        self,
        request: bytes,
        into: PathLike[str],
        overwrite: bool,
        keep_symlinks: bool,
        sync: bool,
        timeout_s: float | None,
    ) -> ReceiveTold: ...
    def progress(self) -> ProgressTold: ...
    def close(self) -> None: ...

@final
class Server:
    @property
    def peer(self) -> str: ...
    @property
    def request(self) -> bytes | None: ...
    def next_request(self, timeout_s: float | None) -> bytes | None: ...
    def send_buffers(self, buffers: list[tuple[str, BufferLike]], block_bytes: int) -> SendTold: ...
    def send_scan(self, scan: Scan) -> SendTold: ...
    def refuse(self, reason: str) -> None: ...
    def progress(self) -> ProgressTold: ...
    def close(self) -> None: ...

@final
class ReceivedBuffer:
    def __len__(self) -> int: ...

@final
class Listener:
    def __new__(
        cls,
        address: str,
        security: ListenSecurity,
        settings: ReceiveSettings,
        serve: SendSettings | None,
        cancel: Cancel,
        observer: Callable[[dict[str, Any]], None] | None,
        v1: Callable[[int, str, int], None] | None,
    ) -> Self: ...
    @property
    def address(self) -> tuple[str, int]: ...
    def accept(self, timeout_s: float | None) -> Receiver | Server | None: ...
    def close(self) -> None: ...

@final
class Receiver:
    @property
    def peer(self) -> str: ...
    def receive_buffers(
        self, max_total_bytes: int, timeout_s: float | None
    ) -> tuple[list[tuple[str, Buffer]], ReceiveTold] | None: ...
    def receive_into(self, buffers: dict[str, BufferLike], timeout_s: float | None) -> ReceiveTold | None: ...
    def receive_tree(
        self,
        into: PathLike[str],
        overwrite: bool,
        keep_symlinks: bool,
        sync: bool,
        timeout_s: float | None,
    ) -> ReceiveTold | None: ...
    def progress(self) -> ProgressTold: ...
    def close(self) -> None: ...

@final
class Snapshot:
    def __new__(
        cls,
        data: BufferLike,
        width: int | None,
        codec: str,
        block_bytes: int,
        search: bool,
        threads: int,
    ) -> Self: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def __len__(self) -> int: ...
    @property
    def digest(self) -> str: ...
    def advance(self, new: BufferLike, threads: int) -> bytes: ...
    def advance_masked(self, new: BufferLike, mask: BufferLike, packed: bool, threads: int) -> bytes: ...
    def advance_sparse(self, index: BufferLike, values: BufferLike, threads: int) -> bytes: ...
    def apply(self, patch: BufferLike, threads: int) -> None: ...
