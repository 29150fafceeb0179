//! Who people are to a client: ID tokens, claims, the signing key and the two metadata documents.

use std::io;

use data_encoding::{BASE64, BASE64URL_NOPAD};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::grants::Issued;
use super::options::Person;
use super::scopes::{self, Scopes};
use crate::clock::Timestamp;

/// Signs ID tokens with ES256.
pub(super) struct Signer {
    key: EcdsaKeyPair,
    random: SystemRandom,
    /// The public key as a JWK (RFC 7517), its `kid` the RFC 7638 thumbprint.
    jwk: Value,
    kid: String,
}

impl Signer {
    /// A new key, PKCS #8 in base64.
    pub(super) fn generate() -> io::Result<String> {
        EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())
            .map(|document| BASE64.encode(document.as_ref()))
            .map_err(|_| io::Error::other("no randomness for a signing key"))
    }

    /// Takes a key that [`Signer::generate`] made.
    pub(super) fn new(pkcs8: &str) -> io::Result<Self> {
        let unreadable = || io::Error::new(io::ErrorKind::InvalidData, "the state file's signing key cannot be read");
        let random = SystemRandom::new();
        let bytes = BASE64.decode(pkcs8.as_bytes()).map_err(|_| unreadable())?;
        let key =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &bytes, &random).map_err(|_| unreadable())?;
        // An uncompressed point: 4, then x and y of 32 bytes each.
        let point = key.public_key().as_ref().get(1..65).ok_or_else(unreadable)?;
        let (x, y) = (BASE64URL_NOPAD.encode(&point[..32]), BASE64URL_NOPAD.encode(&point[32..]));
        let thumb = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
        let kid = BASE64URL_NOPAD.encode(&Sha256::digest(thumb.as_bytes()));
        let jwk =
            json!({ "kty": "EC", "crv": "P-256", "x": x, "y": y, "use": "sig", "alg": "ES256", "kid": kid.as_str() });
        Ok(Self { key, random, jwk, kid })
    }

    /// The JWK set.
    pub(super) fn jwks(&self) -> Value {
        json!({ "keys": [self.jwk] })
    }

    /// The ID token of an answer (OIDC Core sections 2 and 3.1.3.6); it lives as long as the access token. None if the
    /// system gave no randomness.
    pub(super) fn id_token(&self, issuer: &str, person: &Person, given: &Issued, now: Timestamp) -> Option<String> {
        let half = &Sha256::digest(given.access.expose().as_bytes())[..16];
        let mut claims = json!({
            "iss": issuer,
            "sub": person.subject,
            "aud": given.family.client_id,
            "iat": now.millis().div_euclid(1000),
            "exp": now.plus(given.lives).millis().div_euclid(1000),
            "auth_time": given.family.approved_at.millis().div_euclid(1000),
            "at_hash": BASE64URL_NOPAD.encode(half),
        });
        if let Some(nonce) = &given.nonce {
            claims["nonce"] = Value::from(nonce.as_str());
        }
        self.sign(&claims)
    }

    fn sign(&self, claims: &Value) -> Option<String> {
        let header = json!({ "alg": "ES256", "typ": "JWT", "kid": self.kid });
        let encoded = |part: &Value| BASE64URL_NOPAD.encode(part.to_string().as_bytes());
        let signed = format!("{}.{}", encoded(&header), encoded(claims));
        let signature = self.key.sign(&self.random, signed.as_bytes()).ok()?;
        Some(format!("{signed}.{}", BASE64URL_NOPAD.encode(signature.as_ref())))
    }
}

/// What `/userinfo` tells: always `sub`, more with `profile` and `email` (OIDC Core section 5.4). Without `openid` it
/// answers too, so that plain OAuth clients learn who linked.
pub(super) fn claims(person: &Person, scopes: &Scopes) -> Vec<(&'static str, Value)> {
    let mut claims = vec![("sub", Value::from(person.subject.as_str()))];
    if scopes.has("profile") {
        claims.push(("name", person.name.as_str().into()));
        claims.push(("preferred_username", person.username.as_str().into()));
    }
    if scopes.has("email") {
        claims.push(("email", person.email.as_str().into()));
        claims.push(("email_verified", person.email_verified.into()));
    }
    claims
}

/// The metadata of both well-known documents (OIDC Discovery section 3, RFC 8414 section 2).
pub(super) fn metadata(issuer: &str) -> Value {
    let methods = json!(["client_secret_basic", "client_secret_post", "none"]);
    json!({
        "issuer": issuer,
        "authorization_endpoint": format!("{issuer}/authorize"),
        "token_endpoint": format!("{issuer}/token"),
        "revocation_endpoint": format!("{issuer}/revoke"),
        "userinfo_endpoint": format!("{issuer}/userinfo"),
        "jwks_uri": format!("{issuer}/jwks"),
        "scopes_supported": scopes::KNOWN,
        "response_types_supported": ["code"],
        "response_modes_supported": ["query", "form_post"],
        "grant_types_supported": ["authorization_code", "refresh_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
        "token_endpoint_auth_methods_supported": methods,
        "revocation_endpoint_auth_methods_supported": methods,
        "code_challenge_methods_supported": ["S256"],
        "prompt_values_supported": ["none", "login", "consent", "select_account"],
        "claims_supported": [
            "iss", "sub", "aud", "exp", "iat", "auth_time", "nonce", "at_hash",
            "name", "preferred_username", "email", "email_verified"
        ],
        "authorization_response_iss_parameter_supported": true,
        "request_parameter_supported": false,
        "request_uri_parameter_supported": false,
        "claims_parameter_supported": false,
    })
}
