"""How the daemon's HTTP steps go out, by its settings."""

from __future__ import annotations

from pathlib import Path

from support.daemon import DaemonProcess, FarSide, running

PASSWORD = "s3cret-0f-the-proxy"
CALLING = """
id: calling
nodes:
  - {id: start, type: trigger.time.manual}
  - {id: call, type: action.http.request, params: {url: "{{ start.url }}"}}
edges: [{from: start, to: call}]
"""


def outcome(daemon: DaemonProcess, url: str) -> dict[str, object]:
    execution = daemon.until(daemon.begin("calling", {"url": url}), "completed", "failed")
    return {node["id"]: node for node in execution["nodes"]}["call"]


def test_http_steps_go_through_the_proxy_of_the_settings(tmp_path: Path) -> None:
    with FarSide().listening() as proxy, FarSide().listening() as direct:
        given = proxy.url.replace("//", f"//user:{PASSWORD}@")
        with running(tmp_path, STACKD_HTTP_PROXY=given, STACKD_NO_PROXY="127.0.0.0/8") as daemon:
            daemon.load(CALLING)
            through = outcome(daemon, "http://far.invalid/status/200")  # only a proxy knows it
            beside = outcome(daemon, f"{direct.url}/near")
            denied = outcome(daemon, "http://10.0.0.1/")
            log = "\n".join(map(str, daemon._log_lines()))

    assert through["output"]["body"] == {"path": "http://far.invalid/status/200"}  # type: ignore[index]
    assert beside["output"]["body"] == {"path": "/near"}  # type: ignore[index]
    assert denied["error"]["code"] == "egress.denied"  # type: ignore[index]
    assert [path for path, _ in proxy.hits] == ["http://far.invalid/status/200"]
    assert PASSWORD not in log


def test_the_daemon_does_not_start_with_certificates_that_are_none(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("nothing of the kind")
    daemon = DaemonProcess(tmp_path / "state", STACKD_TLS_CA_FILE=str(file))
    try:
        daemon.spawn()
        assert daemon.wait() == 78
        assert f"STACKD_TLS_CA_FILE {file}" in daemon.tail()
    finally:
        daemon.kill()
