"""After a fault: how long until the first byte comes through the same public port again."""
