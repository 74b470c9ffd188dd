"""A network of this machine's own: workers in network namespaces, with links of a chosen rate between them."""
