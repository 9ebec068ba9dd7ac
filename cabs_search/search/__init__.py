"""Candidates, proposals and what is done next; the only importer of Optuna."""
