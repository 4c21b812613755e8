"""Kind `compare`: a judge or a pairwise model over the completions of a group."""
