"""The scorecard: the load generator and the tunnels it measures."""
