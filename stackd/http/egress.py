"""Which targets an outgoing request may reach. Pure: names and addresses in, a refusal or nothing out.

What decides is the address that is connected to: names are judged before they are resolved, addresses after,
and the connection is made to exactly the address that was judged.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

from stackd.core.errors import NodeError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_LOOPBACK: Final = (ip_network("127.0.0.0/8"), ip_network("::1/128"))

# What a person may have at home: RFC 1918, RFC 4193, shared space (RFC 6598), and the machine itself.
_OWN: Final = (
    *_LOOPBACK,
    ip_network("10.0.0.0/8"),
    ip_network("172.16.0.0/12"),
    ip_network("192.168.0.0/16"),
    ip_network("100.64.0.0/10"),
    ip_network("fc00::/7"),
)
_OWN_METADATA: Final = (ip_network("100.100.100.200/32"), ip_network("fd00:ec2::254/128"))

# Beyond what `ipaddress` calls not global (IANA special-purpose registries).
_CLOSED: Final = (
    ip_network("100.64.0.0/10"),  # carrier NAT, RFC 6598
    ip_network("168.63.129.16/32"),  # a cloud's metadata on a public address
    ip_network("192.0.0.0/24"),  # protocol assignments, RFC 6890; 192.0.0.192 is a cloud's metadata
    ip_network("192.88.99.0/24"),  # 6to4 relays, RFC 7526
    ip_network("224.0.0.0/4"),  # multicast
    ip_network(
        "64:ff9b:1::/48"
    ),  # a network's own NAT64, RFC 8215: leads to no address we could judge
    ip_network("fec0::/10"),  # site-local, RFC 3879
    ip_network("ff00::/8"),  # multicast
)
_NAT64: Final = ip_network("64:ff9b::/96")  # RFC 6052
_ODD_ADDRESS: Final = re.compile(r"([^:]*\.)?([0-9]+|0x[0-9a-f]*)")  # its last label is a number
_COMPATIBLE: Final = ip_network("::/96")  # IPv4-compatible, RFC 4291 2.5.5.1


class EgressDeniedError(NodeError):
    """The operator's rules refuse this target; to it nothing was sent.

    `sent` is true if it was reached by a redirect: then the far side that redirected has seen the request.
    """

    code = "egress.denied"

    def __init__(self, host: str, reason: str, *, sent: bool = False) -> None:
        super().__init__(f"request to {host} refused: {reason}", kind="rejected", sent=sent)
        self.host = host
        self.reason = reason


@dataclass(frozen=True, slots=True)
class EgressPolicy:
    """The rules. Deny beats allow.

    Private, loopback, link-local and metadata addresses are refused unless an allow range covers them. An
    allow range wholly inside private space opens that range and restricts nothing; any other allow rule
    leaves only what an allow rule matches. A domain matches itself and what is below it; `*.name` only what
    is below. Domains and hosts are in their ASCII form.

    Attributes:
        allow_loopback: opens 127.0.0.0/8 and ::1, for development.
        allow_private: opens the networks that are somebody's own, and this machine; never link-local addresses,
            where clouds keep their metadata.
    """

    allow_domains: tuple[str, ...] = ()
    allow_ranges: tuple[Network, ...] = ()
    deny_domains: tuple[str, ...] = ()
    deny_ranges: tuple[Network, ...] = ()
    allow_loopback: bool = False
    allow_private: bool = False

    @property
    def is_restricted(self) -> bool:
        """Whether public targets need an allow rule."""
        return bool(self.allow_domains) or any(not _is_closed_range(r) for r in self.allow_ranges)

    def check_host(self, host: str) -> None:
        """Refuse a name the rules deny, and a number that some resolvers read as an address.

        Raises:
            EgressDeniedError: naming the rule.
        """
        name = normal_host(host)
        if _ODD_ADDRESS.fullmatch(name) and not _is_dotted_quad(name):
            raise EgressDeniedError(host, "an IPv4 address is written as four decimal numbers")
        for rule in self.deny_domains:
            if matches(rule, name):
                raise EgressDeniedError(host, f"the deny list holds {rule}")

    def check_address(self, host: str, address: str) -> None:
        """Refuse to connect to `address` for a request to `host`.

        Raises:
            EgressDeniedError: naming the address and the rule.
        """
        given = ip_address(address.partition("%")[0])
        ip = _effective(given)
        shown = host if normal_host(host) == str(ip) else f"{host} ({ip})"
        for rule in self.deny_ranges:
            if ip in rule or given in rule:
                raise EgressDeniedError(shown, f"the deny list holds {rule}")
        if any(ip in rule for rule in self.allow_ranges):
            return
        if is_closed(ip):
            if self.allow_loopback and any(ip in net for net in _LOOPBACK):
                return
            if self.allow_private and _is_own(ip):
                return
            raise EgressDeniedError(shown, "private and local addresses need an allow range")
        if self.is_restricted and not self._allows_name(host):
            raise _no_rule(shown)

    def check_unresolved(self, host: str) -> None:
        """Refuse a name whose addresses only a proxy knows, where its name alone does not allow it.

        Raises:
            EgressDeniedError: some allow rule is needed.
        """
        if self.is_restricted and not self._allows_name(host):
            raise _no_rule(host)

    def _allows_name(self, host: str) -> bool:
        return any(matches(rule, normal_host(host)) for rule in self.allow_domains)


def _is_own(ip: Address) -> bool:
    """Whether it is an address of a private network, and not where a cloud keeps its metadata in one."""
    return any(ip in net for net in _OWN) and not any(ip in net for net in _OWN_METADATA)


def _no_rule(shown: str) -> EgressDeniedError:
    return EgressDeniedError(shown, "no allow rule matches")


def normal_host(host: str) -> str:
    return host.strip("[]").rstrip(".").lower()


def matches(rule: str, name: str) -> bool:
    """Whether the domain rule `rule` covers the host `name`."""
    bare = rule.lower().removeprefix("*.").strip(".")
    return name.endswith(f".{bare}") or (name == bare and not rule.startswith("*."))


def _is_dotted_quad(name: str) -> bool:
    try:
        IPv4Address(name)
    except ValueError:
        return False
    return True


def is_closed(ip: Address) -> bool:
    """Whether `ip` is anything but an ordinary public unicast address."""
    return (
        not ip.is_global
        or ip.is_reserved
        or any(ip.version == net.version and ip in net for net in _CLOSED)
    )


def _is_closed_range(network: Network) -> bool:
    """Whether every address of `network` is refused by default: it then opens, and restricts nothing."""
    return network.is_private or any(
        network.version == net.version and network.subnet_of(net)  # type: ignore[arg-type]  # same version
        for net in (*_CLOSED, *_LOOPBACK)
    )


def _effective(ip: Address) -> Address:
    """The IPv4 address that an IPv6 form of it leads to, else the address itself."""
    if isinstance(ip, IPv4Address):
        return ip
    if ip.ipv4_mapped is not None:
        return ip.ipv4_mapped
    if ip.sixtofour is not None:
        return ip.sixtofour
    if ip in _NAT64 or (ip in _COMPATIBLE and int(ip) > 0xFFFF):
        return IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip
