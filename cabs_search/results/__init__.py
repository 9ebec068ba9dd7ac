"""Numbers from the record: leaderboard, comparison, what they cost."""
