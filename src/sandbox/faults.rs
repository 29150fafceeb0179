//! The rules that stand, and the one place where a request meets them.

use std::pin::pin;

use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::answer::Answer;
use super::rules::{Effect, Kind, Operation, Repeated, Rule, When};

/// A rule that stands.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fault {
    /// Its number, from 1, in the order in which rules were set; never used twice.
    pub id: u64,
    /// How many requests it has hit.
    pub hits: u64,
    /// What it says.
    #[serde(flatten)]
    pub rule: Rule,
}

/// Whom a request is about, as far as that is known when it arrives.
pub(super) struct Subject {
    pub(super) on: Operation,
    pub(super) person: Option<String>,
    pub(super) client_id: Option<String>,
    /// How many requests there were about this grant before; at an exchange, how many grants of the person.
    pub(super) ordinal: u64,
}

/// What the provider does otherwise than by its settings.
#[derive(Clone, Copy, Default)]
pub(super) struct Acts {
    /// Give no refresh token and keep the one presented as it is.
    pub(super) withhold_refresh: bool,
    /// Tell the refresh token that was presented.
    pub(super) repeat_refresh: bool,
    /// Give the newest access token again.
    pub(super) repeat_access: bool,
}

/// The rules of a running sandbox and how many requests wait.
#[derive(Default)]
pub(super) struct FaultBoard {
    standing: watch::Sender<Standing>,
    held: watch::Sender<usize>,
}

#[derive(Default)]
struct Standing {
    faults: Vec<Fault>,
    last: u64,
}

/// A rule that a request has met.
struct Hit {
    id: u64,
    when: When,
    effect: Effect,
}

/// One waiting request; dropping it counts it out.
struct Waiting<'a>(&'a watch::Sender<usize>);

impl FaultBoard {
    /// Takes one request through the rules. `work` does what was asked, or nothing if it is given no [`Acts`]; `record`
    /// sees the answer as it will be sent.
    ///
    /// All rules that match are met, in their order, but of those that stand in place of the answer only the first.
    /// A request whose caller is `gone` is met like any other, but is none that waits.
    pub(super) async fn around(
        &self,
        subject: &Subject,
        seed: u64,
        gone: &CancellationToken,
        work: impl FnOnce(Option<Acts>) -> Answer,
        record: impl FnOnce(&Answer),
    ) -> Answer {
        let is_early = |rule: &Rule| rule.effect.kind() == Kind::Wait && rule.when == When::Before;
        let early = self.meet(subject, seed, is_early);
        self.wait(&early, gone).await;
        let mut is_replaced = false;
        let hits = self.meet(subject, seed, |rule| match rule.effect.kind() {
            Kind::Wait => rule.when == When::After,
            Kind::Replacement => !std::mem::replace(&mut is_replaced, true),
            Kind::Change => true,
        });
        let replacement = hits.iter().find(|hit| hit.effect.kind() == Kind::Replacement);
        let is_done = replacement.is_none_or(|hit| hit.when == When::After);
        let mut answer = work(is_done.then(|| Acts::of(&hits)));
        let changes = hits.iter().filter(|hit| hit.effect.kind() == Kind::Change);
        for hit in replacement.into_iter().chain(changes) {
            answer.meet(&hit.effect);
        }
        answer.rules = early.iter().chain(&hits).map(|hit| hit.id).collect();
        record(&answer);
        self.wait(&hits, gone).await;
        answer
    }

    /// Puts these rules in place of all.
    pub(super) fn set(&self, rules: Vec<Rule>) -> Vec<u64> {
        let mut ids = Vec::new();
        self.standing.send_modify(|standing| {
            standing.faults.clear();
            ids = rules.into_iter().map(|rule| standing.add(rule)).collect();
        });
        ids
    }

    /// Puts one more rule behind the others.
    pub(super) fn add(&self, rule: Rule) -> u64 {
        let mut id = 0;
        self.standing.send_modify(|standing| id = standing.add(rule));
        id
    }

    /// Takes one rule away; whether it was there.
    pub(super) fn remove(&self, id: u64) -> bool {
        self.standing.send_if_modified(|standing| {
            let before = standing.faults.len();
            standing.faults.retain(|fault| fault.id != id);
            standing.faults.len() < before
        })
    }

    pub(super) fn get(&self) -> Vec<Fault> {
        self.standing.borrow().faults.clone()
    }

    /// Takes all holds away, which lets all go that wait for one.
    pub(super) fn release(&self) {
        self.standing.send_modify(|standing| standing.faults.retain(|fault| fault.rule.effect != Effect::Hold));
    }

    pub(super) fn held(&self) -> usize {
        *self.held.borrow()
    }

    /// Returns once at least this many requests are held.
    pub(super) async fn wait_held(&self, at_least: usize) {
        // An error would mean that the sender, which is `self`, is gone.
        let _ = self.held.subscribe().wait_for(|held| *held >= at_least).await;
    }

    fn meet(&self, subject: &Subject, seed: u64, mut wanted: impl FnMut(&Rule) -> bool) -> Vec<Hit> {
        let mut met = Vec::new();
        if self.standing.borrow().faults.is_empty() {
            return met;
        }
        self.standing.send_if_modified(|standing| {
            for fault in &mut standing.faults {
                if fault.is_for(subject, seed) && wanted(&fault.rule) {
                    fault.hits += 1;
                    met.push(Hit { id: fault.id, when: fault.rule.when, effect: fault.rule.effect.clone() });
                }
            }
            false
        });
        met
    }

    async fn wait(&self, hits: &[Hit], gone: &CancellationToken) {
        for hit in hits {
            match hit.effect {
                Effect::Hold => self.hold(hit.id, gone).await,
                Effect::Delay(span) => tokio::time::sleep(span).await,
                _ => {}
            }
        }
    }

    async fn hold(&self, id: u64, gone: &CancellationToken) {
        let waiting = Waiting::enter(&self.held);
        let mut standing = self.standing.subscribe();
        let mut released = pin!(async {
            let is_gone = |standing: &Standing| standing.faults.iter().all(|fault| fault.id != id);
            let _ = standing.wait_for(is_gone).await;
        });
        tokio::select! {
            () = &mut released => return,
            () = gone.cancelled() => drop(waiting),
        }
        released.await;
    }
}

impl Standing {
    fn add(&mut self, rule: Rule) -> u64 {
        self.last += 1;
        self.faults.push(Fault { id: self.last, hits: 0, rule });
        self.last
    }
}

impl Fault {
    fn is_for(&self, subject: &Subject, seed: u64) -> bool {
        let rule = &self.rule;
        let names = |wanted: &Option<String>, said: &Option<String>| wanted.is_none() || wanted == said;
        rule.on == subject.on
            && rule.times.is_none_or(|times| self.hits < times)
            && names(&rule.person, &subject.person)
            && names(&rule.client_id, &subject.client_id)
            && rule.share_of_grants.is_none_or(|share| self.draw(subject, seed, None) < share)
            && rule.share_of_requests.is_none_or(|share| self.draw(subject, seed, Some(subject.ordinal)) < share)
    }

    /// A number from 0 to below 1 that is the same each time for the same grant, or the same request of a grant.
    fn draw(&self, subject: &Subject, seed: u64, ordinal: Option<u64>) -> f64 {
        let drawn = format!("{seed} {} {:?} {:?} {ordinal:?}", self.id, subject.person, subject.client_id);
        let [a, b, c, d, ..]: [u8; 32] = Sha256::digest(drawn.as_bytes()).into();
        f64::from(u32::from_be_bytes([a, b, c, d])) / 4_294_967_296.0
    }
}

impl Acts {
    fn of(hits: &[Hit]) -> Self {
        let repeats = |what| hits.iter().any(|hit| hit.effect == Effect::Repeat(what));
        let repeat_refresh = repeats(Repeated::RefreshToken);
        let forged = hits.iter().any(|hit| hit.effect.forges("refresh_token"));
        Self {
            withhold_refresh: repeat_refresh || forged,
            repeat_refresh,
            repeat_access: repeats(Repeated::AccessToken),
        }
    }
}

impl<'a> Waiting<'a> {
    fn enter(held: &'a watch::Sender<usize>) -> Self {
        held.send_modify(|held| *held += 1);
        Self(held)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|held| *held -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_about_as_large_as_it_says_and_falls_on_the_same_ones_each_time() {
        let fault = |id| Fault { id, hits: 0, rule: Rule::refresh(Effect::Close).share_of_grants(0.3) };
        let hit = |id, seed| -> Vec<u32> {
            let is_hit = |number: &u32| {
                let person = Some(number.to_string());
                fault(id).is_for(&Subject { on: Operation::Refresh, person, client_id: None, ordinal: 0 }, seed)
            };
            (0..1000).filter(is_hit).collect()
        };
        assert!((250..350).contains(&hit(1, 0).len()), "{}", hit(1, 0).len());
        assert_eq!(hit(1, 0), hit(1, 0));
        assert!(hit(1, 0) != hit(1, 1) && hit(1, 0) != hit(2, 0), "seeds and rules choose for themselves");
    }
}
