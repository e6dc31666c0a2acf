"""Where a request goes now: filter, score, pick. Pure: no I/O, time and chance come in as parameters."""
