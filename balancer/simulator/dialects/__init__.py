"""Ollama's wire forms: each dialect reads its requests and writes its answers, sans I/O."""
