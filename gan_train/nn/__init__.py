"""What families build networks and losses from, and the collectives over workers."""
