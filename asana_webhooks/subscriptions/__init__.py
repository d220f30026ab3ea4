"""Where both halves meet."""
