"""Helpers of every stage: files, formats, redaction, versions. Imports nothing of ours."""
