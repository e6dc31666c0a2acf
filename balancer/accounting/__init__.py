"""What happened: one record a request, told once at its end to log and metrics."""
