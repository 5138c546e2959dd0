"""Processes: each puts machines into a station and runs it with a driver."""
