"""Bytes to operations and back: routes, bodies, error bodies, stream endings. Sans-I/O and pure."""
