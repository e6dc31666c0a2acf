"""Ollama's requests for runtimes that speak OpenAI's dialect alone, and their answers in Ollama's shapes.

Pure: a request is translated once a try, the answer as its bytes come in. What a runtime has no
counterpart for is refused by its name, never left out in silence.
"""
