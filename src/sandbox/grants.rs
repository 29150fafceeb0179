//! What becomes of codes and tokens that are presented: every rule about redeeming, reuse and revocation.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use sha2::{Digest as _, Sha256};

use super::answer::{OauthError, Refusal};
use super::book::{Access, Book, Change, Code, Family, Refresh};
use super::faults::{Acts, Subject};
use super::ledger::Ending;
use super::options::Rotation;
use super::recorder::Reuse;
use super::rules::Operation;
use super::scopes::Scopes;
use super::secrets::{Digest, Kind, Minter, Secret};
use super::settings::Settings;
use crate::clock::Timestamp;

/// What a decision stands on.
pub(super) struct Terms<'a> {
    pub(super) now: Timestamp,
    pub(super) settings: &'a Settings,
    pub(super) minter: &'a Minter,
    pub(super) acts: Acts,
}

/// A code as its client presents it.
pub(super) struct CodeAsk<'a> {
    pub(super) code: &'a str,
    pub(super) client_id: &'a str,
    pub(super) redirect_uri: Option<&'a str>,
    pub(super) verifier: Option<&'a str>,
}

/// What was given.
pub(super) struct Issued {
    pub(super) access: Arc<Secret>,
    pub(super) refresh: Option<Secret>,
    pub(super) family_id: String,
    pub(super) family: Family,
    /// The scopes of this access token, which a refresh may narrow.
    pub(super) scopes: Scopes,
    /// Of the authorization request; none at a refresh.
    pub(super) nonce: Option<String>,
    pub(super) lives: Duration,
    /// Whether the refresh token presented had been redeemed before.
    pub(super) reuse: Option<Reuse>,
    /// Whether the refresh token presented was redeemed for a successor.
    pub(super) rotated: bool,
}

/// What a request presents, by its hash.
pub(super) enum Presented {
    Code(Digest),
    Refresh(Digest),
    Access(Digest),
    /// One or the other, as at `/revoke`.
    Token(Digest),
    Nothing,
}

/// What a new pair of tokens is for.
struct Gift {
    family_id: String,
    family: Family,
    scopes: Scopes,
    refresh: bool,
}

impl Book {
    /// Whom a request is about, which is counted in, and the grant it is about.
    pub(super) fn arrived(&mut self, on: Operation, presented: &Presented) -> (Subject, Option<String>) {
        if let Presented::Code(hash) = presented {
            let code = self.codes.get(hash);
            let person = code.map(|code| code.person.clone());
            let ordinal = person.as_deref().map_or(0, |person| self.families.count_of(person));
            return (Subject { on, person, client_id: code.map(|code| code.client_id.clone()), ordinal }, None);
        }
        let of_refresh = |hash| self.refresh.get(hash).map(|token| token.family.clone());
        let of_access = |hash| self.access.get(hash).map(|token| token.family.clone());
        let id = match presented {
            Presented::Refresh(hash) => of_refresh(hash),
            Presented::Access(hash) => of_access(hash),
            Presented::Token(hash) => of_refresh(hash).or_else(|| of_access(hash)),
            Presented::Code(_) | Presented::Nothing => None,
        };
        let family = id.as_deref().and_then(|id| self.families.family(id));
        let (person, client_id) = (family.map(|it| it.person.clone()), family.map(|it| it.client_id.clone()));
        let ordinal = id.as_deref().map_or(0, |id| self.families.arrived(id));
        (Subject { on, person, client_id, ordinal }, id)
    }

    /// Whether a refresh token that is presented has been redeemed for a successor before, which is counted.
    pub(super) fn reuse(&mut self, token: &Digest, settings: &Settings, now: Timestamp) -> Option<Reuse> {
        let held = self.refresh.get(token)?;
        let superseded_at = Timestamp::from_millis(held.superseded_at?);
        let reuse = if in_grace(settings, superseded_at, now) { Reuse::InGrace } else { Reuse::Dead };
        self.families.reused(&held.family, reuse);
        Some(reuse)
    }

    /// Keeps an approved code.
    pub(super) fn approve(&mut self, terms: &Terms<'_>, code: Code) -> Result<Secret, Refusal> {
        let secret = terms.minter.mint(Kind::Code)?;
        self.commit(vec![Change::Code { hash: secret.digest(), code }], terms.now)?;
        Ok(secret)
    }

    /// Exchanges a code (RFC 6749 section 4.1.3, RFC 7636 section 4.6). A second use ends what the first one gave. An
    /// attempt that is refused does not spend the code.
    pub(super) fn redeem_code(&mut self, terms: &Terms<'_>, ask: &CodeAsk<'_>) -> Result<Issued, Refusal> {
        let hash = Digest::of(ask.code);
        let known = self.codes.get(&hash).filter(|code| code.client_id == ask.client_id);
        let code = known.ok_or_else(|| Refusal::grant("the code is unknown"))?.clone();
        if let Some(family) = code.spent_for {
            self.end([family.clone()], Ending::CodeReuse, terms.now)?;
            return Err(Refusal::grant("the code was used before; what it gave is revoked").of_family(&family));
        }
        if code.expires_at <= terms.now {
            return Err(Refusal::grant("the code has expired"));
        }
        if ask.redirect_uri != Some(code.redirect_uri.as_str()) {
            return Err(Refusal::grant("redirect_uri is not the one of the authorization request"));
        }
        match (&code.challenge, ask.verifier) {
            (None, None) => {}
            (Some(challenge), Some(verifier)) if proves(verifier, challenge) => {}
            // RFC 9700 section 2.1.1: a verifier without a challenge is a downgrade.
            _ => return Err(Refusal::grant("code_verifier does not fit the code_challenge")),
        }
        let family_id = terms.minter.family()?;
        let family = Family {
            client_id: code.client_id,
            person: code.person,
            scopes: code.scopes.clone(),
            approved_at: code.approved_at,
        };
        let changes = vec![
            Change::Family { id: family_id.clone(), family: family.clone() },
            Change::Spent { hash, family: family_id.clone() },
        ];
        let refresh = code.scopes.has("offline_access") && !terms.acts.withhold_refresh;
        let mut issued = self.issue(terms, changes, Gift { family_id, family, scopes: code.scopes, refresh })?;
        issued.nonce = code.nonce;
        Ok(issued)
    }

    /// Redeems a refresh token (RFC 6749 section 6) by the rotation of the moment.
    pub(super) fn redeem_refresh(
        &mut self,
        terms: &Terms<'_>,
        token: &str,
        client_id: &str,
        narrowed: Option<Scopes>,
    ) -> Result<Issued, Refusal> {
        let hash = Digest::of(token);
        let unknown = || Refusal::grant("the refresh token is unknown, expired or revoked");
        let held = self.refresh.get(&hash).ok_or_else(unknown)?.clone();
        let reuse = self.reuse(&hash, terms.settings, terms.now);
        let refused = |refusal: Refusal| Refusal { reuse, ..refusal.of_family(&held.family) };
        let family = self.families.alive(&held.family).ok_or_else(|| refused(unknown()))?.clone();
        if family.client_id != client_id || held.expires_at <= terms.now {
            return Err(refused(unknown()));
        }
        if family.is_over(terms.settings, terms.now) {
            return Err(refused(Refusal::grant("the consent has come to its end")));
        }
        if reuse == Some(Reuse::Dead) {
            if terms.settings.reuse_revokes_family {
                self.end([held.family.clone()], Ending::Reuse, terms.now)?;
                let why = "the refresh token was used before; everything it gave is revoked";
                return Err(refused(Refusal::grant(why)));
            }
            return Err(refused(Refusal::grant("the refresh token was used before")));
        }
        let scopes = narrowed.unwrap_or_else(|| family.scopes.clone());
        if !scopes.within(&family.scopes) {
            let why = "scope asks for more than was approved";
            return Err(refused(Refusal::new(OauthError::InvalidScope, why)));
        }
        let refresh = self.rotates(terms, &held.family);
        let mut changes = if refresh { vec![Change::Superseded { hash, at: terms.now.millis() }] } else { Vec::new() };
        if terms.settings.refresh_ends_access && !terms.acts.repeat_access {
            let newest = self.families.newest_access(&held.family);
            changes.extend(newest.map(|hash| Change::AccessEnded { hash }));
        }
        let mut issued = self.issue(terms, changes, Gift { family_id: held.family, family, scopes, refresh })?;
        (issued.reuse, issued.rotated) = (reuse, refresh);
        self.families.redeemed(&issued.family_id, refresh);
        Ok(issued)
    }

    /// Whether this redemption gives a new refresh token.
    fn rotates(&self, terms: &Terms<'_>, family: &str) -> bool {
        let by_rule = match terms.settings.rotation {
            Rotation::Always | Rotation::Grace(_) => true,
            Rotation::Never => false,
            Rotation::Every(count) => (self.families.redemptions(family) + 1) % count == 0,
        };
        by_rule && !terms.acts.withhold_refresh
    }

    /// Ends a token of this client (RFC 7009 section 2.1). A refresh token, alive or superseded, takes everything of
    /// its consent with it. Answers with the consent it belonged to, if any.
    pub(super) fn revoke(
        &mut self,
        terms: &Terms<'_>,
        token: &str,
        client_id: &str,
    ) -> Result<Option<String>, Refusal> {
        let hash = Digest::of(token);
        let of_refresh = self.refresh.get(&hash).map(|token| token.family.clone());
        let of_access = self.access.get(&hash).map(|token| token.family.clone());
        let Some(id) = of_refresh.clone().or(of_access) else { return Ok(None) };
        let Some(family) = self.families.alive(&id) else { return Ok(None) };
        if family.client_id != client_id {
            let why = "the token was given to another client";
            return Err(Refusal::new(OauthError::UnauthorizedClient, why).of_family(&id));
        }
        if terms.settings.revocation_ends_all {
            let mut all = self.families.alive_of(&family.person);
            all.retain(|id| self.families.alive(id).is_some_and(|family| family.client_id == client_id));
            self.end(all, Ending::Revoked, terms.now)?;
        } else if of_refresh.is_some() {
            self.end([id.clone()], Ending::Revoked, terms.now)?;
        } else {
            self.commit(vec![Change::AccessEnded { hash }], terms.now)?;
        }
        Ok(Some(id))
    }

    /// Ends these consents with everything they gave.
    pub(super) fn end(&mut self, ids: impl IntoIterator<Item = String>, why: Ending, now: Timestamp) -> io::Result<()> {
        self.commit(ids.into_iter().map(|id| Change::FamilyEnded { id, why }).collect(), now)
    }

    /// The consent and the scopes of an access token that is good now.
    pub(super) fn live(&self, token: &str, now: Timestamp) -> Option<(&str, &Family, &Scopes)> {
        let held = self.access.get(&Digest::of(token)).filter(|held| held.expires_at > now)?;
        Some((&held.family, self.families.alive(&held.family)?, &held.scopes))
    }

    fn issue(&mut self, terms: &Terms<'_>, mut changes: Vec<Change>, gift: Gift) -> Result<Issued, Refusal> {
        let Gift { family_id, family, scopes, refresh } = gift;
        let again = if terms.acts.repeat_access { self.families.kept(&family_id) } else { None };
        let (access, expires_at) = if let Some(again) = again {
            again
        } else {
            let access = Arc::new(terms.minter.mint(Kind::Access)?);
            let expires_at = terms.now.plus(terms.settings.token_ttl);
            let held = Access { family: family_id.clone(), scopes: scopes.clone(), expires_at };
            changes.push(Change::Access { hash: access.digest(), token: held });
            (access, expires_at)
        };
        let refresh = if refresh { Some(terms.minter.mint(Kind::Refresh)?) } else { None };
        if let Some(refresh) = &refresh {
            let expires_at = terms.now.plus(terms.settings.refresh_ttl);
            let held = Refresh { family: family_id.clone(), expires_at, superseded_at: None };
            changes.push(Change::Refresh { hash: refresh.digest(), token: held });
        }
        self.commit(changes, terms.now)?;
        self.families.keep(&family_id, Arc::clone(&access));
        let lives = expires_at.since(terms.now);
        Ok(Issued { access, refresh, family_id, family, scopes, nonce: None, lives, reuse: None, rotated: false })
    }
}

/// Whether a token superseded at this moment still answers.
fn in_grace(settings: &Settings, superseded_at: Timestamp, now: Timestamp) -> bool {
    match settings.rotation {
        Rotation::Grace(span) => now < superseded_at.plus(span),
        Rotation::Always | Rotation::Never | Rotation::Every(_) => false,
    }
}

/// Whether a PKCE verifier is well formed and gives this S256 challenge (RFC 7636 sections 4.1 and 4.6).
fn proves(verifier: &str, challenge: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    (43..=128).contains(&verifier.len())
        && verifier.bytes().all(legal)
        && BASE64URL_NOPAD.encode(&Sha256::digest(verifier.as_bytes())) == challenge
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_rfc_7636_appendix_b_proves_itself() {
        let challenge = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";
        assert!(proves("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk", challenge));
        assert!(!proves("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXl", challenge));
        assert!(!proves("short", challenge));
    }
}
