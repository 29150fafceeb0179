//! Grants: deposit, get, refresh, sweep, withdraw.
