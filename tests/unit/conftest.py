"""Property tests measure no time: a busy machine must not fail them."""

from hypothesis import settings

settings.register_profile("untimed", deadline=None, print_blob=True)
settings.load_profile("untimed")
