"""Task workloads: W1 independent tasks, W2 one at a time, W3 a chain of dependent tasks, W7 start to first result."""
