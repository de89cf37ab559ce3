"""A training split that is read in order, shard by shard."""
