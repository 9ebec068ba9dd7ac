"""Results computed from the record: leaderboard, comparison, cost."""
