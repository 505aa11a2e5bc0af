"""Tasks: a backbone, a head, an adapter and a loss, trained and judged."""
