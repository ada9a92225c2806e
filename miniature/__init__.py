"""The miniature: a small rendered world, small models of the real architectures, and what is filmed with them."""
