"""May a request enter, and in what order: identity, limits, the queue."""
