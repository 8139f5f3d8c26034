"""What several tests share: local services, processes, certificates, network namespaces and the leak check."""
