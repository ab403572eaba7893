"""One function for each verb of the command, without Click. It prints and returns the exit code."""
