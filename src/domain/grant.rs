//! Grants: what one consent gave us, and when its access token is fresh enough to be served.

use std::collections::BTreeMap;
use std::time::Duration;

use super::ids::{AccountId, GrantId, ProviderId, ReplicaId};
use super::policy;
use super::provider::{Lifetime, TokenAnswer};
use super::scopes::Scopes;
use super::user::UserId;
use crate::clock::Timestamp;

/// Where a grant stands. The first four may be an account's current one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrantState {
    /// Its token is served and refreshed.
    Active,
    /// The provider refused it once; to be confirmed.
    Suspect,
    /// The provider refused it twice: only a new consent helps.
    Dead,
    /// A cell of it does not open.
    Quarantined,
    /// Taken from its account; kept until the provider has been told.
    Ending,
    /// Gone.
    Ended,
}

impl GrantState {
    const ALL: [Self; 6] = [Self::Active, Self::Suspect, Self::Dead, Self::Quarantined, Self::Ending, Self::Ended];

    /// Its name in the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Suspect => "suspect",
            Self::Dead => "dead",
            Self::Quarantined => "quarantined",
            Self::Ending => "ending",
            Self::Ended => "ended",
        }
    }

    /// Reads its name.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

/// What an access token's freshness is judged by. Written anew with each token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Freshness {
    /// When the request for the token was about to be sent.
    pub issued_at: Timestamp,
    /// How long it lives from then.
    pub lifetime: Lifetime,
    /// When its refresh (or the next attempt at it) is due; `None` if it cannot or need not be refreshed.
    pub due_at: Option<Timestamp>,
    /// When it is refreshed though nobody asks for it, so that the provider does not forget it; `None` if it does not.
    pub keep_alive_at: Option<Timestamp>,
}

/// Who may redeem a grant's refresh token, and until when. It stays after its end if no outcome is known: the grant is
/// in doubt then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The replica that claimed the grant.
    pub owner: ReplicaId,
    /// When others may judge what became of it.
    pub until: Timestamp,
}

/// A grant without its tokens: everything that judging needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Its id.
    pub id: GrantId,
    /// The account it belongs to.
    pub account: AccountId,
    /// That account's user.
    pub user: UserId,
    /// That account's provider.
    pub provider: ProviderId,
    /// Where it stands.
    pub state: GrantState,
    /// How fresh its access token is.
    pub freshness: Freshness,
    /// How the access token is sent.
    pub token_type: String,
    /// What was granted.
    pub scopes: Scopes,
    /// The per-user parts of the provider's URLs.
    pub params: BTreeMap<String, String>,
    /// The fence that wrote the access token: 0 for the deposit. Bound into its cell.
    pub access_generation: i64,
    /// The fence that wrote the refresh token; `None` if there is none.
    pub refresh_generation: Option<i64>,
    /// Counts claims; each redemption has its own.
    pub fence: i64,
    /// The newest fence whose answer was stored.
    pub committed_fence: i64,
    /// Whose claim of it has no outcome yet.
    pub lease: Option<Lease>,
    /// The first claim since the latest stored answer whose request was sent and never answered.
    pub doubted_fence: Option<i64>,
    /// When the latest attempt was claimed, if it has not succeeded.
    pub attempted_at: Option<Timestamp>,
    /// Attempts in a row that failed.
    pub attempts: u32,
    /// Before this nobody causes an attempt, not even a caller who waits: the provider asked for it, or the last
    /// attempt may still have been heard, or a refusal is to be confirmed.
    pub retry_not_before: Option<Timestamp>,
    /// Until when the sweep refreshes it ahead; later its next get waits for one refresh.
    pub ahead_until: Timestamp,
}

/// What a caller needs of a token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Need {
    /// The least life it must have left.
    pub min_ttl: Option<Duration>,
    /// The scopes it must have.
    pub scopes: Scopes,
}

/// How a get is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Serve {
    /// With the token at hand.
    Now,
    /// With the token at hand, and a refresh is woken.
    NowThenRefresh,
    /// After the one refresh. `stale_will_do`: if that fails transiently, the token at hand is above the floor and
    /// the caller asked for no more.
    AfterRefresh {
        /// Whether the token at hand may be served if the refresh fails transiently.
        stale_will_do: bool,
    },
    /// Not before the provider was asked whether the token lives: it was reported as rejected and cannot be refreshed.
    Probe,
    /// Not at all.
    Refuse(Refusal),
}

/// Why a grant serves no token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// These scopes were not granted.
    MissingScopes(Vec<String>),
    /// The provider ended it.
    ReauthorizationRequired,
    /// It has run out and there is no refresh token.
    NoRefreshToken,
    /// It does not open.
    Quarantined,
    /// The account is unlinked.
    NotLinked,
    /// A refresh failed a moment ago; another may be tried then.
    Wait(Timestamp),
    /// The token at hand was reported as rejected; another may be had then.
    Rejected(Timestamp),
}

impl Freshness {
    /// Of a token that `answer` brought for a request sent at `sent_at`. `idle`: how long the provider keeps a refresh
    /// token that is not used. `load` and `spread` as in [`policy::due_at`].
    pub fn of(
        answer: &TokenAnswer,
        refreshable: bool,
        idle: Option<Duration>,
        sent_at: Timestamp,
        load: f64,
        spread: f64,
    ) -> Self {
        let lifetime = answer.lifetime.span().filter(|_| refreshable);
        Self {
            issued_at: sent_at,
            lifetime: answer.lifetime,
            due_at: lifetime.map(|lifetime| policy::due_at(sent_at, lifetime, load, spread)),
            keep_alive_at: idle.filter(|_| refreshable).map(|idle| policy::keep_alive_at(sent_at, idle, spread)),
        }
    }

    /// When the token has only its floor of life left; `None` if it does not expire.
    pub fn floor_at(&self) -> Option<Timestamp> {
        let lifetime = self.lifetime.span()?;
        // A millisecond later it is below the floor.
        Some(self.issued_at.plus(lifetime.saturating_sub(policy::floor(lifetime))).plus(Duration::from_millis(1)))
    }

    /// Whether the token is so new that refreshing it again helps nobody, and until when.
    pub fn too_new_until(&self, now: Timestamp) -> Option<Timestamp> {
        Some(self.issued_at.plus(policy::too_new(self.span()))).filter(|until| *until > now && self.issued_at <= now)
    }

    /// When the token ends; `None` if never.
    pub fn expires_at(&self) -> Option<Timestamp> {
        self.lifetime.span().map(|lifetime| self.issued_at.plus(lifetime))
    }

    /// The span that retries are measured by, also for tokens that do not expire.
    pub fn span(&self) -> Duration {
        self.lifetime.span().unwrap_or(policy::ASSUMED_LIFETIME)
    }

    /// The life left at `now`; zero where the clock cannot be trusted with this token.
    fn left(&self, expires_at: Timestamp, lifetime: Duration, now: Timestamp) -> Duration {
        let left = expires_at.since(now);
        let from_the_future = self.issued_at > now.plus(policy::CLOCK_TOLERANCE);
        if from_the_future || left > lifetime + policy::CLOCK_TOLERANCE { Duration::ZERO } else { left }
    }
}

impl Grant {
    /// Whether a refresh token is at hand.
    pub const fn refreshable(&self) -> bool {
        self.refresh_generation.is_some()
    }

    /// Whether its access token is above the floor at `now`.
    pub fn lives(&self, now: Timestamp) -> bool {
        match (self.freshness.expires_at(), self.freshness.lifetime.span()) {
            (Some(end), Some(lifetime)) => {
                let left = self.freshness.left(end, lifetime, now);
                left > Duration::ZERO && left >= policy::floor(lifetime)
            }
            _ => true,
        }
    }

    /// How a get is answered at `now`.
    pub fn serve(&self, need: &Need, now: Timestamp) -> Serve {
        if let Some(refusal) = self.refusal(need) {
            return Serve::Refuse(refusal);
        }
        let (Some(end), Some(lifetime)) = (self.freshness.expires_at(), self.freshness.lifetime.span()) else {
            return Serve::Now;
        };
        let left = self.freshness.left(end, lifetime, now);
        let lives = self.lives(now);
        if lives && left >= policy::wanted_life(lifetime, need.min_ttl) {
            let due = self.freshness.due_at.is_some_and(|due| due <= now);
            return if due { Serve::NowThenRefresh } else { Serve::Now };
        }
        self.serve_below_need(lives && need.min_ttl.is_none(), now)
    }

    /// How a get is answered whose caller reports the token at hand as rejected: never with that token.
    pub fn serve_rejected(&self, need: &Need, now: Timestamp) -> Serve {
        if let Some(refusal) = self.refusal(need) {
            return Serve::Refuse(refusal);
        }
        match self.freshness.too_new_until(now).max(self.wait_until(now)) {
            Some(at) => Serve::Refuse(Refusal::Rejected(at)),
            None if self.refreshable() => Serve::AfterRefresh { stale_will_do: false },
            None => Serve::Probe,
        }
    }

    fn refusal(&self, need: &Need) -> Option<Refusal> {
        match self.state {
            GrantState::Dead => Some(Refusal::ReauthorizationRequired),
            GrantState::Quarantined => Some(Refusal::Quarantined),
            GrantState::Ending | GrantState::Ended => Some(Refusal::NotLinked),
            GrantState::Active | GrantState::Suspect => {
                let missing = self.scopes.missing(&need.scopes);
                (!missing.is_empty()).then_some(Refusal::MissingScopes(missing))
            }
        }
    }

    fn serve_below_need(&self, stale_will_do: bool, now: Timestamp) -> Serve {
        match (self.refreshable(), self.wait_until(now)) {
            (true, None) => Serve::AfterRefresh { stale_will_do },
            _ if stale_will_do => Serve::Now,
            (true, Some(at)) => Serve::Refuse(Refusal::Wait(at)),
            (false, _) => Serve::Refuse(Refusal::NoRefreshToken),
        }
    }

    /// Until when callers do not cause an attempt, if the last one failed a moment ago.
    pub fn wait_until(&self, now: Timestamp) -> Option<Timestamp> {
        let attempted_at = self.attempted_at.filter(|_| self.attempts > 0);
        let again_at = attempted_at.map(|at| at.plus(policy::retry_for_waiting(self.freshness.span())));
        [again_at, self.retry_not_before].into_iter().flatten().filter(|at| is_put_off(*at, now)).max()
    }

    /// What the provider's refusal makes of this grant: suspect at first, dead when confirmed.
    pub fn refused(&self, now: Timestamp) -> (GrantState, Option<Timestamp>) {
        match self.state {
            GrantState::Suspect => (GrantState::Dead, None),
            _ => (GrantState::Suspect, Some(policy::confirm_at(now, self.freshness.expires_at()))),
        }
    }

    /// When the sweep tries again after a failure that says nothing about the grant, not before `earliest`. A suspect
    /// one stays suspect.
    pub fn deferred(&self, now: Timestamp, earliest: Option<Timestamp>, spread: f64) -> Timestamp {
        let retry = policy::retry_at(now, self.freshness.span(), self.lives(now), self.attempts + 1, spread);
        earliest.map_or(retry, |earliest| earliest.max(retry))
    }
}

/// Whether an attempt is put off until then. What no clock has written that was about right puts off nothing.
pub(super) fn is_put_off(until: Timestamp, now: Timestamp) -> bool {
    until > now && until <= policy::latest(now, policy::LONGEST_PAUSE)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const NOW: Timestamp = Timestamp::from_millis(1_000_000_000);

    /// An hour's refreshable token, issued `age` seconds ago, due at 50 minutes.
    pub(crate) fn hour(age: u64) -> Grant {
        let issued_at = NOW.minus(Duration::from_secs(age));
        Grant {
            id: GrantId::new(NOW),
            account: AccountId::new(NOW),
            user: UserId::parse("u").unwrap(),
            provider: ProviderId::new(NOW),
            state: GrantState::Active,
            freshness: Freshness {
                issued_at,
                lifetime: Lifetime::Stated(Duration::from_hours(1)),
                due_at: Some(issued_at.plus(Duration::from_mins(50))),
                keep_alive_at: None,
            },
            token_type: "Bearer".into(),
            scopes: Scopes::split("read write", " "),
            params: BTreeMap::new(),
            access_generation: 0,
            refresh_generation: Some(0),
            fence: 0,
            committed_fence: 0,
            lease: None,
            doubted_fence: None,
            attempted_at: None,
            attempts: 0,
            retry_not_before: None,
            ahead_until: NOW,
        }
    }

    fn min_ttl(secs: u64) -> Need {
        Need { min_ttl: Some(Duration::from_secs(secs)), ..Need::default() }
    }

    #[test]
    fn s9_what_a_clock_ahead_has_put_off_is_not_waited_for() {
        let secs = Duration::from_secs;
        let off = |retry, attempted| Grant {
            attempts: 1,
            retry_not_before: Some(NOW.plus(secs(retry))),
            attempted_at: Some(NOW.plus(secs(attempted))),
            ..hour(3_600)
        };
        assert_eq!(off(900, 0).wait_until(NOW), Some(NOW.plus(secs(900))));
        assert_eq!(off(86_400, 0).wait_until(NOW), Some(NOW.plus(secs(5))));
        assert_eq!(off(86_400, 86_400).wait_until(NOW), None);
    }

    #[test]
    fn a_token_is_served_by_its_age() {
        let unset = Need::default();
        assert_eq!(hour(0).serve(&unset, NOW), Serve::Now);
        assert_eq!(hour(3_000).serve(&unset, NOW), Serve::NowThenRefresh);
        assert_eq!(hour(3_541).serve(&unset, NOW), Serve::AfterRefresh { stale_will_do: true });
        assert_eq!(hour(3_571).serve(&unset, NOW), Serve::AfterRefresh { stale_will_do: false });
        assert_eq!(hour(4_000).serve(&unset, NOW), Serve::AfterRefresh { stale_will_do: false });
    }

    #[test]
    fn min_ttl_is_kept_up_to_half_of_what_is_issued() {
        assert_eq!(hour(1_799).serve(&min_ttl(1_000_000), NOW), Serve::Now);
        assert_eq!(hour(1_801).serve(&min_ttl(1_000_000), NOW), Serve::AfterRefresh { stale_will_do: false });
        assert_eq!(hour(3_571).serve(&min_ttl(0), NOW), Serve::AfterRefresh { stale_will_do: false });
        assert_eq!(hour(3_560).serve(&min_ttl(0), NOW), Serve::NowThenRefresh);
    }

    #[test]
    fn without_a_refresh_token_it_is_served_down_to_the_floor() {
        let mut grant = hour(3_560);
        (grant.refresh_generation, grant.freshness.due_at) = (None, None);
        assert_eq!(grant.serve(&Need::default(), NOW), Serve::Now);
        assert_eq!(grant.serve(&min_ttl(300), NOW), Serve::Refuse(Refusal::NoRefreshToken));
        assert_eq!(
            grant.serve(&Need::default(), NOW.plus(Duration::from_secs(11))),
            Serve::Refuse(Refusal::NoRefreshToken)
        );
    }

    #[test]
    fn a_token_without_expiry_is_served_for_ever() {
        let mut grant = hour(400 * 86_400);
        grant.freshness.lifetime = Lifetime::Endless;
        assert_eq!(grant.serve(&min_ttl(u64::MAX), NOW), Serve::Now);
    }

    #[test]
    fn s9_a_token_from_the_future_is_never_served() {
        let behind = NOW.minus(Duration::from_hours(24));
        assert_eq!(hour(0).serve(&Need::default(), behind), Serve::AfterRefresh { stale_will_do: false });
    }

    #[test]
    fn a_failed_attempt_is_not_repeated_by_every_caller() {
        let mut grant = hour(3_590);
        (grant.attempts, grant.attempted_at) = (1, Some(NOW.minus(Duration::from_secs(1))));
        assert_eq!(grant.serve(&Need::default(), NOW), Serve::Refuse(Refusal::Wait(NOW.plus(Duration::from_secs(4)))));
        let later = NOW.plus(Duration::from_secs(4));
        assert_eq!(grant.serve(&Need::default(), later), Serve::AfterRefresh { stale_will_do: false });
        // Above the floor the token at hand will do meanwhile.
        let mut grant = hour(3_550);
        (grant.attempts, grant.attempted_at) = (1, Some(NOW));
        assert_eq!(grant.serve(&Need::default(), NOW), Serve::Now);
    }

    #[test]
    fn two_refusals_end_a_grant_and_one_does_not() {
        let mut grant = hour(3_700);
        let (state, due_at) = grant.refused(NOW);
        assert_eq!((state, due_at), (GrantState::Suspect, Some(NOW.plus(Duration::from_secs(5)))));
        (grant.state, grant.retry_not_before) = (state, due_at);
        assert_eq!(grant.serve(&Need::default(), NOW), Serve::Refuse(Refusal::Wait(NOW.plus(Duration::from_secs(5)))));
        assert_eq!(grant.refused(NOW), (GrantState::Dead, None));
    }

    #[test]
    fn states_without_a_token_say_why() {
        let serve = |state| Grant { state, ..hour(0) }.serve(&Need::default(), NOW);
        assert_eq!(serve(GrantState::Dead), Serve::Refuse(Refusal::ReauthorizationRequired));
        assert_eq!(serve(GrantState::Quarantined), Serve::Refuse(Refusal::Quarantined));
        assert_eq!(serve(GrantState::Ending), Serve::Refuse(Refusal::NotLinked));
        assert_eq!(serve(GrantState::Suspect), Serve::Now);
        let need = Need { scopes: Scopes::split("write admin", " "), ..Need::default() };
        assert_eq!(hour(0).serve(&need, NOW), Serve::Refuse(Refusal::MissingScopes(vec!["admin".into()])));
    }

    #[test]
    fn p17_a_rejected_token_is_never_answered_back() {
        let rejected = |age| hour(age).serve_rejected(&Need::default(), NOW);
        assert_eq!(rejected(29), Serve::Refuse(Refusal::Rejected(NOW.plus(Duration::from_secs(1)))));
        assert_eq!(rejected(30), Serve::AfterRefresh { stale_will_do: false });
        let failed = Grant { attempts: 1, attempted_at: Some(NOW), ..hour(600) };
        let wait = Serve::Refuse(Refusal::Rejected(NOW.plus(Duration::from_secs(5))));
        assert_eq!(failed.serve_rejected(&Need::default(), NOW), wait);
        let bare = Grant { refresh_generation: None, ..hour(600) };
        assert_eq!(bare.serve_rejected(&Need::default(), NOW), Serve::Probe);
        let dead = Grant { state: GrantState::Dead, ..hour(600) };
        assert_eq!(dead.serve_rejected(&Need::default(), NOW), Serve::Refuse(Refusal::ReauthorizationRequired));
    }

    #[test]
    fn nobody_asks_before_the_earliest_time() {
        let earliest = NOW.plus(Duration::from_secs(40));
        assert_eq!(hour(3_000).deferred(NOW, Some(earliest), 0.0), earliest);
        assert!(hour(3_000).deferred(NOW, None, 0.0).since(NOW) <= Duration::from_secs(5));
        let mut grant = hour(3_590);
        (grant.attempts, grant.attempted_at, grant.retry_not_before) = (1, Some(NOW), Some(earliest));
        let later = NOW.plus(Duration::from_secs(6));
        assert_eq!(grant.serve(&Need::default(), later), Serve::Refuse(Refusal::Wait(earliest)));
        assert_eq!(grant.serve(&Need::default(), earliest), Serve::AfterRefresh { stale_will_do: false });
    }
}
