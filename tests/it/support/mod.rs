//! What the tests stand on.

pub mod browser;
pub mod child;
pub mod database;
pub mod harness;
pub mod peer;
pub mod postgres;
