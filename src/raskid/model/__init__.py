"""Plain vocabulary of the system: ids, topic names, peers, errors. Imports nothing of raskid above it."""
