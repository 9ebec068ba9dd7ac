"""One file a command: from a spec to what it leaves behind."""
