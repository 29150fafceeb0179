//! What the tests stand on.

pub mod browser;
pub mod canary;
pub mod child;
pub mod clients;
pub mod cluster;
pub mod database;
pub mod dice;
#[cfg(feature = "failpoints")]
pub mod file_hand;
pub mod harness;
pub mod log;
pub mod oracle;
pub mod outage;
pub mod own_provider;
pub mod peer;
pub mod postgres;
pub mod proxy;
pub mod real_time;
pub mod server;
pub mod service;
pub mod strangers;
pub mod writer;
