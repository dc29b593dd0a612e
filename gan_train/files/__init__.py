"""Files written whole, their checksums, and locks: all that touches a disk stands on this."""
