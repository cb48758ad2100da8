"""The service on a kernel of its own: installed, hung, restarted under load, and killed by the kernel for its memory."""

from __future__ import annotations

from support.daemon import eventually
from support.operated import SERVICE, SOCKET, Service, accepted, others

EXPOSED_AT_MOST = 31  # tenths, as tests/house/test_units.py has it
CONTROLLERS = {"cpu", "memory", "pids"}
MEMORY = "112M"  # twice what it takes when it has started
STARTS = 6  # in ten minutes, after which systemd gives up
# More than fits: some large bodies at once.
FEAST = """
import http.client, json, threading
body = json.dumps({"n": [["x" * 10] * 8] * 80_000}).encode()
def deliver():
    connection = http.client.HTTPConnection("127.0.0.1", 5000, timeout=120)
    try:
        connection.request("POST", "/api/webhooks/hooked", body, {"Content-Type": "application/json"})
        connection.getresponse()
    except (OSError, http.client.HTTPException):
        pass  # it was killed over it
at_once = [threading.Thread(target=deliver) for _ in range(6)]
for one in at_once:
    one.start()
for one in at_once:
    one.join()
"""


def test_install_has_started_what_is_ready_and_enabled_it(service: Service) -> None:
    assert service.shown("ActiveState") == "active"
    assert service.shown("StatusText").startswith("ready: 5 services")
    assert service.machine.stackd("health").stdout == "healthy\n"
    assert service.ctl("is-enabled", "--quiet", SERVICE, SOCKET) == 0
    again = service.machine.stackd("systemd", "install", "--now")
    assert again.stdout == "nothing has changed\n"


def test_systemd_has_nothing_to_say_of_the_installed_units(service: Service) -> None:
    verified = service.machine.run("systemd-analyze", "verify", "--man=no", SERVICE, SOCKET)

    assert verified.stdout + verified.stderr == ""
    assert "stackd" not in service.machine.run("systemctl", "--failed", "--quiet").stdout


def test_the_installed_service_exposes_no_more_than_it_needs(service: Service) -> None:
    words = (f"--threshold={EXPOSED_AT_MOST}", "--no-pager")
    unit = f"/etc/systemd/system/{SERVICE}"

    service.machine.run("systemd-analyze", "security", *words, "--offline=true", unit)
    service.machine.run("systemd-analyze", "security", *words, SERVICE)


def test_its_cgroup_with_real_controllers_is_its_own(service: Service) -> None:
    group = f"/sys/fs/cgroup{service.shown('ControlGroup')}"
    told = service.machine.run(
        "stat", "--format=%U", group, f"{group}/cgroup.procs", f"{group}/cgroup.subtree_control"
    )

    assert set(told.stdout.split()) == {"stackd"}
    there = service.machine.run("cat", f"{group}/cgroup.controllers").stdout.split()
    assert set(there) >= CONTROLLERS
    assert service.machine.run("cat", f"{group}/pids.max").stdout == "4096\n"


def test_the_key_comes_as_a_credential_that_nobody_else_can_read(service: Service) -> None:
    rows = service.ask("/api/config").json["settings"]
    (key,) = [row for row in rows if row["name"] == "ENCRYPTION_MASTER_KEY"]

    assert key["value"] == "(set)"
    assert key["source"] == f"/run/credentials/{SERVICE}/encryption_master_key"
    read = ("setpriv", "--reuid=nobody", "--clear-groups", "cat", key["source"])
    assert "Permission denied" in service.machine.run(*read, check=False).stderr


def test_restarts_under_steady_deliveries_refuse_none_and_lose_none(service: Service) -> None:
    with service.delivering() as deliveries:
        for _ in range(2):
            deliveries.lines(deliveries.stdout.count("\n") + 40)
            before = service.pid
            service.ctl("restart", SERVICE)
            assert service.pid != before
        deliveries.lines(deliveries.stdout.count("\n") + 40)
        told = deliveries.end()

    assert others(told) == set()
    assert len(accepted(told)) == len(told)
    service.all_complete(accepted(told))
    service.fits_together()


def test_one_that_hangs_is_ended_by_the_watchdog_and_loses_nothing(service: Service) -> None:
    before = service.pid
    with service.delivering() as deliveries:
        deliveries.lines(40)
        service.machine.run("kill", "-STOP", str(before))

        service.again(before)
        deliveries.lines(deliveries.stdout.count("\n") + 40)
        told = deliveries.end()

    assert service.shown("NRestarts") == "1"
    said = service.machine.journal(f"--unit={SERVICE}")
    assert "Watchdog timeout (limit 20s)!" in said
    assert f"{SERVICE}: Failed with result 'watchdog'." in said
    service.all_complete(accepted(told))
    service.fits_together()


def test_one_killed_for_its_memory_is_active_again_and_loses_nothing(service: Service) -> None:
    def is_killed_while_fed() -> bool:
        service.machine.run("python3", "-c", FEAST)
        return "Memory cgroup out of memory: Killed process" in service.machine.journal("--dmesg")

    with service.edited(f"MemoryMax={MEMORY}"):
        service.ctl("restart", SERVICE)
        before = service.pid
        with service.delivering() as deliveries:
            deliveries.lines(40)
            eventually("it is killed", is_killed_while_fed, within=180)
            service.again(before)
            deliveries.lines(deliveries.stdout.count("\n") + 40)
            told = deliveries.end()
        restarts = int(service.shown("NRestarts"))

    said = service.machine.journal(f"--unit={SERVICE}")
    assert "A process of this unit has been killed by the OOM killer." in said
    assert 1 <= restarts < STARTS
    service.all_complete(accepted(told))
    service.ctl("restart", SERVICE)
    service.fits_together()
