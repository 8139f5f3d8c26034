"""Find or build the native library under asport_sync. This folder contains no third-party source.

Used during the build and by the Makefile; never installed, never imported at run time, and without dependencies
outside the standard library.

- ``ngtcp2``: chooses the ngtcp2 to link, and defines the order in which the possibilities are tried.
- ``pinned``: the release of ngtcp2 that is built, and where it comes from.
- ``static_build``: builds a static ngtcp2 from source into the cache folder.
- ``adjustments``: what that build changes in the source, and why.
- ``apt``: fetches packages with apt without touching the system's own apt state.
- ``distribution``: package names, minimum versions and commands (``packages.json``).
- ``machine``: installs what the Makefile needs, or says how to.
- ``system_kind``: unpacks the distribution's ngtcp2 packages without installing them, to build and test against them.
"""
