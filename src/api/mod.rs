//! The gRPC door: parse, permit, call, convert.
