//! Taking tokens back at the provider (RFC 7009).

use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use oauth2::HttpRequest;
use url::form_urlencoded;

use super::catalog::{RevocationAuth, RevocationReach, RevocationToken};
use super::gate::Target;
use super::provider::Provider;
use super::token::malformed;
use super::verdict::classify_revocation;
use crate::domain::provider::Verdict;
use crate::domain::secret::{AccessToken, RefreshToken};
use crate::store::ProviderSecretRow;

/// A token to be revoked.
#[derive(Clone, Copy)]
pub enum Token<'a> {
    /// A refresh token.
    Refresh(&'a RefreshToken),
    /// An access token.
    Access(&'a AccessToken),
}

impl Provider {
    /// What a revocation is sent to, as the gate tells endpoints apart: where our credentials go with it, or not. `None`:
    /// the provider takes nothing back.
    pub fn revocation_target(&self) -> Option<Target> {
        self.endpoints.revocation_url.as_ref()?;
        Some(match self.entry.revocation_auth() {
            RevocationAuth::ClientSecretBasic | RevocationAuth::ClientSecretPost => Target::Token,
            RevocationAuth::None | RevocationAuth::ClientIdOnly | RevocationAuth::BearerAccessToken => Target::Profile,
        })
    }

    /// Whether a revocation ends all that its person gave our client. Where there is nothing to be called nothing is hit.
    pub fn revokes_whole(&self) -> bool {
        self.entry.revocation_reach == RevocationReach::Authorization && self.endpoints.revocation_url.is_some()
    }

    /// The client secrets in the order in which to try them; none where none is sent.
    pub fn secrets_for_revocation(&self) -> impl Iterator<Item = &ProviderSecretRow> {
        let sent = self.revocation_target() == Some(Target::Token);
        self.secrets_in_order().filter(move |_| sent)
    }

    /// Which of a grant's tokens to send, in order. One is enough where `all` of the grant's tokens are known: a refresh
    /// token takes its access tokens with it (RFC 7009 section 2.1).
    pub fn revocable<'a>(
        &self,
        refresh: Option<&'a RefreshToken>,
        access: Option<&'a AccessToken>,
        all: bool,
    ) -> Vec<Token<'a>> {
        let by_access = self.entry.revocation_auth() == RevocationAuth::BearerAccessToken;
        let (refresh, access) = (refresh.map(Token::Refresh), access.map(Token::Access));
        match self.entry.revocation_token {
            RevocationToken::Access => access.into_iter().collect(),
            _ if by_access => access.into_iter().collect(),
            RevocationToken::Refresh => refresh.into_iter().collect(),
            RevocationToken::RefreshOrAccess if all && refresh.is_some() => refresh.into_iter().collect(),
            RevocationToken::RefreshOrAccess => refresh.into_iter().chain(access).collect(),
        }
    }

    /// Revokes a token, once, with this secret of [`Self::secrets_for_revocation`]. Also well if the provider does not
    /// know it (any more). Asking again harms nobody.
    ///
    /// # Errors
    ///
    /// [`Verdict::Refused`]: it will not be revoked however often one asks.
    pub async fn revoke(&self, token: Token<'_>, secret: Option<&ProviderSecretRow>) -> Result<(), Verdict> {
        let request = self.revocation_request(token, secret)?;
        let response = self.send(request).await?;
        let by_token = self.entry.revocation_auth() == RevocationAuth::BearerAccessToken;
        let read = classify_revocation(&response, self.entry, by_token, self.wire.clock.now());
        if let Err(verdict) = &read {
            let (status, verdict) = (response.status, verdict.as_str());
            tracing::warn!(provider = %self.slug, status, verdict, "the revocation endpoint did not revoke a token");
        }
        read
    }

    fn revocation_request(&self, token: Token<'_>, secret: Option<&ProviderSecretRow>) -> Result<HttpRequest, Verdict> {
        let url = self.endpoints.revocation_url.as_ref().ok_or_else(malformed)?;
        let (token, hint) = match token {
            Token::Refresh(token) => (token.expose(), "refresh_token"),
            Token::Access(token) => (token.expose(), "access_token"),
        };
        let auth = self.entry.revocation_auth();
        let mut request = http::Request::post(url.as_str())
            .header(ACCEPT, "application/json")
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded");
        let mut form = form_urlencoded::Serializer::new(String::new());
        if auth == RevocationAuth::BearerAccessToken {
            request = request.header(AUTHORIZATION, secret_header(format!("Bearer {token}"))?);
        } else {
            form.append_pair("token", token).append_pair("token_type_hint", hint);
        }
        let secret = secret.map(|secret| self.client_secret(secret)).transpose()?;
        match (auth, &secret) {
            (RevocationAuth::ClientSecretBasic, Some(secret)) => {
                request = request.header(AUTHORIZATION, secret_header(basic(&self.client_id, secret.expose()))?);
            }
            (RevocationAuth::ClientSecretPost, Some(secret)) => {
                form.append_pair("client_id", &self.client_id).append_pair("client_secret", secret.expose());
            }
            // RFC 7009 section 2.1: a public client names itself.
            (
                RevocationAuth::ClientIdOnly | RevocationAuth::ClientSecretBasic | RevocationAuth::ClientSecretPost,
                _,
            ) => {
                form.append_pair("client_id", &self.client_id);
            }
            (RevocationAuth::None | RevocationAuth::BearerAccessToken, _) => {}
        }
        request.body(form.finish().into_bytes()).map_err(|_| malformed())
    }
}

/// RFC 6749 section 2.3.1: both form-encoded before they are base64.
fn basic(id: &str, secret: &str) -> String {
    let encoded = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
    let pair = format!("{}:{}", encoded(id), encoded(secret));
    format!("Basic {}", data_encoding::BASE64.encode(pair.as_bytes()))
}

fn secret_header(text: String) -> Result<HeaderValue, Verdict> {
    let mut value = HeaderValue::try_from(text).map_err(|_| malformed())?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::providers::provider::tests::provider;

    /// The header and the form of a revocation.
    fn sent(provider: &Provider, token: Token<'_>) -> (Option<String>, String) {
        let request = provider.revocation_request(token, provider.secrets_for_revocation().next()).unwrap();
        assert_eq!((request.method().as_str(), request.uri().path()), ("POST", "/revoke"));
        let header = request.headers().get(AUTHORIZATION).map(|value| value.to_str().unwrap().to_owned());
        (header, String::from_utf8(request.into_body()).unwrap())
    }

    #[test]
    fn a_revocation_is_authorized_as_the_catalog_says() {
        let (refresh, access) = (RefreshToken::new("r/1"), AccessToken::new("a"));
        let token = "token=r%2F1&token_type_hint=refresh_token";
        let basic = Some("Basic Y2xpZW50KzE6cyUzQSUyRg==");
        for (lines, header, form) in [
            ("", basic, token.to_owned()),
            ("token_auth = \"client_secret_post\"", None, format!("{token}&client_id=client+1&client_secret=s%3A%2F")),
            ("revocation_auth = \"client_id_only\"", None, format!("{token}&client_id=client+1")),
            ("revocation_auth = \"none\"", None, token.to_owned()),
        ] {
            let sent = sent(&provider(Some("s:/"), lines), Token::Refresh(&refresh));
            assert_eq!((sent.0.as_deref(), sent.1), (header, form), "{lines}");
        }
        let public = sent(&provider(None, ""), Token::Access(&access));
        assert_eq!(public, (None, "token=a&token_type_hint=access_token&client_id=client+1".to_owned()));
        let bearer = sent(&provider(None, "revocation_auth = \"bearer_access_token\""), Token::Access(&access));
        assert_eq!(bearer, (Some("Bearer a".to_owned()), String::new()));
    }

    #[test]
    fn the_tokens_that_the_provider_takes_are_sent_and_all_of_them_where_one_may_be_missing() {
        let (refresh, access) = (RefreshToken::new("r"), AccessToken::new("a"));
        for (lines, with_refresh, all, order) in [
            ("", true, true, "r"),
            ("", true, false, "ra"),
            ("", false, true, "a"),
            ("revocation_token = \"refresh\"", true, false, "r"),
            ("revocation_token = \"refresh\"", false, true, ""),
            ("revocation_token = \"access\"", true, false, "a"),
            ("revocation_auth = \"bearer_access_token\"", true, false, "a"),
        ] {
            let provider = provider(None, lines);
            let tokens = provider.revocable(Some(&refresh).filter(|_| with_refresh), Some(&access), all);
            let names = tokens.iter().map(|token| match token {
                Token::Refresh(token) => token.expose(),
                Token::Access(token) => token.expose(),
            });
            assert_eq!(names.collect::<String>(), order, "{lines}");
        }
    }
}
