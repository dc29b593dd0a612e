"""Measures of generators: distances of features, diversity, path lengths, PSNR and SSIM."""
