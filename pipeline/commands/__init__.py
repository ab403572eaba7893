"""What each verb of the command does, as plain functions without Click; they print and return the exit code."""
