//! Integration tests: real stores, real HTTP, real gRPC.
