//! What becomes of codes and tokens that are presented: every rule about redeeming, reuse and revocation.

use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use sha2::{Digest as _, Sha256};

use super::answer::{OauthError, Refusal};
use super::book::{Access, Book, Change, Code, Family, Refresh};
use super::options::Rotation;
use super::scopes::Scopes;
use super::secrets::{Digest, Kind, Minter, Secret};
use super::settings::Settings;
use crate::clock::Timestamp;

/// What a decision stands on.
pub(super) struct Terms<'a> {
    pub(super) now: Timestamp,
    pub(super) settings: &'a Settings,
    pub(super) minter: &'a Minter,
    /// Give no refresh token and keep the one presented as it is; see `faults`.
    pub(super) withhold_refresh: bool,
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
    pub(super) access: Secret,
    pub(super) refresh: Option<Secret>,
    pub(super) family_id: String,
    pub(super) family: Family,
    /// The scopes of this access token, which a refresh may narrow.
    pub(super) scopes: Scopes,
    /// Of the authorization request; none at a refresh.
    pub(super) nonce: Option<String>,
    pub(super) lives: Duration,
}

/// What was found for a token to revoke.
pub(super) enum Revoked {
    Access { family: String },
    Family { family: String },
    Nothing,
}

impl Book {
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
            self.commit(vec![Change::FamilyEnded { id: family.clone() }], terms.now)?;
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
        let gives_refresh = code.scopes.has("offline_access") && !terms.withhold_refresh;
        let mut issued = self.issue(terms, changes, family_id, family, code.scopes, gives_refresh)?;
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
        let refused = || unknown().of_family(&held.family);
        let family = self.families.get(&held.family).ok_or_else(refused)?.clone();
        if family.client_id != client_id || held.expires_at <= terms.now {
            return Err(refused());
        }
        if held.superseded_at.is_some_and(|at| !in_grace(terms, Timestamp::from_millis(at))) {
            if terms.settings.reuse_revokes_family {
                self.commit(vec![Change::FamilyEnded { id: held.family.clone() }], terms.now)?;
                let why = "the refresh token was used before; everything it gave is revoked";
                return Err(Refusal::grant(why).of_family(&held.family));
            }
            return Err(Refusal::grant("the refresh token was used before").of_family(&held.family));
        }
        let scopes = narrowed.unwrap_or_else(|| family.scopes.clone());
        if !scopes.within(&family.scopes) {
            let why = "scope asks for more than was approved";
            return Err(Refusal::new(OauthError::InvalidScope, why).of_family(&held.family));
        }
        let rotates = terms.settings.rotation != Rotation::Never && !terms.withhold_refresh;
        let changes = if rotates { vec![Change::Superseded { hash, at: terms.now.millis() }] } else { Vec::new() };
        self.issue(terms, changes, held.family, family, scopes, rotates)
    }

    /// Ends a token of this client (RFC 7009 section 2.1). A refresh token, alive or superseded, takes everything of
    /// its consent with it.
    pub(super) fn revoke(&mut self, now: Timestamp, token: &str, client_id: &str) -> Result<Revoked, Refusal> {
        let hash = Digest::of(token);
        let of_refresh = self.refresh.get(&hash).map(|token| token.family.clone());
        let of_access = self.access.get(&hash).map(|token| token.family.clone());
        let Some(id) = of_refresh.clone().or(of_access) else { return Ok(Revoked::Nothing) };
        let Some(family) = self.families.get(&id) else { return Ok(Revoked::Nothing) };
        if family.client_id != client_id {
            let why = "the token was given to another client";
            return Err(Refusal::new(OauthError::UnauthorizedClient, why).of_family(&id));
        }
        if of_refresh.is_some() {
            self.commit(vec![Change::FamilyEnded { id: id.clone() }], now)?;
            return Ok(Revoked::Family { family: id });
        }
        self.commit(vec![Change::AccessEnded { hash }], now)?;
        Ok(Revoked::Access { family: id })
    }

    /// The consent and the scopes of an access token that is good now.
    pub(super) fn live(&self, token: &str, now: Timestamp) -> Option<(&str, &Family, &Scopes)> {
        let held = self.access.get(&Digest::of(token)).filter(|held| held.expires_at > now)?;
        Some((&held.family, self.families.get(&held.family)?, &held.scopes))
    }

    fn issue(
        &mut self,
        terms: &Terms<'_>,
        mut changes: Vec<Change>,
        family_id: String,
        family: Family,
        scopes: Scopes,
        gives_refresh: bool,
    ) -> Result<Issued, Refusal> {
        let lives = terms.settings.token_ttl;
        let access = terms.minter.mint(Kind::Access)?;
        let held = Access { family: family_id.clone(), scopes: scopes.clone(), expires_at: terms.now.plus(lives) };
        changes.push(Change::Access { hash: access.digest(), token: held });
        let refresh = if gives_refresh { Some(terms.minter.mint(Kind::Refresh)?) } else { None };
        if let Some(refresh) = &refresh {
            let expires_at = terms.now.plus(terms.settings.refresh_ttl);
            let held = Refresh { family: family_id.clone(), expires_at, superseded_at: None };
            changes.push(Change::Refresh { hash: refresh.digest(), token: held });
        }
        self.commit(changes, terms.now)?;
        Ok(Issued { access, refresh, family_id, family, scopes, nonce: None, lives })
    }
}

/// Whether a token superseded at this moment still answers.
fn in_grace(terms: &Terms<'_>, superseded_at: Timestamp) -> bool {
    match terms.settings.rotation {
        Rotation::Grace(span) => terms.now < superseded_at.plus(span),
        Rotation::Always | Rotation::Never => false,
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
