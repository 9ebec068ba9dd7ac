"""Results for people: terminal, page and charts."""
