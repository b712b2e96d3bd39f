"""Effects: storage, clock, transport and the loop that drives each shard's replica."""
