"""Work of the commands, one file each."""
