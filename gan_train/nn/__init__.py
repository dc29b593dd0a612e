"""Parts of networks and of losses that families share; the collectives over workers."""
