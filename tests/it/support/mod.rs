//! What the tests stand on.

pub mod peer;
pub mod postgres;
