"""What was scored, durable; every file of a study's folder."""
