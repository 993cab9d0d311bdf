"""Our engine beside the engines people use: the same jobs, by turns, on one machine in one run."""
