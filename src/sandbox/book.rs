//! What the sandbox has given out. Every change is written to the journal first, then made here.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::journal::Journal;
use super::ledger::{Ending, Ledger};
use super::scopes::Scopes;
use super::secrets::Digest;
use super::settings::Settings;
use crate::clock::Timestamp;

/// How long a code is remembered after its end, so that using it twice is noticed.
const CODE_MEMORY: Duration = Duration::from_hours(1);

/// Below this many codes and access tokens it is not worth looking for expired ones.
const SMALL: usize = 4096;

/// An approved authorization that waits to be exchanged (RFC 6749 section 4.1.2).
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Code {
    pub(super) client_id: String,
    pub(super) redirect_uri: String,
    pub(super) person: String,
    pub(super) scopes: Scopes,
    pub(super) nonce: Option<String>,
    /// The PKCE S256 challenge.
    pub(super) challenge: Option<String>,
    #[serde(with = "millis")]
    pub(super) approved_at: Timestamp,
    #[serde(with = "millis")]
    pub(super) expires_at: Timestamp,
    /// The family it was exchanged for.
    pub(super) spent_for: Option<String>,
}

/// One consent, and with it everything it gives.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Family {
    pub(super) client_id: String,
    pub(super) person: String,
    pub(super) scopes: Scopes,
    #[serde(with = "millis")]
    pub(super) approved_at: Timestamp,
}

impl Family {
    /// Whether its consent gives no refreshes any more.
    pub(super) fn is_over(&self, settings: &Settings, now: Timestamp) -> bool {
        settings.consent_ttl.is_some_and(|ttl| self.approved_at.plus(ttl) <= now)
    }
}

/// An access token that was given out.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Access {
    pub(super) family: String,
    pub(super) scopes: Scopes,
    #[serde(with = "millis")]
    pub(super) expires_at: Timestamp,
}

/// A refresh token that was given out.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Refresh {
    pub(super) family: String,
    #[serde(with = "millis")]
    pub(super) expires_at: Timestamp,
    /// When it was first redeemed for a successor, in Unix milliseconds.
    pub(super) superseded_at: Option<i64>,
}

/// One step of the book. The names are the state file's format.
#[derive(Clone, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "snake_case")]
pub(super) enum Change {
    /// The signing key, PKCS #8 in base64.
    Key {
        pkcs8: String,
    },
    Code {
        hash: Digest,
        code: Code,
    },
    Spent {
        hash: Digest,
        family: String,
    },
    Family {
        id: String,
        family: Family,
    },
    Access {
        hash: Digest,
        token: Access,
    },
    Refresh {
        hash: Digest,
        token: Refresh,
    },
    Superseded {
        hash: Digest,
        at: i64,
    },
    AccessEnded {
        hash: Digest,
    },
    FamilyEnded {
        id: String,
        why: Ending,
    },
}

/// Everything given out that may still matter. A token whose family is ended or gone is dead.
pub(super) struct Book {
    pub(super) key: Option<String>,
    pub(super) codes: HashMap<Digest, Code>,
    pub(super) families: Ledger,
    pub(super) access: HashMap<Digest, Access>,
    pub(super) refresh: HashMap<Digest, Refresh>,
    journal: Journal,
    /// Codes and access tokens there may be before expired ones are looked for.
    room: usize,
}

impl Book {
    /// Opens the state file, or an empty book without one.
    pub(super) fn open(path: Option<&Path>, now: Timestamp) -> io::Result<Self> {
        let mut book = Self {
            key: None,
            codes: HashMap::new(),
            families: Ledger::default(),
            access: HashMap::new(),
            refresh: HashMap::new(),
            journal: Journal::Memory,
            room: SMALL,
        };
        if let Some(path) = path {
            let mut past = Journal::read(path)?;
            for change in past.changes.drain(..) {
                book.apply(change);
            }
            book.forget(now);
            book.journal = Journal::compact(path, book.changes())?;
        }
        Ok(book)
    }

    /// Ends writing: whatever would change the book fails from now on, and the state file is free.
    pub(super) fn close(&mut self) {
        self.journal = Journal::Closed;
    }

    /// Makes changes that stand or fall together.
    pub(super) fn commit(&mut self, changes: Vec<Change>, now: Timestamp) -> io::Result<()> {
        self.journal.append(&changes)?;
        for change in changes {
            self.apply(change);
        }
        if self.codes.len() + self.access.len() > self.room {
            self.forget(now);
            self.room = SMALL.max(2 * (self.codes.len() + self.access.len()));
        }
        Ok(())
    }

    fn apply(&mut self, change: Change) {
        match change {
            Change::Key { pkcs8 } => self.key = Some(pkcs8),
            Change::Code { hash, code } => _ = self.codes.insert(hash, code),
            Change::Spent { hash, family } => {
                if let Some(code) = self.codes.get_mut(&hash) {
                    code.spent_for = Some(family);
                }
            }
            Change::Family { id, family } => self.families.add(id, family),
            Change::Access { hash, token } => {
                self.families.gave_access(&token.family, hash, token.expires_at);
                self.access.insert(hash, token);
            }
            Change::Refresh { hash, token } => {
                self.families.gave_refresh(&token.family, hash, token.expires_at);
                self.refresh.insert(hash, token);
            }
            Change::Superseded { hash, at } => {
                if let Some(token) = self.refresh.get_mut(&hash) {
                    token.superseded_at.get_or_insert(at);
                }
            }
            Change::AccessEnded { hash } => _ = self.access.remove(&hash),
            Change::FamilyEnded { id, why } => self.families.end(&id, why),
        }
    }

    /// Drops what can no longer change any answer.
    fn forget(&mut self, now: Timestamp) {
        let families = &self.families;
        self.codes.retain(|_, code| code.expires_at.plus(CODE_MEMORY) > now);
        self.access.retain(|_, token| token.expires_at > now && families.alive(&token.family).is_some());
        self.refresh.retain(|_, token| token.expires_at > now && families.alive(&token.family).is_some());
        let access = self.access.values().map(|token| token.family.as_str());
        let used: HashSet<&str> = access.chain(self.refresh.values().map(|token| token.family.as_str())).collect();
        let unused = families.all_alive().map(|(id, _)| id).filter(|id| !used.contains(id.as_str()));
        for id in unused.cloned().collect::<Vec<_>>() {
            self.families.end(&id, Ending::Expired);
        }
    }

    /// The shortest way to this book.
    fn changes(&self) -> Vec<Change> {
        let key = self.key.iter().map(|pkcs8| Change::Key { pkcs8: pkcs8.clone() });
        let codes = self.codes.iter().map(|(hash, code)| Change::Code { hash: *hash, code: code.clone() });
        let families =
            self.families.all_alive().map(|(id, family)| Change::Family { id: id.clone(), family: family.clone() });
        // The newest of a family last, as it was given.
        let mut access: Vec<_> = self.access.iter().collect();
        access.sort_by_key(|(_, token)| token.expires_at);
        let mut refresh: Vec<_> = self.refresh.iter().collect();
        refresh.sort_by_key(|(_, token)| token.expires_at);
        let access = access.into_iter().map(|(hash, token)| Change::Access { hash: *hash, token: token.clone() });
        let refresh = refresh.into_iter().map(|(hash, token)| Change::Refresh { hash: *hash, token: token.clone() });
        key.chain(codes).chain(families).chain(access).chain(refresh).collect()
    }
}

/// Moments as Unix milliseconds.
mod millis {
    use serde::{Deserialize as _, Deserializer, Serializer};

    use crate::clock::Timestamp;

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands fields over by reference")]
    pub(super) fn serialize<S: Serializer>(at: &Timestamp, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_i64(at.millis())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Timestamp, D::Error> {
        i64::deserialize(from).map(Timestamp::from_millis)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    #[test]
    fn what_cannot_be_written_does_not_happen() {
        let now = Timestamp::from_millis(0);
        let mut book = Book::open(None, now).unwrap();
        let key = |text: &str| vec![Change::Key { pkcs8: text.into() }];
        book.commit(key("kept"), now).unwrap();
        book.close();
        assert!(book.commit(key("lost"), now).is_err());
        assert_eq!(book.key.as_deref(), Some("kept"));
    }

    #[test]
    fn expired_tokens_are_forgotten_with_their_families() {
        let mut book = Book::open(None, Timestamp::from_millis(0)).unwrap();
        let (clock, hand) = Clock::moved(Timestamp::from_millis(0));
        for number in 0..=SMALL {
            let (id, now) = (number.to_string(), clock.now());
            hand.advance(Duration::from_millis(1));
            let scopes = Scopes::parse(None).unwrap();
            let token =
                Access { family: id.clone(), scopes: scopes.clone(), expires_at: now.plus(Duration::from_secs(1)) };
            let family = Family { client_id: String::new(), person: String::new(), scopes, approved_at: now };
            let hash = Digest::of(&id);
            book.commit(vec![Change::Family { id, family }, Change::Access { hash, token }], now).unwrap();
        }
        assert_eq!((book.access.len(), book.families.all_alive().count()), (1000, 1000));
    }
}
