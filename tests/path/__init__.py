"""A network path with rate, delay, loss and a queue, made of two network namespaces; and tests that cross it."""
