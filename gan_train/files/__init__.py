"""Files: how they are written whole, checked and locked. Nothing here knows of images or runs."""
