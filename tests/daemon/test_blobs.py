"""Blobs over HTTP: taken in within their limits, handed out whole or in part."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.daemon import Answer, DaemonProcess, running

MAX_BLOB, ALL_BLOBS = 512 * 1024, 1024 * 1024
CONTENT = os.urandom(400_000)
BINARY = "application/octet-stream"
TAKING = """
id: taking
nodes:
  - {id: hook, type: trigger.webhook.inbound, params: {path: taking, respond: last}}
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    folder: Path = tmp_path_factory.mktemp("blobs")
    with running(
        folder, STACKD_MAX_BLOB_BYTES=str(MAX_BLOB), STACKD_BLOB_BYTES=str(ALL_BLOBS)
    ) as daemon:
        daemon.load(TAKING)
        yield daemon


@pytest.fixture(scope="module")
def blob_id(daemon: DaemonProcess) -> str:
    answer = daemon.deliver("taking", CONTENT, Content_Type=BINARY)
    assert answer.status == 200, answer.text
    return str(answer.json["body"]["$blob"])


def asked(daemon: DaemonProcess, blob_id: str, **headers: str) -> Answer:
    return daemon.http("GET", f"/api/blobs/{blob_id}", **headers)


def test_a_blob_is_handed_out_as_an_attachment(daemon: DaemonProcess, blob_id: str) -> None:
    answer = asked(daemon, blob_id)

    assert (answer.status, answer.body) == (200, CONTENT)
    assert blob_id == hashlib.sha256(CONTENT).hexdigest()
    assert answer.headers["content-type"] == BINARY
    assert answer.headers["content-disposition"] == f'attachment; filename="{blob_id}"'
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["etag"] == f'"{blob_id}"'


def test_who_has_a_blob_is_told_so(daemon: DaemonProcess, blob_id: str) -> None:
    answer = asked(daemon, blob_id, If_None_Match=f'"{blob_id}"')

    assert (answer.status, answer.body) == (304, b"")


@pytest.mark.parametrize("asked_for", ["bytes=400000-", "bytes=-0"])
def test_a_range_that_is_not_in_a_blob_is_a_problem(
    daemon: DaemonProcess, blob_id: str, asked_for: str
) -> None:
    answer = asked(daemon, blob_id, Range=asked_for)

    assert (answer.status, answer.code) == (416, "blob.range")
    assert answer.headers["content-range"] == f"bytes */{len(CONTENT)}"


@pytest.mark.parametrize(
    ("asked_for", "status", "part"),
    [
        ("bytes=0-0", 206, slice(0, 1)),
        ("bytes=100-299999", 206, slice(100, 300_000)),
        ("bytes=399990-", 206, slice(399_990, None)),
        ("bytes=-10", 206, slice(-10, None)),
        ("bytes=399990-999999", 206, slice(399_990, None)),
        ("bytes=5-4", 200, slice(None)),
        ("lines=1-2", 200, slice(None)),
        ("bytes=0-1,3-4", 200, slice(None)),
    ],
)
def test_a_range_of_a_blob(
    daemon: DaemonProcess, blob_id: str, asked_for: str, status: int, part: slice
) -> None:
    answer = asked(daemon, blob_id, Range=asked_for)

    assert (answer.status, answer.body) == (status, CONTENT[part])
    if status == 206:
        start, stop, _ = part.indices(len(CONTENT))
        assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/{len(CONTENT)}"


@pytest.mark.parametrize("asked_for", ["bytes=0-0", "bytes=-0"])
def test_a_range_is_nothing_to_who_asks_for_the_head_of_a_blob(
    daemon: DaemonProcess, blob_id: str, asked_for: str
) -> None:
    answer = daemon.http("HEAD", f"/api/blobs/{blob_id}", Range=asked_for)

    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["content-length"] == str(len(CONTENT))
    assert "content-range" not in answer.headers


@pytest.mark.parametrize(
    ("known", "status"),
    [('"{}"', 206), ('W/"{}"', 200), ('"other"', 200), ("Wed, 21 Oct 2015 07:28:00 GMT", 200)],
)
def test_a_download_goes_on_only_with_what_it_began_with(
    daemon: DaemonProcess, blob_id: str, known: str, status: int
) -> None:
    answer = asked(daemon, blob_id, Range="bytes=-10", If_Range=known.format(blob_id))

    assert (answer.status, answer.body) == (status, CONTENT[-10:] if status == 206 else CONTENT)


@pytest.mark.parametrize("other", ["0" * 64, "nonsense", "..%2f..%2fstackd.db", "A" * 64])
def test_what_is_no_blob_is_not_found(daemon: DaemonProcess, other: str) -> None:
    answer = asked(daemon, other)

    assert (answer.status, answer.code) == (404, "blob.not_found")


def test_a_blob_takes_a_token(daemon: DaemonProcess, blob_id: str) -> None:
    answer = daemon.http("GET", f"/api/blobs/{blob_id}", authorized=False)

    assert (answer.status, answer.code) == (401, "auth.required")


def test_blobs_have_limits_one_by_one_and_together(daemon: DaemonProcess, blob_id: str) -> None:
    too_large = daemon.deliver("taking", bytes(MAX_BLOB + 1), Content_Type=BINARY)
    as_large_as_may_be = daemon.deliver("taking", bytes(MAX_BLOB), Content_Type=BINARY)
    too_much = daemon.deliver("taking", b"\1" * MAX_BLOB, Content_Type=BINARY)
    as_before = daemon.deliver("taking", CONTENT, Content_Type=BINARY)

    assert (too_large.status, too_large.code) == (413, "blob.too_large")
    assert as_large_as_may_be.status == 200
    assert (too_much.status, too_much.code) == (507, "blob.budget")
    assert int(too_much.headers["retry-after"]) > 1
    assert as_before.json["body"]["$blob"] == blob_id
    metrics = daemon.http("GET", "/metrics").text
    assert "stackd_blobs 2.0" in metrics
    assert f"stackd_blob_bytes {float(MAX_BLOB + len(CONTENT))}" in metrics
