"""The doctor: why a client or a server does not work, and what to do. docs/doctor.md lists what it can find."""

from asport_sync.doctor.client import check_client
from asport_sync.doctor.findings import CHECKS, PROBLEMS, Finding, Problem, State
from asport_sync.doctor.server import check_server

__all__ = ["CHECKS", "PROBLEMS", "Finding", "Problem", "State", "check_client", "check_server"]
