"""Durable results of a study, and the files of its folder."""
