//! Several replicas on one PostgreSQL database.

mod chaos;
mod clocks;
mod crashes;
mod load;
mod outages;
mod sharing;
