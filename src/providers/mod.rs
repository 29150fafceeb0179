//! Providers: the registry of what is configured, and the wire to each of them.

pub mod answer;
pub mod authorize;
pub mod catalog;
pub mod endpoints;
pub mod gate;
pub mod profile;
pub mod provider;
pub mod registry;
pub mod token;
pub mod verdict;

pub use authorize::Authorization;
pub use catalog::{Catalog, Entry};
pub use endpoints::{CustomEndpoints, Endpoints};
pub use gate::{Gate, Permit};
pub use provider::{Provider, Wire};
pub use registry::{NewProvider, Parts, ProviderPage, Registry};
