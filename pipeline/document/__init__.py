"""The artist's glTF kept as it came: its parts, its surface, and writing it back with other materials only."""
