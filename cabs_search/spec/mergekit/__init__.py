"""mergekit's YAML (0.1.5) and recipes, either made from the other."""
