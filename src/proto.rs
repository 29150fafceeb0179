//! The generated contract, and `Debug` without secrets for its messages.
