"""Helpers of all packages: files, formats, redaction, versions. Imports nothing of cabs_search."""
