//! The calls: code exchange, refresh, profile. Each sends one request, once.

use http::header::{ACCEPT, AUTHORIZATION, HeaderValue};
use oauth2::basic::{BasicClient, BasicErrorResponse};
use oauth2::{EndpointNotSet, EndpointSet, HttpRequest, HttpResponse, RequestTokenError};

use super::catalog::TokenAuth;
use super::provider::Provider;
use super::verdict::classify_profile;
use super::{answer, profile};
use crate::domain::provider::{Profile, TokenAnswer, Verdict};
use crate::domain::secret::{AccessToken, AuthorizationCode, ClientSecret, PkceVerifier, RefreshToken};
use crate::outbound::{OutboundError, Response, json};
use crate::store::ProviderSecretRow;

impl Provider {
    /// Redeems a code (RFC 6749 section 4.1.3), once, with this secret of [`Self::secrets_in_order`]; `None`: as a public
    /// client. Whatever came of it a code must not be sent again, but with another secret if this one was refused.
    /// `redirect_uri` is the one that the authorization named.
    pub async fn exchange(
        &self,
        code: &AuthorizationCode,
        verifier: Option<&PkceVerifier>,
        redirect_uri: &str,
        secret: Option<&ProviderSecretRow>,
    ) -> Result<TokenAnswer, Verdict> {
        let request = self.exchange_request(code, verifier, redirect_uri, secret)?;
        self.redeem(request).await
    }

    /// Redeems a refresh token (RFC 6749 section 6), once, with this secret of [`Self::secrets_in_order`]; `None`: as a
    /// public client.
    pub async fn refresh(
        &self,
        token: &RefreshToken,
        secret: Option<&ProviderSecretRow>,
    ) -> Result<TokenAnswer, Verdict> {
        self.redeem(self.refresh_request(token, secret)?).await
    }

    /// Reads the profile of the account that `token` belongs to. Asking twice harms nobody, so silence is
    /// [`Verdict::Later`] here, never [`Verdict::Unknown`].
    pub async fn userinfo(&self, token: &AccessToken) -> Result<Profile, Verdict> {
        let mut bearer = HeaderValue::try_from(format!("Bearer {}", token.expose())).map_err(|_| malformed())?;
        bearer.set_sensitive(true);
        let request = http::Request::get(self.endpoints.userinfo_url.as_str())
            .header(ACCEPT, "application/json")
            .header(AUTHORIZATION, bearer)
            .body(Vec::new())
            .map_err(|_| malformed())?;
        let response = self.send(request).await.map_err(|_| Verdict::Later { after: None, answered: false })?;
        if !(200..=299).contains(&response.status) {
            let verdict = classify_profile(&response, self.wire.clock.now());
            let (status, meaning) = (response.status, verdict.as_str());
            tracing::warn!(provider = %self.slug, status, verdict = meaning, "the profile endpoint gave no profile");
            return Err(verdict);
        }
        let Ok(found) = json::read(&response.body) else {
            tracing::warn!(provider = %self.slug, "the profile endpoint answered with something else than JSON");
            return Err(Verdict::Later { after: None, answered: false });
        };
        profile::read(&found, self.entry, &self.endpoints).map_err(|error| {
            tracing::error!(provider = %self.slug, %error, "check the provider's subject pointer");
            Verdict::Misconfigured("no_subject".to_owned())
        })
    }

    async fn redeem(&self, request: HttpRequest) -> Result<TokenAnswer, Verdict> {
        let response = self.send(request).await?;
        let read = answer::read(&response, self.entry, self.wire.clock.now());
        if let Err(verdict) = &read {
            let (status, verdict) = (response.status, verdict.as_str());
            tracing::warn!(provider = %self.slug, status, verdict, "the token endpoint gave no token");
        }
        read
    }

    pub(super) async fn send(&self, request: HttpRequest) -> Result<Response, OutboundError> {
        // Host and port alone: the rest of a URL is not for logs.
        let host = request.uri().host().unwrap_or_default().to_owned();
        let port = request.uri().port_u16();
        let sent = self.wire.outbound.send(request).await;
        sent.inspect_err(|error| tracing::warn!(provider = %self.slug, host, port, %error, "a provider gave no answer"))
    }

    fn exchange_request(
        &self,
        code: &AuthorizationCode,
        verifier: Option<&PkceVerifier>,
        redirect_uri: &str,
        secret: Option<&ProviderSecretRow>,
    ) -> Result<HttpRequest, Verdict> {
        let redirect_uri = oauth2::RedirectUrl::new(redirect_uri.to_owned()).map_err(|_| malformed())?;
        let client = self.client(secret)?.set_redirect_uri(redirect_uri);
        let mut request = client.exchange_code(oauth2::AuthorizationCode::new(code.expose().to_owned()));
        if let Some(verifier) = verifier.filter(|_| self.uses_pkce()) {
            request = request.set_pkce_verifier(oauth2::PkceCodeVerifier::new(verifier.expose().to_owned()));
        }
        built(|keep| request.request(keep).map(drop))
    }

    fn refresh_request(
        &self,
        token: &RefreshToken,
        secret: Option<&ProviderSecretRow>,
    ) -> Result<HttpRequest, Verdict> {
        let (client, token) = (self.client(secret)?, oauth2::RefreshToken::new(token.expose().to_owned()));
        built(|keep| client.exchange_refresh_token(&token).request(keep).map(drop))
    }

    /// A client secret, opened to be sent.
    pub(super) fn client_secret(&self, secret: &ProviderSecretRow) -> Result<ClientSecret, Verdict> {
        self.open_secret(secret).map_err(|error| {
            tracing::error!(provider = %self.slug, %error, "the client secret does not open");
            Verdict::Misconfigured("client_secret_sealed".to_owned())
        })
    }

    fn client(&self, secret: Option<&ProviderSecretRow>) -> Result<TokenClient, Verdict> {
        let secret = secret.map(|secret| self.client_secret(secret)).transpose()?;
        let client = BasicClient::new(oauth2::ClientId::new(self.client_id.clone()))
            .set_token_uri(oauth2::TokenUrl::from_url(self.endpoints.token_url.clone()))
            .set_auth_type(match self.entry.token_auth {
                TokenAuth::ClientSecretBasic => oauth2::AuthType::BasicAuth,
                TokenAuth::ClientSecretPost => oauth2::AuthType::RequestBody,
            });
        Ok(match secret {
            Some(secret) => client.set_client_secret(oauth2::ClientSecret::new(secret.expose().to_owned())),
            None => client,
        })
    }
}

type TokenClient = BasicClient<EndpointNotSet, EndpointNotSet, EndpointNotSet, EndpointNotSet, EndpointSet>;

/// "HTTP client" that keeps the request instead of sending it.
type Keep = fn(HttpRequest) -> Result<HttpResponse, Kept>;

/// The request that was built.
#[derive(thiserror::Error)]
#[error("kept")]
struct Kept(Box<HttpRequest>);

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Kept")
    }
}

/// The request that `oauth2` would have sent. It knows how clients authenticate and how forms are written; its own
/// reading of answers is left out, because it fails on what providers really send (an `expires_in` of text, errors
/// with status 200) and so would lose rotated tokens, and because its errors carry the body.
fn built(
    request: impl FnOnce(&Keep) -> Result<(), RequestTokenError<Kept, BasicErrorResponse>>,
) -> Result<HttpRequest, Verdict> {
    let keep: Keep = |request| Err(Kept(Box::new(request)));
    match request(&keep) {
        Err(RequestTokenError::Request(Kept(request))) => Ok(*request),
        Ok(()) | Err(_) => Err(malformed()),
    }
}

/// A request that cannot be written was not sent.
pub(super) const fn malformed() -> Verdict {
    Verdict::Later { after: None, answered: false }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::ProviderSecretId;
    use crate::providers::provider::secret_owner;
    use crate::providers::provider::tests::{NOW, provider};

    const REDIRECT: &str = "https://wallet.example.com/oauth/callback/example";

    fn exchange(provider: &Provider) -> HttpRequest {
        let (code, verifier) = (AuthorizationCode::new("c/1"), PkceVerifier::new("v-1"));
        provider.exchange_request(&code, Some(&verifier), REDIRECT, provider.secrets.first()).unwrap()
    }

    fn body(request: &HttpRequest) -> &str {
        std::str::from_utf8(request.body()).unwrap()
    }

    fn authorization(request: &HttpRequest) -> Option<&str> {
        request.headers().get(AUTHORIZATION).map(|value| value.to_str().unwrap())
    }

    const EXCHANGE: &str = "grant_type=authorization_code&code=c%2F1";
    const URI: &str = "redirect_uri=https%3A%2F%2Fwallet.example.com%2Foauth%2Fcallback%2Fexample";

    #[test]
    fn an_exchange_is_that_of_the_rfcs() {
        let request = exchange(&provider(Some("s:/ü"), ""));
        assert_eq!(
            (request.method().as_str(), request.uri().to_string().as_str()),
            ("POST", "https://id.example.com/token")
        );
        // RFC 6749 section 2.3.1: form-encoded before it is base64: "client+1:s%3A%2F%C3%BC".
        assert_eq!(authorization(&request), Some("Basic Y2xpZW50KzE6cyUzQSUyRiVDMyVCQw=="));
        assert_eq!(body(&request), format!("{EXCHANGE}&code_verifier=v-1&{URI}"));
        assert_eq!(request.headers()["content-type"], "application/x-www-form-urlencoded");
        assert_eq!(request.headers()["accept"], "application/json");
    }

    #[test]
    fn a_secret_goes_where_the_catalog_says_and_a_public_client_sends_its_id_alone() {
        let post = exchange(&provider(Some("s 1"), "token_auth = \"client_secret_post\""));
        assert_eq!(authorization(&post), None);
        assert_eq!(body(&post), format!("{EXCHANGE}&code_verifier=v-1&client_id=client+1&client_secret=s+1&{URI}"));
        let public = exchange(&provider(None, ""));
        assert_eq!(authorization(&public), None);
        assert_eq!(body(&public), format!("{EXCHANGE}&code_verifier=v-1&client_id=client+1&{URI}"));
    }

    #[test]
    fn a_refresh_is_that_of_the_rfc() {
        let provider = provider(Some("s"), "");
        let request = provider.refresh_request(&RefreshToken::new("rt+1"), provider.secrets.first()).unwrap();
        assert_eq!(body(&request), "grant_type=refresh_token&refresh_token=rt%2B1");
        assert!(authorization(&request).is_some());
    }

    #[test]
    fn a_refresh_goes_out_with_the_secret_that_it_is_given() {
        let mut provider = provider(Some("old"), "");
        let id = ProviderSecretId::new(NOW);
        let owner = secret_owner(id, provider.id);
        let secret = provider.wire.vault.seal(&ClientSecret::new("new"), &owner.owner()).unwrap();
        provider.secrets.insert(0, ProviderSecretRow { id, secret, created_at: NOW, last_used_at: None });
        for (secret, sent) in provider.secrets_in_order().zip(["Basic Y2xpZW50KzE6bmV3", "Basic Y2xpZW50KzE6b2xk"]) {
            let request = provider.refresh_request(&RefreshToken::new("rt"), Some(secret)).unwrap();
            assert_eq!(authorization(&request), Some(sent));
        }
    }

    #[test]
    fn no_verifier_is_shown_where_no_challenge_was() {
        let request = exchange(&provider(None, "pkce = \"unsupported\""));
        assert!(!body(&request).contains("code_verifier"));
    }

    #[test]
    fn a_secret_that_does_not_open_is_no_fault_of_the_grant() {
        let mut provider = provider(Some("s"), "");
        provider.id = crate::domain::ids::ProviderId::new(NOW);
        let refused = provider.refresh_request(&RefreshToken::new("rt"), provider.secrets.first()).err();
        assert_eq!(refused, Some(Verdict::Misconfigured("client_secret_sealed".to_owned())));
    }
}
