//! Sealing: typed cells, the envelope, the keyring in memory, root keys. Knows no SQL.
