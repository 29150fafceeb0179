//! Killed during an unlink.

use std::time::Duration;

use token_wallet::proto::v1;
use token_wallet::sandbox::{Ending, Endpoint};
use tonic::Code;

use super::life::{Chance, Life};
use crate::support::harness::{reason, until};

/// How far time moves between two looks: a claim of a revocation runs out after a few.
const TICK: Duration = Duration::from_secs(5);

/// One life: an account unlinked, killed at the step, started again.
pub async fn run(mut chance: Chance) {
    let mut life = Life::until(&chance, 1).await;
    let account = life.wallet.link("u", "demo").await;
    if chance.flip() {
        // Refreshed before, or as it is unlinked.
        life.hand.advance(chance.seconds(40 * 60, 80 * 60));
        life.wallet.get("u", "sandbox").await.unwrap();
    }
    let token = life.wallet.get("u", "sandbox").await.unwrap().access_token;
    let delete = v1::DeleteExternalAccountRequest { external_account_id: account.id };
    let told = life.wallet.accounts().delete_external_account(delete.clone()).await;
    if let Err(cut_off) = &told {
        assert!(matches!(cut_off.code(), Code::Unavailable | Code::Unknown), "{cut_off:?}");
    }
    assert!(told.is_err() || chance.step != "unlink.committed");
    life.death().await;
    let asked = asked(&life);
    life.hand.advance(chance.absence());
    life.rebirth(None, &mut chance).await;
    let refused = life.wallet.get("u", "sandbox").await.unwrap_err();
    assert_eq!(reason(&refused), "ACCOUNT_NOT_LINKED");
    life.wallet.accounts().delete_external_account(delete).await.unwrap();
    until("nothing is left to be revoked", async || {
        life.hand.advance(TICK);
        life.wallet.database().await.number("SELECT COUNT(*) FROM grants WHERE state = 'ending'").await == 0
    })
    .await;
    let endings = life.wallet.sandbox.grants_of("demo").into_iter().map(|grant| grant.ended);
    assert_eq!(endings.collect::<Vec<_>>(), [Some(Ending::Revoked)]);
    assert!(!life.wallet.is_accepted(&token).await);
    let told = life.wallet.database().await.events().await;
    assert_eq!(told, ["account.linked", "account.unlinked", "grant.revoked"], "each is told once");
    let asked_again = self::asked(&life) - asked;
    assert_eq!(asked_again, usize::from(chance.step != "revoke.recorded"));
    assert_eq!(asked, usize::from(["revoke.answered", "revoke.recorded"].contains(&chance.step)));
    let tokens = "SELECT COUNT(*) FROM grants WHERE access_token IS NOT NULL OR refresh_token IS NOT NULL";
    assert_eq!(life.wallet.database().await.number(tokens).await, 0);
    // It can be linked again.
    life.wallet.link("u", "demo").await;
    assert!(life.wallet.is_accepted(&life.wallet.get("u", "sandbox").await.unwrap().access_token).await);
}

/// How many revocations the provider has been asked for.
fn asked(life: &Life) -> usize {
    life.wallet.sandbox.requests().into_iter().filter(|request| request.endpoint == Endpoint::Revoke).count()
}
