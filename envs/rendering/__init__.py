"""What a person sees of a pool: `scene` looks, `text` and `picture` show."""
