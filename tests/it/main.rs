//! Integration tests: real stores, real HTTP, real gRPC.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on says so by panicking")]
#![allow(clippy::unchecked_time_subtraction, reason = "a test that is wrong by a minute may panic")]
#![allow(unreachable_pub, reason = "nothing of a test binary is reachable from outside")]

mod accounts;
mod attacks;
mod busy_store;
mod cache;
mod callback_rows;
mod callers;
mod cli;
mod cluster;
mod compose;
#[cfg(feature = "failpoints")]
mod crash;
mod dev;
mod durable;
mod engine;
mod errors;
mod events;
mod flows;
mod gate;
mod instances;
mod interleavings;
mod layering;
mod leak;
mod log;
mod lost_answers;
mod lost_commits;
mod main_job;
mod metrics;
mod move_store;
mod ordinary_build;
mod outages;
mod outbound;
mod pages;
mod parked;
mod postgres;
mod processes;
mod provider_answers;
mod provider_changes;
mod provider_faults;
mod providers;
mod readme;
mod reauthorize;
mod request_ids;
mod requests;
mod revocation;
mod sandbox;
mod sealing;
mod soak;
mod store;
mod strange_providers;
mod support;
mod tokens;
mod tour;
mod users;
