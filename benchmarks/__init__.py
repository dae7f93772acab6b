"""What benchmark.py measures: one part a file, each with `add_flags(parser)` and `run(args)`."""
