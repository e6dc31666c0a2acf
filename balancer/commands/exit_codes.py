"""Exit codes, the same for every command."""

DONE = 0
FAILED = 1
BAD_USAGE = 2
MISSING = 3
