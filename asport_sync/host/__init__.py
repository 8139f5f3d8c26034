"""What clients and servers share: the engine, its threads, and what sessions need of them."""
