//! The one HTTP client for providers: guarded addresses, capped bodies, no redirects.
//!
//! What the rest of the house lives from is the difference between [`OutboundError::NotSent`] and
//! [`OutboundError::Sent`]: a refresh token that may have reached its provider must not be spent again lightly.

mod guard;
pub mod json;

use std::error::Error as _;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::header::{HeaderMap, HeaderName, LOCATION, RETRY_AFTER, WWW_AUTHENTICATE};
use url::Url;
use zeroize::Zeroizing;

pub use guard::UrlError;
use guard::{AddressRefused, Guard};

/// How the client behaves.
#[derive(Clone, Debug)]
pub struct OutboundConfig {
    /// Networks such as `10.1.0.0/16` or single addresses that may be called although they are special-use.
    pub allow: Vec<String>,
    /// A development instance: loopback may be called, also by plain http.
    pub development: bool,
    /// For name resolution, connection and TLS handshake together.
    pub connect_timeout: Duration,
    /// For a request as a whole, from its connection to the last byte of the answer.
    pub total_timeout: Duration,
    /// The most bytes that are read of an answer's body.
    pub body_limit: usize,
}

/// The client cannot be built from its configuration.
#[derive(Debug, thiserror::Error)]
pub enum OutboundConfigError {
    /// An entry of `allow` is neither a network nor an address.
    #[error("outbound.allow: {0:?} is neither a network such as 10.1.0.0/16 nor an address")]
    Network(String),
    /// TLS, or the client, cannot be set up.
    #[error("the HTTP client cannot be set up: {0}")]
    Client(String),
}

/// The client. Cheap to clone; all clones share their connections.
#[derive(Clone)]
pub struct Outbound {
    client: reqwest::Client,
    guard: Arc<Guard>,
    body_limit: usize,
}

/// An answer, whatever its status. It may hold tokens: it has no `Debug`, and its body is wiped when dropped (what
/// the TLS and HTTP layers copied on the way is not in our hands).
pub struct Response {
    /// The status code.
    pub status: u16,
    /// `Retry-After` (RFC 9110 section 10.2.3), as it was written.
    pub retry_after: Option<String>,
    /// `WWW-Authenticate` (RFC 6750 section 3), as it was written.
    pub www_authenticate: Option<String>,
    /// `Location` (RFC 9110 section 10.2.2), as it was written. It is never followed.
    pub location: Option<String>,
    /// The body. Empty if the status is not a success and the body broke off or was too large: the status is the word.
    pub body: Zeroizing<Vec<u8>>,
}

/// Why there is no answer. It never says anything of what was sent or received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutboundError {
    /// The request surely did not reach the provider.
    #[error("not sent: {0}")]
    NotSent(NotSent),
    /// The provider may have received the request, and may have acted on it.
    #[error("sent, but {0}")]
    Sent(Unanswered),
}

/// Why a request was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotSent {
    /// The URL is not one that may be called.
    #[error("its URL {0}")]
    Url(UrlError),
    /// The name resolves to nothing but addresses that may not be called.
    #[error("its host resolves to special-use addresses only")]
    Address,
    /// The name does not resolve.
    #[error("its host does not resolve")]
    Name,
    /// Nobody took the connection in time.
    #[error("no connection")]
    Connect,
    /// TLS failed: a certificate that is not valid for the host, or no TLS at all.
    #[error("no TLS connection")]
    Tls,
    /// The request is malformed.
    #[error("it is malformed")]
    Malformed,
}

/// What became of a request that may have been received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unanswered {
    /// No complete answer in time.
    #[error("the answer did not come in time")]
    Timeout,
    /// The connection broke, or what came is not HTTP.
    #[error("the connection broke")]
    Broken,
    /// The body of a success is larger than the limit.
    #[error("the answer is too large")]
    TooLarge,
}

impl Default for OutboundConfig {
    fn default() -> Self {
        Self {
            allow: Vec::new(),
            development: false,
            connect_timeout: Duration::from_secs(2),
            total_timeout: Duration::from_secs(10),
            body_limit: 1 << 20,
        }
    }
}

impl Outbound {
    /// Builds the client.
    ///
    /// # Errors
    ///
    /// An entry of `allow` that is no network, or a TLS set-up that fails.
    pub fn new(config: &OutboundConfig) -> Result<Self, OutboundConfigError> {
        let guard = Arc::new(Guard::new(config)?);
        #[expect(clippy::disallowed_methods, reason = "this is the one client")]
        let client = reqwest::Client::builder()
            .user_agent(concat!("token-wallet/", env!("CARGO_PKG_VERSION")))
            .tls_backend_preconfigured(tls()?)
            .dns_resolver(Arc::clone(&guard))
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .referer(false)
            // By default GOAWAY and REFUSED_STREAM answers of HTTP/2 send a request again. What remains is hyper's
            // own second try on a pooled connection that closed before the request was taken up: nothing of it has
            // been written then.
            .retry(reqwest::retry::never())
            // One request a connection at a time, so that a connection's end leaves one request in doubt, not all.
            .http1_only()
            .connect_timeout(config.connect_timeout)
            .timeout(config.total_timeout)
            .build()
            .map_err(|error| OutboundConfigError::Client(error.to_string()))?;
        Ok(Self { client, guard, body_limit: config.body_limit })
    }

    /// Whether `url` may be called, as far as the URL itself tells: what its name resolves to is seen at the call.
    pub fn check(&self, url: &Url) -> Result<(), UrlError> {
        self.guard.check(url)
    }

    /// Sends a request once and reads the answer.
    pub async fn send(&self, request: http::Request<Vec<u8>>) -> Result<Response, OutboundError> {
        let malformed = OutboundError::NotSent(NotSent::Malformed);
        let request = reqwest::Request::try_from(request).map_err(|_| malformed)?;
        self.guard.check(request.url()).map_err(|why| OutboundError::NotSent(NotSent::Url(why)))?;
        let response = self.client.execute(request).await.map_err(|error| unanswered(&error))?;
        let status = response.status();
        let headers = response.headers();
        let [retry_after, www_authenticate, location] =
            [RETRY_AFTER, WWW_AUTHENTICATE, LOCATION].map(|name| header(headers, &name));
        let body = match self.read(response).await {
            Ok(body) => body,
            Err(_) if !status.is_success() => Zeroizing::default(),
            Err(why) => return Err(OutboundError::Sent(why)),
        };
        Ok(Response { status: status.as_u16(), retry_after, www_authenticate, location, body })
    }

    async fn read(&self, mut response: reqwest::Response) -> Result<Zeroizing<Vec<u8>>, Unanswered> {
        let announced = response.content_length().unwrap_or(0);
        let expected = usize::try_from(announced).ok().filter(|length| *length <= self.body_limit);
        // Room for what is announced or usual: a buffer that grows leaves unwiped copies behind.
        let room = expected.ok_or(Unanswered::TooLarge)?.max(8 << 10);
        let mut body = Zeroizing::new(Vec::with_capacity(room));
        while let Some(chunk) = response.chunk().await.map_err(|error| broken(&error))? {
            if body.len() + chunk.len() > self.body_limit {
                return Err(Unanswered::TooLarge);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }
}

/// TLS 1.2 and 1.3 with the public certificate authorities, compiled in: no file of the machine changes whom we trust.
fn tls() -> Result<rustls::ClientConfig, OutboundConfigError> {
    let roots = rustls::RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| OutboundConfigError::Client(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn header(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

/// What an error says of the request's fate. Only a failed connection is sure not to have carried it.
fn unanswered(error: &reqwest::Error) -> OutboundError {
    if !error.is_connect() {
        return OutboundError::Sent(broken(error));
    }
    OutboundError::NotSent(if has_cause(error, <dyn std::error::Error>::is::<AddressRefused>) {
        NotSent::Address
    } else if error.is_dns() {
        NotSent::Name
    } else if has_cause(error, is_tls) {
        NotSent::Tls
    } else {
        NotSent::Connect
    })
}

fn broken(error: &reqwest::Error) -> Unanswered {
    if error.is_timeout() { Unanswered::Timeout } else { Unanswered::Broken }
}

type Cause<'a> = &'a (dyn std::error::Error + 'static);

fn has_cause(error: &reqwest::Error, is: impl Fn(Cause<'_>) -> bool) -> bool {
    std::iter::successors(error.source(), |&cause| cause.source()).any(is)
}

fn is_tls(cause: Cause<'_>) -> bool {
    // An io::Error's source is its content's source: the content itself has to be asked for.
    let content = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    cause.is::<rustls::Error>() || content.is_some_and(|content| is_tls(content))
}
