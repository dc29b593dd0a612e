"""What a generator is for: generate, upscale or translate; how each is drawn and scored."""
