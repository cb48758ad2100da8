"""Alertmanager: an alert goes out by generic HTTP, and what it makes of that comes back as a webhook."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from support.connectors import action
from support.daemon import DaemonProcess, eventually
from support.daemon import running as stackd
from support.desk import Desk
from support.foreign import Foreign, needs_program, running

pytestmark = needs_program("prometheus-alertmanager", "Debian's package of that name")

WATCH = """
id: alerted
nodes:
  - {id: hook, type: trigger.webhook.inbound, params: {path: alerts}}
  - {id: told, type: transform.data.set, params: {values: {status: "{{ hook.body.status }}", alert: "{{ hook.body.alerts[0].labels.alertname }}"}}}
edges: [{from: hook, to: told}]
"""
CONFIG = """
route: {{receiver: stackd, group_wait: 0s, group_interval: 1s}}
receivers:
  - name: stackd
    webhook_configs: [{{url: "{url}/api/webhooks/alerts"}}]
"""
ALERTS = {"parameters": {"properties": {"alerts": {"x-in": "body", "x-as": "$", "type": "array"}}}}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    with stackd(tmp_path_factory.mktemp("watching")) as started:
        started.load(WATCH)
        yield started


@pytest.fixture(scope="module")
def alertmanager(
    daemon: DaemonProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Foreign]:
    folder = Path(tmp_path_factory.mktemp("alertmanager"))
    (folder / "config.yml").write_text(CONFIG.format(url=daemon.url))
    words = (
        "prometheus-alertmanager", "--config.file=config.yml", "--storage.path=data",
        "--web.listen-address=127.0.0.1:{port}", "--cluster.listen-address=",
    )  # fmt: skip
    with running(folder / "log", *words) as server:
        yield server


async def test_an_alert_that_we_post_comes_back_as_an_execution(
    desk: Desk, alertmanager: Foreign, daemon: DaemonProcess
) -> None:
    url = f"{alertmanager.url}/api/v2"
    alert = {
        "labels": {"alertname": "DiskFull", "host": "nas"},
        "annotations": {"text": "ä & 95 %"},
    }

    await desk.ask(url, action("a", "POST", "/alerts", **ALERTS), {"alerts": [alert]})
    listed = await desk.ask(
        url,
        action("a", "GET", "/alerts", style="repeat"),
        {"filter": ['host="nas"', "alertname=~Disk.*"]},
    )

    assert [one["annotations"] for one in listed["items"]] == [alert["annotations"]]

    output = await anyio.to_thread.run_sync(_first_output, daemon)
    assert output == {"status": "firing", "alert": "DiskFull"}


def _first_output(daemon: DaemonProcess) -> Any:
    """Of the first execution that is done."""

    def ended() -> list[str]:
        items = daemon.http("GET", "/api/executions?status=completed").json["items"]
        return [one["id"] for one in items]

    return daemon.execution(eventually("the webhook has come", ended)[-1])["output"]


async def test_a_silence_is_made_and_ended(desk: Desk, alertmanager: Foreign) -> None:
    url = f"{alertmanager.url}/api/v2"
    matcher = {"name": "host", "value": "nas", "isRegex": False, "isEqual": True}
    silence = {
        "matchers": [matcher], "startsAt": "2030-01-01T00:00:00Z", "endsAt": "2030-01-02T00:00:00Z",
        "createdBy": "stackd", "comment": "moving house",
    }  # fmt: skip
    made = await desk.ask(url, action("a", "POST", "/silences"), silence)

    gone = await desk.ask(
        url, action("a", "DELETE", "/silence/{id}", select="status"), {"id": made["silenceID"]}
    )
    kept = await desk.ask(url, action("a", "GET", "/silence/{id}"), {"id": made["silenceID"]})

    assert (gone, kept["status"]["state"]) == (200, "expired")
