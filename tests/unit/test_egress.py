"""The egress rules, one by one: what is refused by default, what opens, what restricts, what beats what."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from stackd.http.egress import EgressDeniedError, EgressPolicy, matches, normal_host

PUBLIC = "93.184.216.34"
PUBLIC_6 = "2606:2800:220:1::1"


def policy(*, allow: str = "", deny: str = "", allow_loopback: bool = False) -> EgressPolicy:
    """Rules separated by spaces: what holds a slash is a range, anything else a domain."""
    ranges = {
        name: tuple(ip_network(rule) for rule in rules.split() if "/" in rule)
        for name, rules in (("allow", allow), ("deny", deny))
    }
    domains = {
        name: tuple(rule for rule in rules.split() if "/" not in rule)
        for name, rules in (("allow", allow), ("deny", deny))
    }
    return EgressPolicy(
        allow_domains=domains["allow"],
        allow_ranges=ranges["allow"],
        deny_domains=domains["deny"],
        deny_ranges=ranges["deny"],
        allow_loopback=allow_loopback,
    )


def may_reach(rules: EgressPolicy, host: str, address: str | None = None) -> bool:
    """Whether a request to `host`, which is or resolves to `address`, passes."""
    try:
        rules.check_host(host)
        rules.check_address(host, address or host)
    except EgressDeniedError:
        return False
    return True


# -- without rules


@pytest.mark.parametrize(
    "address",
    [
        PUBLIC,
        PUBLIC_6,
        "8.8.8.8",
        "172.15.255.255",  # one below 172.16.0.0/12
        "172.32.0.0",
        "100.63.255.255",  # one below carrier NAT
        "100.128.0.0",
        "198.20.0.0",
        "::ffff:8.8.8.8",
        "2002:808:808::1",  # 6to4 of 8.8.8.8
        "64:ff9b::808:808",  # NAT64 of 8.8.8.8
    ],
)
def test_a_public_address_is_open(address):
    assert may_reach(policy(), "far.example", address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.255.255.254", "::1",
        "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "fc00::1", "fd12:3456::1",
        "169.254.0.1", "fe80::1", "fe80::1%eth0", "fec0::1",
        "169.254.169.254", "fd00:ec2::254", "100.100.100.200", "168.63.129.16", "192.0.0.192",
        "100.64.0.1", "100.127.255.255",
        "0.0.0.0", "0.1.2.3", "::", "::2",
        "224.0.0.1", "239.255.255.255", "ff02::1", "240.0.0.1", "255.255.255.255",
        "192.0.2.1", "198.51.100.1", "203.0.113.1", "198.18.0.1", "192.88.99.1", "2001:db8::1",
        "2001::7f00:1", "100::1",
    ],
)  # fmt: skip
def test_an_address_that_is_not_public_is_closed(address):
    assert not may_reach(policy(), "far.example", address)


@pytest.mark.parametrize("closed", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "0.0.0.0"])
@pytest.mark.parametrize(
    "form", ["::ffff:{}", "::ffff:0:{}", "::{}", "64:ff9b::{}", "64:ff9b:1::{}", "2002:{hex}::1"]
)
def test_no_ipv6_form_of_a_closed_address_is_open(form, closed):
    first, second, third, fourth = (int(part) for part in closed.split("."))
    high, low = first << 8 | second, third << 8 | fourth

    address = form.format(closed, hex=f"{high:x}:{low:x}")

    assert not may_reach(policy(), "far.example", address)


def test_the_refusal_names_the_host_the_address_and_the_reason():
    with pytest.raises(EgressDeniedError) as denied:
        policy().check_address("intranet.example", "10.1.2.3")

    assert denied.value.message == (
        "request to intranet.example (10.1.2.3) refused: "
        "private and local addresses need an allow range"
    )
    assert (denied.value.code, denied.value.kind) == ("egress.denied", "rejected")
    assert not denied.value.sent


# -- deny


@pytest.mark.parametrize(
    "allow",
    ["far.example", "93.184.216.0/24", "far.example 93.184.216.0/24", "*.example 0.0.0.0/0"],
)
@pytest.mark.parametrize("deny", ["far.example", "93.184.216.34/32", "example", "0.0.0.0/0"])
def test_deny_beats_allow(allow, deny):
    assert may_reach(policy(allow=allow), "far.example", PUBLIC)
    assert not may_reach(policy(allow=allow, deny=deny), "far.example", PUBLIC)


def test_a_denied_range_inside_an_opened_one_stays_closed():
    rules = policy(allow="10.0.0.0/8", deny="10.0.5.0/24")

    assert may_reach(rules, "10.0.4.1")
    assert not may_reach(rules, "10.0.5.1")


def test_deny_beats_loopback_for_development():
    rules = policy(deny="127.0.0.0/8", allow_loopback=True)

    assert not may_reach(rules, "127.0.0.1")
    assert may_reach(rules, "::1")


@pytest.mark.parametrize(
    "address", ["::ffff:8.8.8.8", "2002:808:808::1", "64:ff9b::808:808", "::8.8.8.8"]
)
def test_a_denied_ipv4_address_is_denied_in_every_form(address):
    assert not may_reach(policy(deny="8.8.8.8/32"), "far.example", address)


@pytest.mark.parametrize(
    ("deny", "address"),
    [("2002::/16", "2002:808:808::1"), ("64:ff9b::/96", "64:ff9b::808:808")],
)
def test_a_denied_range_counts_for_the_address_as_it_is_written_too(deny, address):
    assert not may_reach(policy(deny=deny), "far.example", address)


def test_deny_rules_restrict_nothing_else():
    rules = policy(deny="bad.example 8.8.8.0/24")

    assert may_reach(rules, "far.example", PUBLIC)
    assert not rules.is_restricted


# -- allow


@pytest.mark.parametrize(
    ("opened", "address"),
    [
        ("127.0.0.0/8", "127.0.0.1"),
        ("10.0.0.0/8", "10.1.2.3"),
        ("192.168.1.10/32", "192.168.1.10"),
        ("169.254.169.254/32", "169.254.169.254"),
        ("100.64.0.0/10", "100.100.100.200"),
        ("168.63.129.16/32", "168.63.129.16"),
        ("192.0.0.192/32", "192.0.0.192"),
        ("224.0.0.0/4", "224.0.0.1"),
        ("::1/128", "::1"),
        ("fd00::/8", "fd12::1"),
        ("fe80::/10", "fe80::1%eth0"),
        ("fec0::/10", "fec0::1"),
    ],
)
def test_a_range_wholly_private_opens_itself_and_restricts_nothing(opened, address):
    rules = policy(allow=opened)

    assert not may_reach(policy(), address)
    assert may_reach(rules, address)
    assert may_reach(rules, "far.example", PUBLIC)
    assert not rules.is_restricted


def test_an_opened_range_opens_no_other():
    rules = policy(allow="10.0.0.0/8")

    assert not may_reach(rules, "192.168.1.1")
    assert not may_reach(rules, "127.0.0.1")


@pytest.mark.parametrize(
    "rule", ["8.8.8.0/24", "0.0.0.0/0", "::/0", "8.0.0.0/6", "2606::/16", "dns.example"]
)
def test_any_other_allow_rule_restricts_to_what_is_allowed(rule):
    rules = policy(allow=rule)

    assert rules.is_restricted
    assert not may_reach(rules, "far.example", PUBLIC if ":" in rule else PUBLIC_6)


def test_a_restricting_range_lets_its_own_addresses_pass_by_any_name():
    rules = policy(allow="93.184.216.0/24")

    assert may_reach(rules, "far.example", PUBLIC)
    assert may_reach(rules, PUBLIC)
    assert not may_reach(rules, "far.example", "8.8.8.8")


def test_a_range_that_is_partly_public_opens_its_private_part_and_restricts():
    rules = policy(allow="8.0.0.0/5")  # 8.0.0.0 to 15.255.255.255, so 10.0.0.0/8 too

    assert may_reach(rules, "10.0.0.1")
    assert not may_reach(rules, "far.example", PUBLIC)


def test_an_allowed_domain_passes_and_every_other_name_does_not():
    rules = policy(allow="api.example")

    assert may_reach(rules, "api.example", PUBLIC)
    assert may_reach(rules, "v2.api.example", PUBLIC)
    assert not may_reach(rules, "far.example", PUBLIC)
    assert not may_reach(rules, PUBLIC)


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1"])
def test_an_allowed_domain_does_not_open_the_private_address_it_resolves_to(address):
    assert not may_reach(policy(allow="api.example"), "api.example", address)


def test_an_allowed_domain_and_an_opened_range_together_reach_both():
    rules = policy(allow="api.example 10.0.0.0/8")

    assert may_reach(rules, "api.example", PUBLIC)
    assert may_reach(rules, "intranet.example", "10.0.0.1")
    assert not may_reach(rules, "far.example", PUBLIC)


def test_loopback_for_development_opens_loopback_only():
    rules = policy(allow_loopback=True)

    assert may_reach(rules, "127.0.0.1")
    assert may_reach(rules, "localhost", "::1")
    assert may_reach(rules, "localhost", "::ffff:127.0.0.1")
    assert not may_reach(rules, "10.0.0.1")
    assert not may_reach(rules, "0.0.0.0")
    assert not rules.is_restricted


def test_loopback_for_development_stays_open_beside_restricting_rules():
    assert may_reach(policy(allow="api.example", allow_loopback=True), "127.0.0.1")


# -- names


@pytest.mark.parametrize(
    ("rule", "name", "covered"),
    [
        ("x.example", "x.example", True),
        ("x.example", "a.x.example", True),
        ("x.example", "b.a.x.example", True),
        ("x.example", "ax.example", False),
        ("x.example", "example", False),
        ("x.example", "x.example.org", False),
        ("*.x.example", "a.x.example", True),
        ("*.x.example", "b.a.x.example", True),
        ("*.x.example", "x.example", False),
        ("*.x.example", "ax.example", False),
        ("X.Example", "x.example", True),
        ("x.example.", "x.example", True),
        ("localhost", "localhost", True),
    ],
)
def test_a_domain_rule_covers_itself_and_below_and_a_star_only_below(rule, name, covered):
    assert matches(rule, name) is covered


@pytest.mark.parametrize("host", ["X.Example", "x.example.", "X.EXAMPLE..", "a.X.example."])
def test_case_and_trailing_dots_evade_no_rule(host):
    assert not may_reach(policy(deny="x.example"), host, PUBLIC)
    assert may_reach(policy(allow="x.example"), host, PUBLIC)


def test_a_host_is_compared_without_brackets_case_and_trailing_dots():
    assert normal_host("[::1]") == "::1"
    assert normal_host("Far.Example..") == "far.example"


@pytest.mark.parametrize(
    "host",
    [
        "2130706433", "0", "017700000001", "0x7f000001", "0x",
        "127.1", "127.0.1", "0177.0.0.1", "0x7f.1", "0x7f.0.0.0x1", "127.0.0.01", "127.0.0.1.1",
        "127.1.", "0X7F.1", "256.1.1.1", "8.8", "far.example.1",
    ],
)  # fmt: skip
def test_a_number_that_is_no_dotted_quad_is_refused_whatever_is_allowed(host):
    rules = policy(allow="127.0.0.0/8 8.0.0.0/8 example 0.0.0.0/0", allow_loopback=True)

    with pytest.raises(EgressDeniedError, match="four decimal numbers"):
        rules.check_host(host)


@pytest.mark.parametrize(
    "host", ["8.8.8.8", "8.8.8.8.", "1.example", "0x7f.example", "10.0.0.1.nip.example", "::1", "::ffff:1.2.3.4"]
)  # fmt: skip
def test_a_name_or_an_address_in_its_usual_form_is_no_odd_number(host):
    policy().check_host(host)
