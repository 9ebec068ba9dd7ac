"""Refinement of a candidate's λ by gradient."""
