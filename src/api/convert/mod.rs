//! Between the wire's types and the domain's.

pub(super) mod account;
pub(super) mod event;
pub(super) mod fields;
pub(super) mod provider;
pub(super) mod token;
