"""Pages to look at fusions: one for each run, one that compares runs, one for the benchmark of quality."""
