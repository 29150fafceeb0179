//! The grants as the provider sees them: whose they are, whether they live, and what was done with them. Counters are
//! kept up to date by each request, so that asking never means going through the log.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::book::Family;
use super::recorder::Reuse;
use super::secrets::{Digest, Secret};
use super::settings::Settings;
use crate::clock::Timestamp;

/// How many ended grants are remembered.
const REMEMBERED: usize = 100_000;

/// A consent and what was done with it: `GET /_sandbox/grants`. Counters start at 0 with the process; what an exchange
/// gives is not counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Its id, [`Request::family`](super::Request::family) in the log.
    pub id: String,
    /// Whose it is, by username.
    pub person: String,
    /// The client it was given to.
    pub client_id: String,
    /// When it was approved, in Unix milliseconds by the sandbox's clock.
    pub approved_at: i64,
    /// Why it is dead; none while its newest tokens work.
    pub ended: Option<Ending>,
    /// The fingerprint of the newest refresh token.
    pub refresh_token: Option<String>,
    /// The fingerprint of the newest access token.
    pub access_token: Option<String>,
    /// Refreshes that were carried out, told or not.
    pub redemptions: u64,
    /// Those that gave a new refresh token in place of the one presented.
    pub rotations: u64,
    /// Refreshes by a refresh token that was dead because it had been redeemed before.
    pub reuses: u64,
    /// Refreshes by a refresh token that had been redeemed before and was answered again within its grace.
    pub grace_repeats: u64,
    /// The most refreshes that were under way at once; see [`Request::overlap`](super::Request::overlap).
    pub max_overlap: u32,
}

/// Why a grant is dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// The client revoked it at `/revoke`.
    Revoked,
    /// The person withdrew it: `POST /_sandbox/grants/{person}/revoke`.
    Person,
    /// A refresh token came again, where that ends the family.
    Reuse,
    /// Its code came again.
    CodeReuse,
    /// Its refresh token, its consent, or without a refresh token its access token has come to its end.
    Expired,
}

/// The sums of all grants since the start of the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Consents given.
    pub grants: u64,
    /// As [`Grant::redemptions`].
    pub redemptions: u64,
    /// As [`Grant::rotations`].
    pub rotations: u64,
    /// As [`Grant::reuses`].
    pub reuses: u64,
    /// As [`Grant::grace_repeats`].
    pub grace_repeats: u64,
    /// The greatest [`Grant::max_overlap`].
    pub max_overlap: u32,
}

/// All grants that are alive, and the ended ones as long as they are remembered.
#[derive(Default)]
pub(super) struct Ledger {
    standing: HashMap<String, Standing>,
    of_person: HashMap<String, Vec<String>>,
    ended: VecDeque<String>,
    totals: Totals,
}

struct Standing {
    family: Family,
    ended: Option<Ending>,
    refresh: Option<(Digest, Timestamp)>,
    access: Option<(Digest, Timestamp)>,
    /// The newest access token itself, for faults that repeat it; it is in memory only.
    secret: Option<Arc<Secret>>,
    arrivals: u64,
    under_way: u32,
    counts: Totals,
}

impl Ledger {
    pub(super) fn add(&mut self, id: String, family: Family) {
        self.totals.grants += 1;
        self.of_person.entry(family.person.clone()).or_default().push(id.clone());
        let standing = Standing {
            family,
            ended: None,
            refresh: None,
            access: None,
            secret: None,
            arrivals: 0,
            under_way: 0,
            counts: Totals::default(),
        };
        self.standing.insert(id, standing);
    }

    /// A consent that has not been ended, be its tokens expired or not.
    pub(super) fn alive(&self, id: &str) -> Option<&Family> {
        self.standing.get(id).filter(|standing| standing.ended.is_none()).map(|standing| &standing.family)
    }

    /// Whose consent this is or was.
    pub(super) fn family(&self, id: &str) -> Option<&Family> {
        self.standing.get(id).map(|standing| &standing.family)
    }

    pub(super) fn all_alive(&self) -> impl Iterator<Item = (&String, &Family)> {
        let alive = self.standing.iter().filter(|(_, standing)| standing.ended.is_none());
        alive.map(|(id, standing)| (id, &standing.family))
    }

    /// The consents of this person that have not been ended.
    pub(super) fn alive_of(&self, person: &str) -> Vec<String> {
        let ids = self.of_person.get(person).into_iter().flatten();
        ids.filter(|id| self.alive(id).is_some()).cloned().collect()
    }

    /// How many grants of this person are known.
    pub(super) fn count_of(&self, person: &str) -> u64 {
        self.of_person.get(person).map_or(0, |ids| ids.len() as u64)
    }

    /// Ends a consent, once.
    pub(super) fn end(&mut self, id: &str, why: Ending) {
        let Some(standing) = self.standing.get_mut(id).filter(|standing| standing.ended.is_none()) else { return };
        standing.ended = Some(why);
        standing.secret = None;
        self.ended.push_back(id.into());
        if self.ended.len() > REMEMBERED {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        let Some(id) = self.ended.pop_front() else { return };
        let Some(standing) = self.standing.remove(&id) else { return };
        if let Some(ids) = self.of_person.get_mut(&standing.family.person) {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.of_person.remove(&standing.family.person);
            }
        }
    }

    pub(super) fn gave_refresh(&mut self, id: &str, token: Digest, expires_at: Timestamp) {
        self.with(id, |standing| standing.refresh = Some((token, expires_at)));
    }

    pub(super) fn gave_access(&mut self, id: &str, token: Digest, expires_at: Timestamp) {
        self.with(id, |standing| (standing.access, standing.secret) = (Some((token, expires_at)), None));
    }

    /// Keeps the newest access token as it is.
    pub(super) fn keep(&mut self, id: &str, secret: Arc<Secret>) {
        self.with(id, |standing| standing.secret = Some(secret));
    }

    /// The newest access token as it was given, and its end.
    pub(super) fn kept(&self, id: &str) -> Option<(Arc<Secret>, Timestamp)> {
        let standing = self.standing.get(id)?;
        Some((Arc::clone(standing.secret.as_ref()?), standing.access?.1))
    }

    pub(super) fn newest_access(&self, id: &str) -> Option<Digest> {
        Some(self.standing.get(id)?.access?.0)
    }

    /// How many redemptions there were.
    pub(super) fn redemptions(&self, id: &str) -> u64 {
        self.standing.get(id).map_or(0, |standing| standing.counts.redemptions)
    }

    /// Counts a request in; how many there were before.
    pub(super) fn arrived(&mut self, id: &str) -> u64 {
        let counted = self.with(id, |standing| {
            standing.arrivals += 1;
            standing.arrivals - 1
        });
        counted.unwrap_or_default()
    }

    /// Counts a refresh in; how many are under way with it.
    pub(super) fn began(&mut self, id: &str) -> u32 {
        let under_way = self.with(id, |standing| {
            standing.under_way += 1;
            standing.counts.max_overlap = standing.counts.max_overlap.max(standing.under_way);
            standing.under_way
        });
        let under_way = under_way.unwrap_or_default();
        self.totals.max_overlap = self.totals.max_overlap.max(under_way);
        under_way
    }

    /// Counts a refresh out.
    pub(super) fn left(&mut self, id: &str) {
        self.with(id, |standing| standing.under_way = standing.under_way.saturating_sub(1));
    }

    pub(super) fn redeemed(&mut self, id: &str, rotated: bool) {
        self.count(id, |counts| {
            counts.redemptions += 1;
            counts.rotations += u64::from(rotated);
        });
    }

    pub(super) fn reused(&mut self, id: &str, reuse: Reuse) {
        self.count(id, |counts| match reuse {
            Reuse::InGrace => counts.grace_repeats += 1,
            Reuse::Dead => counts.reuses += 1,
        });
    }

    pub(super) fn totals(&self) -> Totals {
        self.totals
    }

    /// All grants that are known, or those of one person.
    pub(super) fn grants(&self, person: Option<&str>, settings: &Settings, now: Timestamp) -> Vec<Grant> {
        let show = |id: &String, standing: &Standing| standing.show(id, settings, now);
        match person {
            None => self.standing.iter().map(|(id, standing)| show(id, standing)).collect(),
            Some(person) => {
                let ids = self.of_person.get(person).into_iter().flatten();
                ids.filter_map(|id| Some(show(id, self.standing.get(id)?))).collect()
            }
        }
    }

    fn with<T>(&mut self, id: &str, act: impl FnOnce(&mut Standing) -> T) -> Option<T> {
        self.standing.get_mut(id).map(act)
    }

    fn count(&mut self, id: &str, act: impl Fn(&mut Totals)) {
        act(&mut self.totals);
        self.with(id, |standing| act(&mut standing.counts));
    }
}

impl Standing {
    fn show(&self, id: &str, settings: &Settings, now: Timestamp) -> Grant {
        let print = |token: &(Digest, Timestamp)| token.0.fingerprint();
        Grant {
            id: id.into(),
            person: self.family.person.clone(),
            client_id: self.family.client_id.clone(),
            approved_at: self.family.approved_at.millis(),
            ended: self.ended.or_else(|| self.is_over(settings, now).then_some(Ending::Expired)),
            refresh_token: self.refresh.as_ref().map(print),
            access_token: self.access.as_ref().map(print),
            redemptions: self.counts.redemptions,
            rotations: self.counts.rotations,
            reuses: self.counts.reuses,
            grace_repeats: self.counts.grace_repeats,
            max_overlap: self.counts.max_overlap,
        }
    }

    fn is_over(&self, settings: &Settings, now: Timestamp) -> bool {
        match self.refresh {
            Some((_, end)) => end <= now || self.family.is_over(settings, now),
            None => self.access.is_none_or(|(_, end)| end <= now),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::scopes::Scopes;
    use super::*;

    #[test]
    fn ended_grants_are_remembered_and_not_for_ever() {
        let mut ledger = Ledger::default();
        let family = Family {
            client_id: "app".into(),
            person: "demo".into(),
            scopes: Scopes::parse(None).unwrap(),
            approved_at: Timestamp::from_millis(0),
        };
        for number in 0..=REMEMBERED {
            ledger.add(number.to_string(), family.clone());
            if number > 0 {
                ledger.end(&number.to_string(), Ending::Person);
            }
        }
        assert_eq!((ledger.count_of("demo"), ledger.alive_of("demo").len()), (REMEMBERED as u64 + 1, 1));
        ledger.end("0", Ending::Revoked);
        assert_eq!((ledger.count_of("demo"), ledger.family("1").is_none()), (REMEMBERED as u64, true));
    }
}
