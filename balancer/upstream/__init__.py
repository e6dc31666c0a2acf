"""The way to instances: one pooled client for all traffic, and a control client for probes."""
