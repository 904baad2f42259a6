"""What bench.sampling measures, each in a process of its own, some in an environment of their own."""
