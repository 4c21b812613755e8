"""Kind `rubric`: criteria of recipes and samples, a judge's verdicts on them, and their sum."""
