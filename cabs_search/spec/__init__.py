"""The YAML file that names a study; needs no torch."""
