//! The words of the wallet: values, states and their transitions, all pure.

pub mod ids;
pub mod secret;
