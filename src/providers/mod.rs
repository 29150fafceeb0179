//! Providers: the registry of what is configured, and the wire to each of them.

pub mod answer;
pub mod authorize;
pub mod catalog;
pub mod change;
pub mod endpoints;
pub mod gate;
mod health;
mod merge;
mod params;
pub mod profile;
pub mod provider;
pub mod registry;
pub mod revoke;
pub mod token;
pub mod verdict;

pub use authorize::Authorization;
pub use catalog::{Catalog, Entry, ResponseMode};
pub use change::NewProvider;
pub use endpoints::{CustomEndpoints, Endpoints};
pub use gate::{Closed, ClosedBy, Gate, Permit, Settled, Target, Urgency};
pub use provider::{Provider, Wire};
pub use registry::{Parts, ProviderPage, Registry};
pub use revoke::Token;
