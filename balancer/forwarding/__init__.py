"""From an instance to the client: the relay, the fan-out over stores, and answers of our own."""
