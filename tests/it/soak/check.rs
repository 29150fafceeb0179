//! What must hold, each minute, each hour, and at the end.
#![expect(clippy::print_stderr, reason = "a run tells what it did")]

use std::collections::HashSet;

use token_wallet::proto::v1;
use token_wallet::sandbox::{Ending, Endpoint};
use tonic::Status;

use super::oracle::{LOST, Row};
use super::plan::KINDS;
use super::town::{Town, slug};
use crate::support::harness::reason;
use crate::support::outage::spooled;

/// The least life of a token that is handed out, in milliseconds.
const FLOOR: i64 = 30_000;

/// What a provider is sent a second at most, and how many requests may be on their way to it.
const BUDGET: f64 = 50.0;
const ON_THEIR_WAY: f64 = 16.0;

/// A provider that is well leaves nothing due for so long, in milliseconds, nor a token run out.
const DUE: i64 = 5 * 60_000;
const STALE: i64 = 20 * 60_000;

impl Town {
    /// Each minute.
    pub async fn check(&mut self) {
        self.check_budget();
        let totals = self.harness.sandbox.totals();
        assert!(totals.max_overlap <= 1, "minute {}: a grant was refreshed twice at once: {totals:?}", self.minute);
        let now = self.harness.clock.now().millis();
        let overdue = format!(
            "(committed_fence > fence OR doubted_fence > fence OR state = 'quarantined'
              OR (state IN ('active', 'suspect') AND ahead_until > {now}
                  AND (sweep_at < {now} - {DUE} OR issued_at + lifetime < {now} - {STALE})))"
        );
        let sums = format!(
            "SELECT COALESCE(MIN(sweep_at), 0) || ' ' || SUM(CASE WHEN {overdue} THEN 1 ELSE 0 END) || ' ' ||
                SUM(CASE WHEN state = 'dead' THEN 1 ELSE 0 END) FROM grants WHERE is_current"
        );
        let sums = self.database.texts(&sums).await.remove(0);
        let sums = sums.split(' ').map(|word| word.parse::<i64>().unwrap()).collect::<Vec<_>>();
        self.ledger.due_at = sums[0];
        if sums[1] == 0 && sums[2] == i64::try_from(self.ledger.dead.len()).unwrap() {
            return;
        }
        let mut dead = HashSet::new();
        for row in self.rows(&format!("({overdue} OR state = 'dead')")).await {
            let user = row.user;
            if row.committed > row.fence || row.doubted > Some(row.fence) || row.state == "quarantined" {
                self.fail(user, "has a broken grant").await;
            }
            if row.state == "dead" {
                if !self.ledger.dead.contains(&user) {
                    self.judge_the_dead(user).await;
                }
                dead.insert(user);
            } else if self.weather[self.users[user].kind].is_calm(self.minute)
                && self.consent(user).ended.is_none()
                && !self.is_reprieved(&row).await
            {
                self.fail(user, "is not served though the provider is well").await;
            }
        }
        self.ledger.dead = dead;
    }

    /// Whether a grant whose refresh token is lost, and refused, is not ended because the provider refuses, or refused a
    /// while ago, too many at once.
    async fn is_reprieved(&self, row: &Row) -> bool {
        let lost = row.state == "suspect" && row.doubted.is_some() && self.consent(row.user).reuses > 0;
        let (slug, since) = (self.slug(&self.users[row.user]), self.harness.clock.now().millis() - STALE);
        let frozen = format!("SELECT COUNT(*) FROM providers WHERE slug = '{slug}' AND frozen_until > {since}");
        lost && self.database.number(&frozen).await == 1
    }

    /// What providers were sent keeps to the budget, by a bucket of one second's worth.
    fn check_budget(&mut self) {
        let requests = self.harness.sandbox.requests();
        self.harness.sandbox.clear_requests();
        for request in requests.into_iter().filter(|request| request.endpoint == Endpoint::Token) {
            self.ledger.requests += u64::from(request.grant_type.as_deref() == Some("refresh_token"));
            let client = request.client_id.unwrap();
            let (level, at) = self.ledger.spent.entry(client.clone()).or_insert((0.0, request.time));
            let drained = f64::from(i32::try_from((request.time - *at).max(0)).unwrap()) * BUDGET / 1000.0;
            *level = (*level - drained).max(0.0) + 1.0;
            *at = request.time.max(*at);
            assert!(*level <= BUDGET + ON_THEIR_WAY, "minute {}: {client} is over its budget", self.minute);
        }
    }

    /// Some users ask for their tokens; now and then one says that it is rejected.
    pub async fn ask(&mut self) {
        for _ in 0..=self.plan.grants / 10_000 {
            let user = self.anybody();
            let token = self.get(user, None).await;
            if let Some(token) = token
                && self.dice.once_in(50)
            {
                self.ledger.reports += 1;
                self.users[user].reported = true;
                if let Some(other) = self.get(user, Some(&token)).await
                    && other == token
                {
                    self.fail(user, "was given a token again that was rejected").await;
                }
            }
        }
    }

    /// One get, judged; the token, if there is one.
    async fn get(&mut self, user: usize, rejected: Option<&str>) -> Option<String> {
        self.ledger.gets += 1;
        let request = v1::GetAccessTokenRequest {
            user_id: self.users[user].name.clone(),
            provider: self.slug(&self.users[user]),
            rejected_access_token: rejected.unwrap_or_default().to_owned(),
            ..Default::default()
        };
        let (mut wallet, asked_at) = (self.harness.wallet(), self.harness.clock.now());
        match self.harness.in_time(wallet.get_access_token(request)).await {
            Ok(told) => {
                self.ledger.tokens += 1;
                let told = told.into_inner();
                self.judge_the_token(user, &told, asked_at.millis()).await;
                Some(told.access_token)
            }
            Err(status) => {
                self.judge_the_refusal(user, &status, rejected.is_some()).await;
                None
            }
        }
    }

    async fn judge_the_token(&self, user: usize, told: &v1::GetAccessTokenResponse, asked_at: i64) {
        if self.users[user].account.is_none() {
            self.fail(user, "is unlinked and was given a token").await;
        }
        if self.ledger.dead.contains(&user) && self.consent(user).ended == Some(Ending::Person) {
            self.fail(user, "must authorize again and was given a token").await;
        }
        let end = told.expire_time.unwrap();
        let end = end.seconds * 1000 + i64::from(end.nanos) / 1_000_000;
        if end < asked_at + FLOOR {
            self.fail(user, &format!("was given a token with {} ms left", end - asked_at)).await;
        }
        if !self.harness.sandbox.accepts(&told.access_token) {
            // What a person did at the provider is not known here before the next refresh. The same holds for what was
            // risked because a token was reported as rejected.
            let known = match self.consent(user).ended {
                Some(Ending::Person) => true,
                Some(Ending::Reuse) => self.users[user].reported,
                _ => false,
            };
            if !known {
                self.fail(user, "was given a token that the provider does not take").await;
            }
        }
    }

    async fn judge_the_refusal(&self, user: usize, status: &Status, reported: bool) {
        match reason(status).as_str() {
            "REAUTHORIZATION_REQUIRED" => self.judge_the_dead(user).await,
            "ACCOUNT_NOT_LINKED" if self.users[user].account.is_none() => {}
            "ACCESS_TOKEN_REJECTED" if reported => {}
            "PROVIDER_UNAVAILABLE" | "PROVIDER_MISCONFIGURED" => {
                let calm = self.weather[self.users[user].kind].is_calm(self.minute);
                let trouble = self.row(user).await.is_some_and(|row| row.is_in_trouble());
                if calm && !trouble {
                    self.fail(user, &format!("was refused: {status:?}")).await;
                }
            }
            _ => self.fail(user, &format!("was refused: {status:?}")).await,
        }
    }

    /// Each hour: what takes going through all grants.
    pub async fn check_each_grant(&mut self) {
        for row in self.rows("TRUE").await {
            let (fence, committed) = self.ledger.fences.get(&row.id).copied().unwrap_or_default();
            if row.fence < fence || row.committed < committed {
                self.fail(row.user, &format!("had the fences {fence} and {committed} before")).await;
            }
            self.ledger.fences.insert(row.id, (row.fence, row.committed));
        }
        for consent in self.harness.sandbox.grants().into_iter().filter(|consent| consent.reuses > 0) {
            let user = consent.person.strip_prefix("person-").unwrap().parse::<usize>().unwrap();
            if self.consent(user).id != consent.id || self.users[user].account.is_none() {
                continue;
            }
            let row = self.row(user).await.unwrap();
            if row.doubted.is_none() {
                self.fail(user, "presented a refresh token again that was not in doubt").await;
            }
        }
    }

    /// At the end: who has a grant that lives at its provider is served.
    pub async fn last_judgement(&mut self) {
        self.check_each_grant().await;
        let mut served = 0;
        for user in 0..self.users.len() {
            let token = self.get(user, None).await;
            let (linked, dead) = (self.users[user].account.is_some(), self.ledger.dead.contains(&user));
            if token.is_none() && linked && !dead {
                self.fail(user, "is not served at the end").await;
            }
            served += usize::from(token.is_some());
        }
        assert_eq!(spooled(&self.harness.config.spool_dir), 0, "the spool is empty");
        for row in self.rows("lease_until IS NOT NULL").await {
            let lives = row.issued_at + row.lifetime > self.harness.clock.now().millis() + FLOOR;
            if !lives {
                self.fail(row.user, "is left in doubt").await;
            }
        }
        let (ended, lost) = self.judge_events().await;
        let mut counts = [0.0, 0.0];
        for kind in &KINDS {
            let label = format!("{{provider=\"{}\"}}", slug(self.engine, kind));
            counts[0] += self.harness.metric(&format!("token_wallet_refreshes_in_doubt_total{label}")).await;
            counts[1] += self.harness.metric(&format!("token_wallet_rotation_outcome_lost_total{label}")).await;
        }
        let totals = self.harness.sandbox.totals();
        eprintln!(
            "{served} served at the end, {ended} had to authorize again, {lost} of them lost; {} in doubt; {totals:?}",
            counts[0]
        );
        assert_eq!(lost.to_string(), counts[1].to_string(), "what was lost is counted");
    }

    /// Nobody was told for nothing to authorize again; how many were, and how many of them because of a lost answer.
    async fn judge_events(&self) -> (usize, usize) {
        let sql = "SELECT user_id || ' ' || COALESCE(reason, '') FROM events
                   WHERE kind = 'account.reauthorization_required'";
        let told = self.database.texts(sql).await;
        for event in &told {
            let number = event.split(' ').next().unwrap().strip_prefix("user-").unwrap().parse::<usize>().unwrap();
            let consents = self.harness.sandbox.grants_of(&self.users[number].person);
            if !consents.iter().any(|consent| consent.ended.is_some() || consent.reuses > 0) {
                self.fail(number, "was told for no reason to authorize again").await;
            }
        }
        (told.len(), told.iter().filter(|event| event.ends_with(LOST)).count())
    }
}
