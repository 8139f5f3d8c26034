"""A view into a running client or server, and the means to change it: the control socket and the status address.

Both speak HTTP and are served by one WSGI application (``application.py``), which knows a client or a server only as
``Operations``. docs/control.md describes them for their users.
"""
