//! Doubt: a refresh token was sent, or may have been, and no answer is known. When may it be sent again?

use std::time::Duration;

use super::grant::{Grant, Lease, is_put_off};
use super::policy;
use crate::clock::Timestamp;

/// What a provider makes of a refresh token that was redeemed before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    /// It stays valid, at least until its replacement is used: sending it again harms nothing.
    Harmless,
    /// It is taken for so long after its first use.
    Grace(Duration),
    /// It is refused; the replacement lives on.
    Refused,
    /// It is refused, and with it dies everything that the consent gave (RFC 9700 section 4.14.2). Also what is not
    /// known to be better.
    EndsAll,
}

/// What is known of the replica that sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// It is this one, and it holds no answer, neither in memory nor in its spool.
    KnowsNothing,
    /// Another one, last heard of then; `None` if never.
    LastHeard(Option<Timestamp>),
}

/// What is to be done with a grant in doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// Its refresh token may be sent again now, if the claim finds this to be so still.
    SendAgain(Recovery),
    /// Look again then. Until then a refresh is not to be had.
    WaitUntil(Timestamp),
}

/// What must still be so when a grant in doubt is claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// The sender, if it is another replica, was not heard of after this; `None`: that does not matter.
    pub sender_silent_since: Option<Timestamp>,
    /// After this it is not sent: the provider's grace is over then. `None`: there is no hurry.
    pub send_by: Option<Timestamp>,
}

/// A sender that was not heard of for this long will not come back with an answer.
const SILENT: Duration = Duration::from_secs(30);

/// The same, where what it knows must not be lost: sending again ends everything, or a code is spent.
pub const SILENT_FOR_GOOD: Duration = Duration::from_mins(10);

/// A request may take this long to be heard by the provider: a grace that ends earlier is as good as over.
const UNDER_WAY: Duration = Duration::from_secs(5);

/// How often a doubt is looked at whose end is not known.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// Whether what a lease tells can be judged: it has ended, or no clock that was right set it.
pub fn is_over(lease: Lease, now: Timestamp) -> bool {
    lease.until <= now || lease.until > policy::latest_written(now)
}

/// Whether the refresh token of `grant`, whose lease has run out without an outcome, may be sent again. `rejected`: a
/// caller reports its access token as dead.
pub fn judge(grant: &Grant, reuse: Reuse, sender: Sender, rejected: bool, now: Timestamp) -> Doubt {
    if let Some(at) = grant.retry_not_before.filter(|at| is_put_off(*at, now)) {
        return Doubt::WaitUntil(at);
    }
    // A time that lies ahead says nothing.
    let known = |at: Option<Timestamp>| at.filter(|at| *at <= policy::latest_written(now));
    let sent_at = known(grant.attempted_at);
    let whatever_the_sender_knows = |send_by| Doubt::SendAgain(Recovery { sender_silent_since: None, send_by });
    match (reuse, sent_at) {
        (Reuse::Harmless, _) => return whatever_the_sender_knows(None),
        // Once: what the provider makes of a third time nobody says.
        (Reuse::Grace(grace), Some(sent_at)) if grant.doubted_fence.is_none() => {
            let send_by = sent_at.plus(grace.saturating_sub(UNDER_WAY));
            if now < send_by {
                return whatever_the_sender_knows(Some(send_by));
            }
        }
        (Reuse::Grace(_) | Reuse::Refused | Reuse::EndsAll, _) => {}
    }
    // Sending again may end the grant, so not before the token at hand is of no use any more.
    let floor_at = grant.freshness.floor_at();
    if grant.lives(now) && !rejected {
        return Doubt::WaitUntil(floor_at.unwrap_or_else(|| now.plus(LOOK_AGAIN)));
    }
    match sender {
        Sender::KnowsNothing => whatever_the_sender_knows(None),
        Sender::LastHeard(heard) => {
            let silent = if reuse == Reuse::EndsAll { SILENT_FOR_GOOD } else { SILENT };
            let until = known(heard).or(sent_at).or(floor_at).unwrap_or(now).plus(silent);
            if until <= now {
                Doubt::SendAgain(Recovery { sender_silent_since: Some(now.minus(silent)), send_by: None })
            } else {
                Doubt::WaitUntil(until.min(now.plus(LOOK_AGAIN)))
            }
        }
    }
}

/// When `grant`, which its latest claim left in doubt, is looked at next, not before `earliest`. If nobody else holds an
/// answer it may be sent again then: soon in a grace, else after longer and longer waits as for any other failure. The
/// waits are spread by `spread` in 0..=1.
pub fn next_look(grant: &Grant, reuse: Reuse, earliest: Timestamp, now: Timestamp, spread: f64) -> Timestamp {
    let free = Grant { retry_not_before: None, ..grant.clone() };
    match judge(&free, reuse, Sender::KnowsNothing, false, now) {
        Doubt::SendAgain(Recovery { send_by: Some(_), .. }) => {
            Grant { attempts: 0, ..free }.deferred(now, Some(earliest), spread)
        }
        Doubt::SendAgain(_) => grant.deferred(now, Some(earliest), spread),
        Doubt::WaitUntil(at) => at.max(earliest).max(now.plus(policy::retry_for_waiting(grant.freshness.span()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::grant::tests::{NOW, hour};
    use crate::domain::ids::ReplicaId;

    const AGAIN: Doubt = Doubt::SendAgain(Recovery { sender_silent_since: None, send_by: None });

    fn again_if_silent_for(span: u64) -> Doubt {
        Doubt::SendAgain(Recovery { sender_silent_since: Some(NOW.minus(secs(span))), send_by: None })
    }

    fn again_within(span: u64) -> Doubt {
        Doubt::SendAgain(Recovery { sender_silent_since: None, send_by: Some(NOW.plus(secs(span))) })
    }

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    /// An hour's grant in doubt, of such age, whose request was sent 20 s ago.
    fn doubtful(age: u64) -> Grant {
        Grant { attempted_at: Some(NOW.minus(secs(20))), ..hour(age) }
    }

    #[test]
    fn p14_what_may_be_sent_again_depends_on_what_the_provider_makes_of_it() {
        let nothing = Sender::KnowsNothing;
        let floor = NOW.plus(secs(570)).plus(Duration::from_millis(1));
        for (reuse, age, expected) in [
            (Reuse::Harmless, 3_000, AGAIN),
            (Reuse::Grace(secs(60)), 3_000, again_within(35)),
            (Reuse::Grace(secs(25)), 3_000, Doubt::WaitUntil(floor)),
            (Reuse::Refused, 3_000, Doubt::WaitUntil(floor)),
            (Reuse::EndsAll, 3_000, Doubt::WaitUntil(floor)),
            (Reuse::Grace(secs(25)), 3_571, AGAIN),
            (Reuse::Refused, 3_571, AGAIN),
            (Reuse::EndsAll, 3_571, AGAIN),
        ] {
            assert_eq!(judge(&doubtful(age), reuse, nothing, false, NOW), expected, "{reuse:?} at {age} s");
        }
        assert_eq!(judge(&doubtful(3_000), Reuse::EndsAll, nothing, true, NOW), AGAIN, "rejected");
    }

    #[test]
    fn the_sender_is_given_time_to_come_back_with_an_answer() {
        let heard = |ago| Sender::LastHeard(Some(NOW.minus(secs(ago))));
        let judged = |reuse, sender| judge(&doubtful(3_600), reuse, sender, false, NOW);
        assert_eq!(judged(Reuse::Refused, heard(30)), again_if_silent_for(30));
        assert_eq!(judged(Reuse::Refused, heard(29)), Doubt::WaitUntil(NOW.plus(secs(1))));
        assert_eq!(judged(Reuse::EndsAll, heard(30)), Doubt::WaitUntil(NOW.plus(LOOK_AGAIN)));
        assert_eq!(judged(Reuse::EndsAll, heard(600)), again_if_silent_for(600));
        // Never heard of: silent since it sent.
        assert_eq!(judged(Reuse::Refused, Sender::LastHeard(None)), Doubt::WaitUntil(NOW.plus(secs(10))));
    }

    #[test]
    fn a_second_silence_is_an_outage_like_any_other() {
        let mut grant = Grant { doubted_fence: Some(1), ..doubtful(3_600) };
        assert_eq!(judge(&grant, Reuse::EndsAll, Sender::KnowsNothing, false, NOW), AGAIN);
        // Who sent it the second time may hold an answer as well.
        let sender = Sender::LastHeard(Some(NOW));
        assert_eq!(judge(&grant, Reuse::EndsAll, sender, false, NOW), Doubt::WaitUntil(NOW.plus(LOOK_AGAIN)));
        grant.retry_not_before = Some(NOW.plus(secs(9)));
        let wait = Doubt::WaitUntil(NOW.plus(secs(9)));
        assert_eq!(judge(&grant, Reuse::Harmless, Sender::KnowsNothing, true, NOW), wait);
    }

    #[test]
    fn a_grace_is_used_once() {
        let grant = Grant { doubted_fence: Some(1), ..doubtful(3_000) };
        let judged = judge(&grant, Reuse::Grace(secs(60)), Sender::KnowsNothing, false, NOW);
        assert_eq!(judged, Doubt::WaitUntil(NOW.plus(secs(570)).plus(Duration::from_millis(1))));
    }

    #[test]
    fn p14_after_a_second_silence_the_waits_grow() {
        let silent = |attempts, doubted_fence| Grant { doubted_fence, attempts, ..doubtful(4_000) };
        let next = |grant: Grant| next_look(&grant, Reuse::Refused, NOW.plus(secs(10)), NOW, 1.0).since(NOW);
        assert_eq!(next(silent(0, None)), secs(10), "the first one is asked about once its lease is over");
        assert_eq!(next(silent(1, Some(1))), secs(10));
        assert_eq!(next(silent(4, Some(1))), secs(80));
        assert_eq!(next(silent(99, Some(1))), secs(900));
    }

    #[test]
    fn p10_what_was_answered_is_asked_again_soon_in_a_grace_and_else_at_the_floor() {
        let unclear = |age, attempts| Grant { attempted_at: Some(NOW), attempts, ..hour(age) };
        let next = |grant: Grant, reuse, spread| next_look(&grant, reuse, NOW, NOW, spread).since(NOW);
        let grace = Reuse::Grace(secs(60));
        assert_eq!(next(unclear(3_000, 0), grace, 1.0), secs(5));
        assert_eq!(next(unclear(3_000, 9), grace, 1.0), secs(5), "a grace does not wait for an outage");
        assert_eq!(next(unclear(3_000, 0), grace, 0.0), Duration::from_millis(1_250));
        let floor = secs(570) + Duration::from_millis(1);
        assert_eq!(next(unclear(3_000, 0), Reuse::EndsAll, 1.0), floor);
        assert_eq!(next(Grant { doubted_fence: Some(1), ..unclear(3_000, 0) }, grace, 1.0), floor);
        assert_eq!(next(unclear(3_600, 0), Reuse::EndsAll, 1.0), secs(5));
        assert_eq!(next(unclear(3_600, 4), Reuse::EndsAll, 1.0), secs(80));
    }

    #[test]
    fn s9_times_of_a_clock_that_was_ahead_say_nothing() {
        let owner = ReplicaId::new(NOW);
        let over = |until| is_over(Lease { owner, until }, NOW);
        assert_eq!(
            [NOW, NOW.plus(secs(1)), NOW.plus(secs(900)), NOW.plus(secs(901))].map(over),
            [true, false, false, true]
        );
        let tomorrow = NOW.plus(Duration::from_hours(24));
        let ahead = |age| Grant { attempted_at: Some(tomorrow), ..hour(age) };
        let judged = |age, reuse, sender| judge(&ahead(age), reuse, sender, false, NOW);
        let floor = Doubt::WaitUntil(NOW.plus(secs(570)).plus(Duration::from_millis(1)));
        assert_eq!(judged(3_000, Reuse::Grace(secs(60)), Sender::KnowsNothing), floor, "whether it lasts is not known");
        assert_eq!(judged(3_000, Reuse::Harmless, Sender::LastHeard(Some(tomorrow))), AGAIN);
        // Silent at least since the token reached its floor, half a minute before its end.
        for sender in [Sender::LastHeard(Some(tomorrow)), Sender::LastHeard(None)] {
            assert_eq!(judged(3_601, Reuse::Refused, sender), again_if_silent_for(30));
            assert_eq!(judged(3_601, Reuse::EndsAll, sender), Doubt::WaitUntil(NOW.plus(LOOK_AGAIN)));
            assert_eq!(judged(4_171, Reuse::EndsAll, sender), again_if_silent_for(600));
        }
    }

    #[test]
    fn a_token_that_does_not_expire_is_only_risked_when_it_is_rejected() {
        let mut grant = doubtful(3_600);
        grant.freshness.lifetime = crate::domain::provider::Lifetime::Endless;
        let judged = |rejected| judge(&grant, Reuse::Refused, Sender::KnowsNothing, rejected, NOW);
        assert_eq!((judged(false), judged(true)), (Doubt::WaitUntil(NOW.plus(LOOK_AGAIN)), AGAIN));
    }
}
