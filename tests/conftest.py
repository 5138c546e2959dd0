"""What holds for all tests."""

from hypothesis import settings

# The same examples at every run: a test that fails does so because of a change, and not by luck.
settings.register_profile("steady", derandomize=True)
settings.load_profile("steady")
