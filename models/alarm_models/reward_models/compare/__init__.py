"""Kind `compare`: a judge over the completions of a group."""
