//! Configuration: one file, the environment, and every error at once.
