"""Kind `compare`: a judge or a pairwise model compares the completions of a group."""
