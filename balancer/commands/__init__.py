"""What each command does once its arguments are read. Each returns an exit code."""
