"""The language-model quickstart: a small chat model, and adapters tuned on puzzles."""
