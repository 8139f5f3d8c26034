"""Make and try what is released: the wheel, in Debian roots. Nothing here is part of the package."""
