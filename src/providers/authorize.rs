//! The authorization URL: where the browser is sent to.

use data_encoding::BASE64URL_NOPAD;
use sha2::{Digest as _, Sha256};

use super::catalog::ResponseMode;
use super::provider::Provider;
use crate::domain::scopes::Scopes;
use crate::domain::secret::{FlowState, PkceVerifier};

/// One authorization to ask for.
#[derive(Clone, Copy)]
pub struct Authorization<'a> {
    /// The `state` that the callback must bring back.
    pub state: &'a FlowState,
    /// The verifier that the exchange will show; sent as its S256 challenge.
    pub verifier: &'a PkceVerifier,
    /// What to ask for; see [`Provider::link_scopes`].
    pub scopes: &'a Scopes,
    /// Who probably is asked (OpenID Connect Core section 3.1.2.1).
    pub login_hint: Option<&'a str>,
    /// Whether a refresh token is wanted.
    pub offline: bool,
}

impl Provider {
    /// The URL to send the browser to (RFC 6749 section 4.1.1, RFC 7636 section 4.3). It holds the state: never log it.
    pub fn authorization_url(&self, asked: &Authorization<'_>) -> String {
        let mut url = self.endpoints.authorization_url.clone();
        {
            // The endpoint's own query stays (RFC 6749 section 3.1).
            let mut query = url.query_pairs_mut();
            query.append_pair("response_type", "code");
            query.append_pair("client_id", &self.client_id);
            query.append_pair("redirect_uri", &self.redirect_uri);
            query.append_pair("state", asked.state.expose());
            if !asked.scopes.is_empty() {
                query.append_pair("scope", &asked.scopes.join(&self.entry.scope_separator));
            }
            if self.uses_pkce() {
                query.append_pair("code_challenge", &challenge(asked.verifier));
                query.append_pair("code_challenge_method", "S256");
            }
            if let Some(hint) = asked.login_hint {
                query.append_pair("login_hint", hint);
            }
            if self.entry.response_mode == ResponseMode::FormPost {
                query.append_pair("response_mode", "form_post");
            }
            query.extend_pairs(&self.entry.auth_params);
            if asked.offline {
                query.extend_pairs(&self.entry.offline_params);
            }
        }
        url.into()
    }
}

/// RFC 7636 section 4.2.
fn challenge(verifier: &PkceVerifier) -> String {
    BASE64URL_NOPAD.encode(&Sha256::digest(verifier.expose().as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::providers::provider::tests::provider;

    /// With the verifier of RFC 7636 appendix B.
    fn url(entry: &str, scopes: &[&str], login_hint: Option<&str>, offline: bool) -> String {
        let (state, verifier) =
            (FlowState::new("state-1"), PkceVerifier::new("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"));
        let scopes = Scopes::parse(scopes.iter().copied()).unwrap();
        let asked = Authorization { state: &state, verifier: &verifier, scopes: &scopes, login_hint, offline };
        provider(None, entry).authorization_url(&asked)
    }

    const START: &str = "https://id.example.com/authorize?tenant=7&response_type=code&client_id=client+1\
        &redirect_uri=https%3A%2F%2Fwallet.example.com%2Foauth%2Fcallback%2Fexample&state=state-1";
    const CHALLENGE: &str = "&code_challenge=E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM&code_challenge_method=S256";

    #[test]
    fn the_url_is_that_of_the_rfcs() {
        assert_eq!(url("", &["openid", "a:b"], None, true), format!("{START}&scope=openid+a%3Ab{CHALLENGE}"));
    }

    #[test]
    fn no_scope_leaves_the_parameter_out() {
        assert_eq!(url("", &[], None, false), format!("{START}{CHALLENGE}"));
    }

    #[test]
    fn the_catalog_adds_its_parameters_and_may_take_the_challenge_away() {
        let entry =
            "auth_params = { owner = \"user\" }\noffline_params = { prompt = \"consent\" }\npkce = \"unsupported\"";
        assert_eq!(
            url(entry, &[], Some("a&b@example.com"), true),
            format!("{START}&login_hint=a%26b%40example.com&owner=user&prompt=consent")
        );
        assert_eq!(url(entry, &[], None, false), format!("{START}&owner=user"));
    }
}
