"""Measurements of Raskid and its peers; run `python -m benchmarks.tasks` or `python -m benchmarks.messages`."""
