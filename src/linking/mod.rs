//! Flows, accounts and redirect URLs: opens and ends external accounts; calls the wallet, never the reverse.
