"""The admin listener: metrics, health in full, and what the balancer is doing."""
