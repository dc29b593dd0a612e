"""HTTP: pictures of a trained generator for browsers and programs, and a gallery page."""
