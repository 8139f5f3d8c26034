"""How the native library under asport_sync is found or built. There is no third-party source in this folder.

Used while the package is built and by the Makefile; never installed, never imported at run time, and without any
dependency outside the standard library.

- ``ngtcp2``: which ngtcp2 to link, and in which order the possibilities are tried.
- ``static_build``: builds a static ngtcp2 from its source into the cache folder.
- ``adjustments``: what that build changes in the source, and why.
- ``apt``: fetches packages with apt without touching the system's own apt state.
- ``distribution``: package names, minimum versions and commands (``packages.json``).
- ``machine``: installs what the Makefile needs, or says how to.
- ``system_kind``: unpacks the distribution's own ngtcp2 packages beside the system, to build and test against them.
"""
