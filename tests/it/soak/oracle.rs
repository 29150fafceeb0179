//! What is stored of a user's grant, and what the provider says of it.

use token_wallet::sandbox::{Ending, Grant};

use super::town::Town;

/// A current grant's row, without its tokens.
#[derive(Debug)]
pub struct Row {
    pub user: usize,
    pub id: String,
    pub state: String,
    pub fence: i64,
    pub committed: i64,
    pub doubted: Option<i64>,
    pub attempts: i64,
    pub lease_until: Option<i64>,
    pub issued_at: i64,
    pub lifetime: i64,
}

/// A row as one text.
const COLUMNS: &str = "user_id || ' ' || id || ' ' || state || ' ' || fence || ' ' || committed_fence || ' ' ||
    COALESCE(doubted_fence, -1) || ' ' || attempts || ' ' || COALESCE(lease_until, -1) || ' ' || issued_at || ' ' ||
    COALESCE(lifetime, -1)";

/// Why the wallet says that a user must authorize again whose new refresh token was lost.
pub const LOST: &str = "rotation_outcome_lost";

impl Row {
    fn read(text: &str) -> Self {
        let words = text.split(' ').collect::<Vec<_>>();
        let number = |at: usize| words[at].parse::<i64>().unwrap();
        let maybe = |at: usize| Some(number(at)).filter(|number| *number >= 0);
        Self {
            user: words[0].strip_prefix("user-").unwrap().parse().unwrap(),
            id: words[1].to_owned(),
            state: words[2].to_owned(),
            fence: number(3),
            committed: number(4),
            doubted: maybe(5),
            attempts: number(6),
            lease_until: maybe(7),
            issued_at: number(8),
            lifetime: number(9),
        }
    }

    /// Whether a refresh of it failed lately, or its outcome is not known.
    pub fn is_in_trouble(&self) -> bool {
        self.state == "suspect" || self.attempts > 0 || self.lease_until.is_some() || self.doubted.is_some()
    }
}

impl Town {
    /// The current grants for which this holds.
    pub async fn rows(&self, condition: &str) -> Vec<Row> {
        let sql = format!("SELECT {COLUMNS} FROM grants WHERE is_current AND {condition}");
        self.database.texts(&sql).await.iter().map(|text| Row::read(text)).collect()
    }

    /// A user's current grant.
    pub async fn row(&self, user: usize) -> Option<Row> {
        self.rows(&format!("user_id = '{}'", self.users[user].name)).await.pop()
    }

    /// What the provider knows of the user's newest consent.
    pub fn consent(&self, user: usize) -> Grant {
        self.harness.sandbox.grants_of(&self.users[user].person).pop().unwrap()
    }

    /// Asserts that a user who must authorize again must do so.
    pub async fn judge_the_dead(&self, user: usize) {
        let name = &self.users[user].name;
        let sql = format!(
            "SELECT COALESCE(state_reason, '') FROM external_accounts WHERE user_id = '{name}' AND state <> 'unlinked'"
        );
        let reason = self.database.texts(&sql).await.pop().unwrap_or_default();
        let consent = self.consent(user);
        let truly = match consent.ended {
            Some(Ending::Reuse) => reason == LOST,
            Some(_) => true,
            None => reason == LOST && consent.reuses > 0,
        };
        if !truly {
            self.fail(user, &format!("must authorize again for no reason: {reason}")).await;
        }
    }

    /// Ends the run with everything that is known of a user.
    pub async fn fail(&self, user: usize, why: &str) -> ! {
        let (plan, minute, now) = (self.plan, self.minute, self.harness.clock.now());
        let sql = format!(
            "SELECT {COLUMNS} || ' ' || due_at || ' ' || COALESCE(retry_not_before, -1) FROM grants WHERE user_id = '{}' AND due_at IS NOT NULL",
            self.users[user].name
        );
        let rows = self.database.texts(&sql).await;
        let (row, consents) = (self.row(user).await, self.harness.sandbox.grants_of(&self.users[user].person));
        panic!(
            "{plan:?}, minute {minute}, {now:?}: {} {why}\nweather: {:?}\nthe wallet: {row:?}\n{rows:?}\nthe provider: {consents:?}",
            self.users[user].name, self.weather[self.users[user].kind]
        );
    }
}
