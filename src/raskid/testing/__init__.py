"""Tools for tests: a pretended network on which whole systems run in virtual time."""
