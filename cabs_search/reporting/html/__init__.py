"""Results as one page that opens without a network."""
