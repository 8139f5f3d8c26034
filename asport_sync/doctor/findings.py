"""What the doctor finds: typed findings, and the catalogue of all problems with their meaning and cure."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Mapping


class State(enum.Enum):
    """What a finding says. The values are words of the JSON output."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"
    SKIPPED = "skipped"


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """An entry of the catalogue.

    Attributes:
        state: WARNING or ERROR.
        meaning: What is wrong.
        cure: What to do.
    """

    state: State
    meaning: str
    cure: str


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """One result.

    Attributes:
        id: A name of ``CHECKS`` if the state is OK or SKIPPED, else one of ``PROBLEMS``.
        state: What it says.
        found: What was found, or why the check was skipped.
        cure: What to do; empty unless the state is WARNING or ERROR.
        figures: What was measured, by name: times in seconds, sizes in bytes, rates in bytes per second.
        tunnel: The tunnel's name; empty if it has none, and for findings about the machine or a server.
    """

    id: str
    state: State
    found: str
    cure: str = ""
    tunnel: str = ""
    figures: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def as_dict(self) -> dict[str, object]:
        """Returns dicts, texts and numbers, for JSON."""
        return {**dataclasses.asdict(self), "state": self.state.value}


CHECKS: Mapping[str, str] = {
    "name": "The server's name has IP addresses.",
    "route": "This machine has a route to them, over IPv4 or IPv6.",
    "udp": "UDP reaches the server's port: a QUIC server answers there. No credentials are sent.",
    "authorities": "There are certificate authorities to verify the server with; where the system's are from.",
    "handshake": "The QUIC handshake is complete, with a common application protocol (ALPN).",
    "certificate": "The server's certificate is trusted, has the right name and key, and remains valid for a while.",
    "clock": "No file of the configuration is from the future, as seen by this machine's clock.",
    "clock-skew": "This machine's clock against the server's, as far as an authenticated answer tells it.",
    "authentication": "The server accepts the user and their password.",
    "port": "The server opens a public port in `expected_port_range`.",
    "local": "The local service accepts TCP connections, and its UDP port is bound. Nothing is sent to it.",
    "tcp": "Bytes cross the public port over TCP and come back unchanged; with the throughput.",
    "udp-native": "Datagrams cross the public port and come back, carried in QUIC DATAGRAM frames.",
    "udp-quic": "Datagrams cross the public port and come back, carried on QUIC streams.",
    "path": "Round-trip time, loss and largest packet of the path to the server.",
    "nat": "Whether a NAT is in between, as far as this side can tell.",
    "nat-binding": "How long the binding of a NAT lasts without packets. Only with `--nat`.",
    "buffers": "The kernel grants QUIC sockets large enough buffers.",
    "descriptors": "This process may open as many descriptors as its connections need.",
    "ipv6": "The machine has IPv6 where the configuration uses it.",
    "running": "A server with this configuration runs, and answers.",
    "listen": "The UDP address and port of the server can be bound, or a QUIC server answers there.",
    "files": "Files with secrets are readable by their owner only.",
    "ports": "Public ports that users may open are free and may be bound.",
}
"""What each check looks at, in plain words. Its id is the id of findings that are OK or SKIPPED."""

_FIREWALL = "allow UDP to that port in the firewall of the server, of its provider, and of this network"
_OTHER_PROGRAM = "check the port in the key server; `asport-sync status` on the server's machine shows its address"


def _error(meaning: str, cure: str) -> Problem:
    return Problem(State.ERROR, meaning, cure)


def _warning(meaning: str, cure: str) -> Problem:
    return Problem(State.WARNING, meaning, cure)


PROBLEMS: Mapping[str, Problem] = {
    # names
    "name-unknown": _error(
        "The server's name does not exist, or has no address.",
        "correct the key server, or create an A or AAAA record for the name",
    ),
    "name-no-answer": _error(
        "No DNS server answers.",
        "check this machine's network and /etc/resolv.conf; an IP address in the key server needs no DNS",
    ),
    "no-route": _error(
        "This machine has no route to any address of the server.",
        "connect this machine to a network with that kind of address (IPv4 or IPv6)",
    ),
    "route-partial": _warning(
        "This machine has no route to some addresses of the server, usually those of IPv6.",
        "nothing, if the other addresses work: they are used; else give this machine that kind of address",
    ),
    # reachability
    "udp-blocked": _error(
        "No packet comes back from the server's UDP port: a firewall drops packets on the way there or back, or the "
        "address belongs to no machine.",
        _FIREWALL,
    ),
    "udp-closed": _error(
        "The machine answers that no program has this UDP port (ICMP port unreachable): the server does not run, or "
        "has another port.",
        "start the server; compare the port in the key server with that of the server's configuration",
    ),
    "udp-unreachable": _error(
        "A router reports that the server's machine or network cannot be reached (ICMP).",
        "check the address, and whether the server's machine is up",
    ),
    "udp-forbidden": _error(
        "This machine's own firewall forbids sending to the server.",
        "allow outgoing UDP to that port on this machine",
    ),
    "not-quic": _error("Something answers on that UDP port, but not with QUIC.", _OTHER_PROGRAM),
    "udp-partial": _warning(
        "Some addresses of the server do not answer; the others do.",
        "allow UDP to the port on all addresses of the server, or remove the DNS records of the others",
    ),
    # handshake
    "no-common-version": _error("The server speaks QUIC, but not version 1.", "update the server"),
    "alpn-refused": _error(
        "A QUIC server answers, but does not speak the application protocol of the key alpn: it is not an ASPORT "
        "server, or has another alpn.",
        f"compare alpn on both sides; {_OTHER_PROGRAM}",
    ),
    "server-full": _error(
        "The server accepts no more connections, in total or from this address.",
        "try again later; on the server compare max_clients_total",
    ),
    "handshake-stalled": _error(
        "The server's machine answers, but the QUIC handshake does not complete: large packets may be lost on the "
        "path, which must carry 1,200 bytes of UDP payload, or the server is overloaded.",
        "check the MTU of VPNs and tunnels on the path, and the load of the server",
    ),
    "handshake-failed": _error(
        "The QUIC handshake fails for another reason.", "see what was found, and the server's log"
    ),
    "trust-unusable": _error(
        "There is no certificate authority to verify the server with, or a certificate file or key log that the "
        "configuration or the environment names is not usable.",
        "see what was found: it names the file and the key, or what to install",
    ),
    "certificate-pin": _error(
        "The key of the server's certificate is none of those in certificates.pins: the server has a new key, or "
        "another machine poses as the server.",
        "compare with what `asport-sync pin` prints on the server, and only then change certificates.pins",
    ),
    "certificate-name": _error(
        "The server's certificate is for other names.",
        "use one of its names in the key server or server_name, or give the server a certificate for this name",
    ),
    "certificate-expired": _error(
        "The server's certificate, or that of an issuer, has expired.",
        "renew it and reload the server; if it is valid, correct this machine's clock",
    ),
    "certificate-early": _error(
        "The server's certificate, or that of an issuer, is not valid yet.",
        "correct this machine's clock, or wait",
    ),
    "certificate-untrusted": _error(
        "This client does not trust the issuer of the server's certificate.",
        "for a self-signed certificate, such as that of init, add the pin that asport-sync pin prints on the server: "
        "?pin=... in the URI, or certificates.pins with pins_only; without a pin, the client's --trust-on-first-use "
        "trusts the key that the server has now; otherwise the server's file needs the issuers' certificates after its "
        "own, and a private authority has to be in certificates.paths",
    ),
    "certificate-rejected": _error(
        "The server's certificate is rejected for another reason.",
        "see what was found; `asport-sync server check`, on the server, says what is wrong with its certificate",
    ),
    "certificate-expires": _warning(
        "A certificate expires within two weeks.", "renew it and reload the server; automate that"
    ),
    "certificate-unverified": _warning(
        "Nobody verifies that the server is the right one: skip_certificate_verification is set without pins.",
        "set certificates.pins to what `asport-sync pin` prints on the server",
    ),
    # authentication and port
    "authentication-failed": _error(
        "The server does not know the UUID, or the password is wrong.",
        "compare uuid and password with the server's users",
    ),
    "not-asport": _error(
        "A QUIC server with the right application protocol does not answer the first command of ASPORT: it is "
        "another program, or overloaded.",
        _OTHER_PROGRAM,
    ),
    "refused": _error(
        "The server closes the connection without a reason: a wrong password with authentication_failed_reply: false, "
        "or another dialect.",
        "see the server's log; compare dialect, uuid and password",
    ),
    "port-denied": _error(
        "The user may not open any port of expected_port_range.",
        "ask for a port that is in allow_ports of the server",
    ),
    "port-taken": _error(
        "The server cannot open any port of expected_port_range: another client or program has it, or the user has as "
        "many clients already as max_clients allows.",
        "end the other client, ask for another port, or raise max_clients of the user; the server's log says which",
    ),
    "network-denied": _error(
        "The user may not use the requested network (tcp, udp, or both).",
        "change network, or allow_network on the server",
    ),
    "connection-lost": _error(
        "The connection fails after a complete handshake, before the public port is open.",
        "see what was found, and the server's log",
    ),
    # the local service
    "local-refused": _error(
        "Nothing accepts connections at the address of the local service.",
        "start the service, or correct the key local",
    ),
    "local-silent": _error(
        "The address of the local service does not answer in time.",
        "check the address in the key local, and the firewall of that machine",
    ),
    "local-unknown": _error("The name of the local service cannot be resolved.", "correct the key local"),
    "local-partial": _warning(
        "Some addresses of the local service do not accept connections; the others do.",
        "nothing, if they are spares that are down: the next address is tried; else start the service there",
    ),
    "local-udp": _warning(
        "No program of this machine has the UDP port of the local service.",
        "start the service, or correct the key local; if the service has TCP only, set network: tcp",
    ),
    # through the public port
    "tcp-blocked": _error(
        "No TCP connection to the public port is possible, although the server has opened it.",
        "allow TCP to the public ports in the firewall of the server and its provider; bind_ip of the server must be "
        "an address that visitors reach; its allow_from and deny_from apply to this machine too",
    ),
    "tcp-broken": _error(
        "A TCP connection through the public port ends early, stalls, or returns other bytes.",
        "see the log of client and server; bandwidth, allow_from and max_connections of the server apply",
    ),
    "udp-no-answer": _error(
        "No datagram through the public port comes back.",
        "allow UDP to the public ports in the firewall of the server and its provider; bind_ip, allow_from and "
        "deny_from of the server apply",
    ),
    "udp-loss": _warning(
        "Datagrams through the public port are lost.",
        "see loss and buffers; with udp_forward_mode: quic lost ones are sent again",
    ),
    "path-loss": _warning(
        "The path to the server loses packets.",
        "check Wi-Fi, cables and the load of this network; congestion_control: bbr copes best with it",
    ),
    "path-mtu": _warning(
        "The path carries only small packets, less than the 1,280 bytes of IPv6.",
        "check the MTU of VPNs and tunnels on the path; nothing has to be set, but throughput is lower",
    ),
    # NAT
    "nat-binding-short": _error(
        "A NAT forgets the connection sooner than the next keep-alive probe follows.",
        "set keep_alive below the time found",
    ),
    # the machine
    "buffers-small": _warning(
        "The kernel limits the buffers of UDP sockets, so that packets are lost at high rates.",
        "sysctl net.core.rmem_max=8388608 net.core.wmem_max=8388608, also in /etc/sysctl.d",
    ),
    "descriptors-few": _warning(
        "The limit of open descriptors is below what the connections may need.",
        "set LimitNOFILE= in the unit file, or ulimit -Hn; or lower max_connections",
    ),
    "ipv6-missing": _warning(
        "The configuration uses IPv6, but this machine has none.",
        "nothing, if all others use IPv4; else give this machine an IPv6 address",
    ),
    "clock-wrong": _error(
        "This machine's clock contradicts the dates of its own files or certificates.",
        "set the clock; run an NTP client, such as systemd-timesyncd",
    ),
    # a server
    "certificate-unusable": _error(
        "Certificate or private key of the server cannot be used.", "correct the file or the key"
    ),
    "certificate-unsuitable": _error(
        "Clients reject the server's certificate.", "create a certificate as docs/operations.md says"
    ),
    "certificate-stale": _warning(
        "The running server uses another certificate than the file has now.", "asport-sync reload"
    ),
    "files-exposed": _warning(
        "Others may read or change a file with secrets.", "chmod 600 FILE, and chown it to the user that runs this"
    ),
    "control-silent": _error(
        "The control socket exists, but nothing answers there: the server hangs, or ended without removing it.",
        "restart the server",
    ),
    "control-taken": _warning(
        "Another configuration runs on this control socket: the commands for a running server reach that one.",
        "end that server, or set control_socket of one of the two to a path of its own; if only the address in the "
        "file is new, restart the server",
    ),
    "not-answering": _error("The server runs, but no QUIC server answers at its address.", "see its log; restart it"),
    "listen-taken": _error(
        "Another program has the UDP address and port of the server.",
        "end it (`ss -ulnp` shows it), or change the key server",
    ),
    "listen-forbidden": _error(
        "This user may not bind the server's port, because it is privileged.",
        "run it as root or with CAP_NET_BIND_SERVICE (AmbientCapabilities= of the unit), or use a port from 1024 on",
    ),
    "listen-impossible": _error("The server's address cannot be bound for another reason.", "see what was found"),
    "address-absent": _warning(
        "This machine does not have an address that the configuration names.",
        "nothing, if it gets the address later; else correct server or bind_ip",
    ),
    "ports-taken": _warning(
        "Other programs have some of the few public ports that users may open.",
        "end them (`ss -tulnp` shows them), or change allow_ports",
    ),
    "ports-none": _error(
        "No public port that users of an entry of proxies may open is free.",
        "end the programs that have them (`ss -tulnp` shows them), or change allow_ports",
    ),
    "ports-forbidden": _warning(
        "This user may not bind some ports of allow_ports, because they are privileged.",
        "run it as root or with CAP_NET_BIND_SERVICE (AmbientCapabilities= of the unit), or allow other ports",
    ),
}
"""All problems, by id. docs/doctor.md lists them."""


class Findings:
    """Collects findings in the order in which they are found. One thread.

    Args:
        report: Called with each finding.
    """

    def __init__(self, report: Callable[[Finding], object] | None = None) -> None:
        self.all: list[Finding] = []
        self.tunnel = ""
        self._report = report

    def ok(self, check: str, found: str, **figures: float) -> None:
        """Adds that a check found no problem."""
        assert check in CHECKS, check
        self._add(Finding(check, State.OK, found, tunnel=self.tunnel, figures=figures))

    def skipped(self, check: str, why: str) -> None:
        """Adds that a check was not made."""
        assert check in CHECKS, check
        self._add(Finding(check, State.SKIPPED, why, tunnel=self.tunnel))

    def problem(self, id: str, found: str, cure: str | None = None, **figures: float) -> None:  # noqa: A002
        """Adds a problem of the catalogue; ``cure`` replaces the one there."""
        entry = PROBLEMS[id]
        self._add(Finding(id, entry.state, found, entry.cure if cure is None else cure, self.tunnel, figures))

    def _add(self, finding: Finding) -> None:
        self.all.append(finding)
        if self._report is not None:
            self._report(finding)
