"""Task vectors pruned, cached, combined and added to a base."""
