"""Working through what came."""
