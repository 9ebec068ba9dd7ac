"""Results as one page that opens with no network."""
