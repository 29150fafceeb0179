//! Providers: the registry of what is configured, and the wire to each of them.
