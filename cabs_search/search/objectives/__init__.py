"""What a search maximizes: one file each, one line each in the registry."""
