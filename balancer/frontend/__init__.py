"""The client listener: aiohttp accepts, parses and limits; the pipeline serves."""
