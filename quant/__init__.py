"""Weight and KV-cache formats."""
