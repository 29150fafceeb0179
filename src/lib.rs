//! Token wallet: one service that holds OAuth grants and answers `(user, provider)` with an access token that is
//! always fresh. ARCHITECTURE.md draws the floors; a room imports only rooms below it.

// Doors and commands.
pub mod api;
pub mod app;
pub mod cli;
pub mod jobs;
pub mod web;

// Use cases.
pub mod linking;
pub mod wallet;

// What they stand on.
pub mod access;
pub mod cache;
pub mod events;
pub mod keys;
pub mod move_store;
pub mod providers;
pub mod store;
pub mod vault;

// Words, time and tools.
pub mod clock;
pub mod config;
pub mod domain;
pub mod failpoint;
pub mod outbound;
pub mod proto;
pub mod telemetry;

// A provider of our own; imports nothing of ours but the clock.
pub mod sandbox;
