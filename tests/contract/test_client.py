"""The client of the API: what it makes of a daemon that is not there, says nothing, or is none."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from support.stub import HOLD, listening, said

from stackd.client.api import Api
from stackd.core.errors import ApiError, InputError, NoAnswerError, StackdError, UnreachableError


def test_an_answer_is_its_json():
    with listening(said(200, {"n": 12345678901234567890123})) as stub:
        assert Api(url=stub.url).get("/api/x y", q="ä&b") == {"n": 12345678901234567890123}

    assert stub.requests == ["GET /api/x%20y?q=%C3%A4%26b HTTP/1.1"]


def test_what_a_shell_could_not_read_as_text_is_sent_as_it_was():
    with listening(said(200, {})) as stub:
        Api(url=stub.url).get("/api/\udcff", q="\udcfe")

    assert stub.requests == ["GET /api/%FF?q=%FE HTTP/1.1"]


# -- not reached


def test_nothing_that_listens_is_unreachable(tmp_path: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"

        with pytest.raises(UnreachableError, match=r"no daemon answers at http.*refused"):
            Api(url=url).get("/x")
    with pytest.raises(UnreachableError, match=r"no daemon answers at .*stackd\.sock"):
        Api(socket_path=tmp_path / "stackd.sock").get("/x")


def test_a_socket_of_somebody_else_says_how_to_get_in(tmp_path: Path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "connect", refuse)

    with pytest.raises(UnreachableError, match="Permission denied") as caught:
        Api(socket_path=tmp_path / "stackd.sock").get("/x")

    assert "as the user of the daemon" in caught.value.hint


# -- reached, and no answer


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_silence_is_no_answer_and_says_how_long_it_lasted(method):
    with (
        listening(HOLD) as stub,
        pytest.raises(NoAnswerError, match=rf"{stub.url} gave no answer within 0\.1 s") as caught,
    ):
        Api(url=stub.url).request(method, "/x", timeout=0.1)

    assert ("may have done" in caught.value.hint) is (method == "POST")


@pytest.mark.parametrize(
    "words",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        b"SSH-2.0-OpenSSH_9.6\r\n",
    ],
    ids=["nothing", "half a body", "another protocol"],
)
def test_an_answer_that_ends_too_soon_is_none(words):
    with listening(words) as stub, pytest.raises(NoAnswerError, match="closed the connection"):
        Api(url=stub.url).get("/x")


def test_an_answer_that_comes_before_all_was_sent_is_read():
    problem = {"code": "body.too_large", "detail": "over the limit"}

    with listening(said(413, problem)) as stub, pytest.raises(ApiError, match="over the limit"):
        Api(url=stub.url).post("/x", b"x" * (64 * 1024 * 1024))


# -- another kind of answer


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"<h1>hello</h1>", "text/html"),
        (b"{", "application/json"),
        (b"[1]", "application/json"),
        (b"[" * 100_000, "application/json"),
        (b"\xff", "application/json"),
        (b"", "application/json"),
    ],
)
def test_what_answers_otherwise_is_no_daemon(body, content_type):
    with (
        listening(said(200, body, content_type)) as stub,
        pytest.raises(ApiError, match=f"what answers at {stub.url} is no stackd daemon"),
    ):
        Api(url=stub.url).get("/x")


def test_a_problem_is_told_line_by_line_and_what_it_quotes_stays_on_its_line():
    problem = {
        "code": "document.invalid",
        "detail": "a\nb",
        "findings": [
            {"code": "c", "message": "m\n1:1 fake", "line": 3, "column": 5, "hint": "\x1b[2J"}
        ],
    }

    with listening(said(422, problem)) as stub, pytest.raises(ApiError) as caught:
        Api(url=stub.url).get("/x")

    assert caught.value.message == "a\\nb\n  3:5 c: m\\n1:1 fake (\\x1b[2J)"
    assert (caught.value.code, caught.value.http_status) == ("document.invalid", 422)


def test_a_finding_that_the_detail_tells_is_told_there_with_its_code_and_hint_and_not_again():
    findings = [
        {"code": "c", "message": "m", "line": 3, "column": 5, "hint": "h"},
        {"code": "d", "message": "n", "line": 3, "column": 15, "hint": None},
    ]
    problem = {"detail": "a.yaml:3:5: m (and 1 more)", "findings": findings}

    with listening(said(422, problem)) as stub, pytest.raises(ApiError) as caught:
        Api(url=stub.url).get("/x")

    assert caught.value.message == "a.yaml:3:5: c: m (h) (and 1 more)\n  3:15 d: n"


# -- where to look


@pytest.mark.parametrize(
    "url",
    [
        "", "localhost:5000", "ftp://h", "http://", "http://:5000", "http://h:port", "http://h:99999",
        "http://h:0", "http://[::1", "http://a..b", f"http://{'x' * 64}.de", "http://h/path", "http://h?q",
        "http://h#f", "http://h h", "http://h\n", "\thttp://h", "http://h\x00", "http://\udcff", "http://u:p@h",
    ],
)  # fmt: skip
def test_a_url_that_is_none_is_refused_before_anything_is_asked(url):
    with pytest.raises(InputError, match="is no http or https URL") as caught:
        Api(url=url)

    assert "http://HOST:PORT" in caught.value.hint


def test_a_password_in_a_url_is_not_shown():
    with pytest.raises(InputError) as caught:
        Api(url="http://me:secret@h/")

    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    "url", ["http://h", "https://h:1/", "http://[::1]:5000", "http://bücher.example"]
)
def test_a_url_with_a_host_and_perhaps_a_port_is_taken(url):
    assert Api(url=url).place == url


@pytest.mark.parametrize(
    ("token", "number"),
    [("a\nb", 2), ("ab\n", 3), ("ü", 1), ("a b", 2), ("\x00", 1), ("€", 1), ("\udcff", 1)],
)
def test_a_token_that_cannot_be_sent_is_refused_and_not_shown(token, number):
    with pytest.raises(InputError, match=f"character {number} of the token") as caught:
        Api(url="http://h", token=f"{token}secret")

    assert "secret" not in str(caught.value)
    assert isinstance(caught.value, StackdError)
