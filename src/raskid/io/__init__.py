"""Everything that touches the outside: clock, sockets, processes, shared memory, and the driver of the machines."""
