//! Weeks of refreshing in moved time: many grants at providers of all manners, with faults by chance. Every invariant is
//! asserted each simulated minute.
//!
//! `TOKEN_WALLET_SOAK_GRANTS`, `TOKEN_WALLET_SOAK_DAYS` and `TOKEN_WALLET_SOAK_SEED` ask for another run than CI's.

mod check;
mod oracle;
mod plan;
mod town;
mod weather;

use crate::support::harness::Engine;

use plan::Plan;
use town::Town;

#[tokio::test]
async fn no_grant_is_lost_or_wronged_in_two_weeks_of_faults_on_sqlite() {
    soak(Engine::Sqlite, Plan::of(1_000, 14)).await;
}

#[tokio::test]
async fn no_grant_is_lost_or_wronged_in_days_of_faults_on_postgres() {
    soak(Engine::Postgres, Plan::of(200, 3)).await;
}

async fn soak(engine: Engine, plan: Plan) {
    let mut town = Town::found(engine, plan).await;
    for _ in 0..plan.days * 24 * 60 {
        town.minute().await;
    }
    town.calm_down().await;
    town.last_judgement().await;
}
