//! The life of the keyring: made once, opened at start, checked before anything else.
