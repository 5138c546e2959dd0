"""The command line: `raskid up`, `down`, `ps`, `send`, `get`, `topics`, `run-test`."""
