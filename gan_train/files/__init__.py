"""How files are written whole, checked and locked. All that touches a disk stands on this."""
