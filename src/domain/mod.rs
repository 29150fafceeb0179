//! The words of the wallet: values, states and their transitions, all pure.

pub mod account;
pub mod consent;
pub mod doubt;
pub mod error;
pub mod event;
pub mod flow;
pub mod grant;
pub mod ids;
pub mod instance;
#[cfg(test)]
mod numbers;
pub mod policy;
pub mod provider;
pub mod reason;
pub mod redirect;
pub mod request;
pub mod scopes;
pub mod secret;
pub mod spool;
pub mod user;
