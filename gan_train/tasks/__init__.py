"""The three tasks of a generator (generate, upscale, translate): how each is shown and scored."""
