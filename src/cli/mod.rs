//! The command line: one file a command; `remote` is the gRPC client.
