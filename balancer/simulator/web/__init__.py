"""The HTTP side of the simulated server: routes, framing, faults that strike connections."""
