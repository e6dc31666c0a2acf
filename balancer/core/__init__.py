"""The frozen nouns of the house: what a request asks for, what waits, what was decided and lent.

No I/O and no settings here, so the same nouns serve the server, property tests and simulation.
"""
