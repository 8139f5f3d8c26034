"""The client: the connector, the session, local services."""
