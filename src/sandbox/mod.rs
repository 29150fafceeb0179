//! A real OAuth 2.0 and OpenID Connect provider of our own, for `dev`, tests and users.
//!
//! Below the base URL, which is also the issuer:
//!
//! | path | what |
//! |---|---|
//! | `/.well-known/openid-configuration`, `/.well-known/oauth-authorization-server` | metadata |
//! | `/authorize` | GET: the page; POST: the decision |
//! | `/token` | `authorization_code` with PKCE S256, `refresh_token` |
//! | `/revoke`, `/userinfo`, `/jwks` | RFC 7009, OIDC userinfo, the ES256 key |
//! | `/_sandbox/requests` | GET `?since=N`: the log, `{"requests": [Request], "last_sequence": N}`; DELETE |
//! | `/_sandbox/settings` | GET; PUT: [`Settings`], fields left out stay as they are |
//! | `/_sandbox/faults` | GET (`?held=N` waits up to 10 s until N requests are held); PUT: [`Faults`]; DELETE; POST `/release` |
//!
//! A script decides by posting `person=demo&decision=approve` (or `decision=cancel`) as a form to the authorization URL
//! as it is; the answer is a 303 to the redirect URI with `code`, `state` and `iss`. A refresh token is given if
//! `offline_access` was asked for. Consent is asked for each time and each approval starts a new family of tokens, so
//! `prompt=consent` changes nothing and `prompt=none` is `login_required`.

mod answer;
mod authorize;
mod book;
mod control;
mod faults;
mod grants;
mod identity;
mod journal;
mod options;
mod page;
mod params;
mod recorder;
mod scopes;
mod secrets;
mod settings;
mod token;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, State};
use axum::http::Method;
use axum::response::Response;
use axum::routing::{get, post};
use axum::serve::ListenerExt as _;
use axum::{Json, Router};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use self::book::{Book, Change};
use self::faults::FaultBoard;
use self::identity::Signer;
use self::recorder::Recorder;
use self::secrets::Minter;
use crate::clock::Clock;

pub use self::faults::{ErrorFault, ExpiresInFault, Faults, Hold, RefreshTokenFault, TokenFaults, UserinfoFaults};
pub use self::options::{
    Client, DEFAULT_CLIENT_ID, DEFAULT_CLIENT_SECRET, Options, Person, RedirectRule, Rotation, UnknownRotation,
};
pub use self::recorder::{Endpoint, KEPT_REQUESTS, Request, Secrets};
pub use self::settings::Settings;

/// Largest request body, in bytes.
const LARGEST_BODY: usize = 64 * 1024;

/// How long a shutdown waits for requests to be answered.
const DRAIN: Duration = Duration::from_secs(5);

/// A running sandbox. Dropping it stops it too, without waiting.
pub struct Sandbox {
    app: Arc<App>,
    addr: SocketAddr,
    serving: JoinHandle<io::Result<()>>,
    stop: DropGuard,
}

/// What every endpoint stands on.
struct App {
    issuer: String,
    clients: Vec<Client>,
    people: Vec<Person>,
    clock: Clock,
    settings: Mutex<Settings>,
    book: Mutex<Book>,
    signer: Signer,
    minter: Minter,
    recorder: Recorder,
    faults: FaultBoard,
}

/// Starts a sandbox; it serves when this returns.
///
/// # Errors
///
/// `InvalidInput` for options that cannot run, `InvalidData` for a damaged state file, `ResourceBusy` for one in use,
/// and what binding the address or reading and writing the state file fails with.
pub async fn start(options: Options) -> io::Result<Sandbox> {
    options.check()?;
    let listener = TcpListener::bind(options.addr).await?;
    let addr = listener.local_addr()?;
    let app = Arc::new(App::open(options, addr)?);
    let stop = CancellationToken::new();
    // Small answers on a kept connection must not wait for the peer's acknowledgement; a socket that refuses works.
    let listener = listener.tap_io(|socket| _ = socket.set_nodelay(true));
    let server = axum::serve(listener, routes(Arc::clone(&app)));
    let serving = tokio::spawn(server.with_graceful_shutdown(stop.clone().cancelled_owned()).into_future());
    Ok(Sandbox { app, addr, serving, stop: stop.drop_guard() })
}

impl Sandbox {
    /// The base URL and issuer, without a trailing slash.
    pub fn base_url(&self) -> String {
        self.app.issuer.clone()
    }

    /// The address it listens on.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The recorded requests, oldest first.
    pub fn requests(&self) -> Vec<Request> {
        self.app.recorder.since(0).0
    }

    /// Forgets the recorded requests; their numbers go on.
    pub fn clear_requests(&self) {
        self.app.recorder.clear();
    }

    /// The present settings.
    pub fn settings(&self) -> Settings {
        self.app.settings()
    }

    /// Replaces the settings, for requests from now on.
    pub fn set_settings(&self, settings: Settings) {
        self.app.set_settings(settings);
    }

    /// The present faults; an error that is counted down shows what is left.
    pub fn faults(&self) -> Faults {
        self.app.faults.get()
    }

    /// Replaces all faults. Requests that wait where nothing holds them any more go on.
    pub fn set_faults(&self, faults: Faults) {
        self.app.faults.set(faults);
    }

    /// Ends all holds; the other faults stay.
    pub fn release(&self) {
        self.app.faults.release();
    }

    /// Returns once at least this many requests are held.
    pub async fn wait_held(&self, at_least: usize) {
        self.app.faults.wait_held(at_least).await;
    }

    /// The fingerprint under which a code or token is recorded: the first 16 hex characters of its SHA-256.
    pub fn fingerprint(secret: &str) -> String {
        secrets::Digest::of(secret).fingerprint()
    }

    /// Stops listening, answers what has arrived (holds are released) for up to 5 s, and frees the state file.
    pub async fn shutdown(self) {
        drop(self.stop);
        self.app.faults.set(Faults::default());
        let aborter = self.serving.abort_handle();
        if tokio::time::timeout(DRAIN, self.serving).await.is_err() {
            aborter.abort();
        }
        self.app.book().close();
    }
}

impl App {
    fn open(options: Options, addr: SocketAddr) -> io::Result<Self> {
        let now = options.clock.now();
        let mut book = Book::open(options.state_file.as_deref(), now)?;
        let key = book.key.clone().map_or_else(Signer::generate, Ok)?;
        if book.key.is_none() {
            book.commit(vec![Change::Key { pkcs8: key.clone() }], now)?;
        }
        Ok(Self {
            issuer: options.base_url.clone().unwrap_or_else(|| announced(addr)),
            settings: Mutex::new(Settings::new(&options)),
            clients: options.clients,
            people: options.people,
            clock: options.clock,
            book: Mutex::new(book),
            signer: Signer::new(&key)?,
            minter: Minter::new(options.secret_prefix),
            recorder: Recorder::default(),
            faults: FaultBoard::default(),
        })
    }

    fn arrived(&self, endpoint: Endpoint, method: &Method) -> Request {
        Request::arrived(endpoint, method.as_str(), self.clock.now().millis())
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn settings(&self) -> Settings {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_settings(&self, settings: Settings) {
        *self.settings.lock().unwrap_or_else(PoisonError::into_inner) = settings;
    }

    fn person(&self, username: &str) -> Option<&Person> {
        self.people.iter().find(|person| person.username == username)
    }

    /// The person a `login_hint` means: a username, an e-mail address or a subject.
    fn hinted(&self, hint: &str) -> Option<&Person> {
        let names =
            |person: &Person| [&person.username, &person.email, &person.subject].iter().any(|name| *name == hint);
        self.people.iter().find(|person| names(person))
    }
}

fn routes(app: Arc<App>) -> Router {
    Router::new()
        .route("/", get(home))
        .route("/.well-known/openid-configuration", get(metadata))
        .route("/.well-known/oauth-authorization-server", get(metadata))
        .route("/authorize", get(authorize::show).post(authorize::decide))
        .route("/token", post(token::token))
        .route("/revoke", post(token::revoke))
        .route("/userinfo", get(token::userinfo).post(token::userinfo))
        .route("/jwks", get(jwks))
        .merge(control::routes())
        .layer(DefaultBodyLimit::max(LARGEST_BODY))
        .with_state(app)
}

async fn home(State(app): State<Arc<App>>) -> Response {
    page::home(&app.issuer)
}

async fn metadata(State(app): State<Arc<App>>) -> Json<Value> {
    let request = app.arrived(Endpoint::Discovery, &Method::GET);
    app.recorder.add(request.decided(&answer::Answer::new(axum::http::StatusCode::OK)));
    Json(identity::metadata(&app.issuer))
}

async fn jwks(State(app): State<Arc<App>>) -> Json<Value> {
    let request = app.arrived(Endpoint::Jwks, &Method::GET);
    app.recorder.add(request.decided(&answer::Answer::new(axum::http::StatusCode::OK)));
    Json(app.signer.jwks())
}

/// The base URL of a bound address; an unspecified one is reached by loopback.
fn announced(mut addr: SocketAddr) -> String {
    match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => addr.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => addr.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    format!("http://{addr}")
}
