//! Killed during a refresh.

use futures_util::future::join_all;

use super::life::{Chance, Life};
use super::oracle::{self, User};

/// One life: linked, due, killed at the step, started again.
pub async fn run(mut chance: Chance) {
    let spooled = chance.is_the_spools();
    // One answer is in the spool; what becomes of another is for the other steps.
    let beside = !spooled && chance.flip();
    let nth = if beside { 1 + chance.below(2) } else { 1 };
    let mut life = Life::until(&chance, nth).await;
    let mut users = vec![User::linked(&life, "u", "demo").await];
    if beside {
        users.push(User::linked(&life, "v", "alice").await);
    }
    let by_get = chance.flip();
    // Past due at minute 55 at the latest; some are dead already.
    life.hand.advance(chance.seconds(55 * 60 + 1, 65 * 60));
    let gets = async {
        // Or by the sweep, within a second.
        if by_get {
            let gets = join_all(users.iter().map(|user| life.wallet.get(user.name, "sandbox"))).await;
            for token in gets.into_iter().flatten() {
                assert!(life.wallet.is_accepted(&token.access_token).await);
            }
        }
    };
    let (away, ()) = tokio::join!(life.store_away(&mut chance), gets);
    life.death().await;
    if spooled {
        oracle::spooled(&life, &mut users).await;
    } else {
        oracle::doubt(&life, &mut users).await;
    }
    life.hand.advance(chance.absence());
    life.rebirth(away, &mut chance).await;
    oracle::judge(&life, &mut users).await;
}
