"""What bench.throughput lets train: one engine a file, each in a process of its own."""
