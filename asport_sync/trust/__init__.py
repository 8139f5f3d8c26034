"""What a server and its clients need to trust each other: certificates, users, and the files with both.

For commands and programs that set up a server; none of it is imported by a running client or server.
"""

from asport_sync.trust.new_server import NewServer, create_server
from asport_sync.trust.users import NewPassword, User, add_user, list_users, remove_user, rotate_password

__all__ = [
    "NewPassword",
    "NewServer",
    "User",
    "add_user",
    "create_server",
    "list_users",
    "remove_user",
    "rotate_password",
]
