"""The scorecard: asport-sync measured beside other tunnels, see `python -m bench --help`."""
