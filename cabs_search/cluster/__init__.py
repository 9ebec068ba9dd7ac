"""Workers and their jobs; the only importer of Ray."""
