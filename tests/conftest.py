"""Settings for all rings of tests."""

from hypothesis import settings

# Virtual machines share the processors with these: time says nothing about correctness here.
settings.register_profile("kjump", deadline=None)
settings.load_profile("kjump")
