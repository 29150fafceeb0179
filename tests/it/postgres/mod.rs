//! What is PostgreSQL's own: poolers, plans, refusals, failover.

mod failover;
mod plans;
mod pooler;
mod refusals;
