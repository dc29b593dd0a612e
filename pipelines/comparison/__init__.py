"""`gan-train compare`: several recipes, one data set, one budget, one report."""
