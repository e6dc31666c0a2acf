"""Ollama Balancer: one address in front of every Ollama."""

__version__ = "0.1.0"
