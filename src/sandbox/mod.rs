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
//! | `/_sandbox/faults` | POST: one more [`Rule`]; GET (`?held=N` waits up to 10 s until N requests are held); PUT: these rules and no others; DELETE: none |
//! | `/_sandbox/faults/{id}`, `/_sandbox/faults/release` | DELETE: one rule; POST: all holds end |
//! | `/_sandbox/grants` | GET `?person=NAME`: `{"grants": [Grant], "totals": Totals}` |
//! | `/_sandbox/grants/{person}/revoke` | POST: the person withdraws all consents |
//!
//! docs/sandbox.md shows each of them.
//!
//! A script decides by posting `person=demo&decision=approve` (or `decision=cancel`) as a form to the authorization URL
//! as it is; the answer is a 303 to the redirect URI with `code`, `state` and `iss`. A refresh token is given if
//! `offline_access` was asked for. Consent is asked for each time and each approval starts a new family of tokens, so
//! `prompt=consent` changes nothing and `prompt=none` is `login_required`.

mod answer;
mod authorize;
mod body;
mod book;
mod control;
mod faults;
mod grants;
mod identity;
mod journal;
mod ledger;
mod options;
mod page;
mod params;
mod recorder;
mod rules;
mod scopes;
mod secrets;
mod settings;
mod token;
mod wire;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, State};
use axum::http::{Method, StatusCode};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use self::answer::Answer;
use self::book::{Book, Change};
use self::faults::FaultBoard;
use self::identity::Signer;
use self::recorder::Recorder;
use self::secrets::Minter;
use self::wire::{Cutter, Wires};
use crate::clock::Clock;

pub use self::faults::Fault;
pub use self::ledger::{Ending, Grant, Totals};
pub use self::options::{
    Client, DEFAULT_CLIENT_ID, DEFAULT_CLIENT_SECRET, Options, Person, RedirectRule, Rotation, UnknownRotation,
};
pub use self::recorder::{Endpoint, KEPT_REQUESTS, Request, Reuse, Secrets};
pub use self::rules::{Effect, Operation, Repeated, Reply, Rule, When};
pub use self::settings::{Manners, Settings};

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
    /// Where in `people` somebody is, by username.
    places: HashMap<String, usize>,
    clock: Clock,
    settings: Mutex<Arc<Settings>>,
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
    let service = routes(Arc::clone(&app)).into_make_service_with_connect_info::<Cutter>();
    let server = axum::serve(Wires(listener), service);
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
        self.requests_since(0)
    }

    /// The recorded requests numbered above `sequence`, oldest first.
    pub fn requests_since(&self, sequence: u64) -> Vec<Request> {
        self.app.recorder.since(sequence).0
    }

    /// Forgets the recorded requests; their numbers go on.
    pub fn clear_requests(&self) {
        self.app.recorder.clear();
    }

    /// The present settings.
    pub fn settings(&self) -> Settings {
        Settings::clone(&self.app.settings())
    }

    /// Replaces the settings, for requests from now on.
    pub fn set_settings(&self, settings: Settings) {
        self.app.set_settings(settings);
    }

    /// The rules that stand, in order, and how often each has hit.
    pub fn faults(&self) -> Vec<Fault> {
        self.app.faults.get()
    }

    /// Puts these rules in place of all; the answer is their ids. Requests that a rule held which is gone go on.
    ///
    /// # Panics
    ///
    /// If a rule cannot be carried out: a share that is none, an illegal header, a token repeated where none is given.
    pub fn set_faults(&self, rules: impl IntoIterator<Item = Rule>) -> Vec<u64> {
        let rules: Vec<Rule> = rules.into_iter().collect();
        rules.iter().for_each(assert_sound);
        self.app.faults.set(rules)
    }

    /// Puts one more rule behind the others; the answer is its id.
    ///
    /// # Panics
    ///
    /// As [`Self::set_faults`].
    pub fn add_fault(&self, rule: Rule) -> u64 {
        assert_sound(&rule);
        self.app.faults.add(rule)
    }

    /// Takes one rule away; whether it was there.
    pub fn clear_fault(&self, id: u64) -> bool {
        self.app.faults.remove(id)
    }

    /// Takes all rules away.
    pub fn clear_faults(&self) {
        self.app.faults.set(Vec::new());
    }

    /// Takes all holds away; the other rules stay.
    pub fn release(&self) {
        self.app.faults.release();
    }

    /// Returns once at least this many requests are held.
    pub async fn wait_held(&self, at_least: usize) {
        self.app.faults.wait_held(at_least).await;
    }

    /// All grants that are known, in no order.
    pub fn grants(&self) -> Vec<Grant> {
        self.app.grants(None)
    }

    /// The grants of one person, oldest first.
    pub fn grants_of(&self, person: &str) -> Vec<Grant> {
        self.app.grants(Some(person))
    }

    /// The sums of all grants: cheap, however many there are.
    pub fn totals(&self) -> Totals {
        self.app.book().families.totals()
    }

    /// This person withdraws all consents, as at a provider's page of connected apps; how many there were.
    ///
    /// # Errors
    ///
    /// What writing the state file fails with.
    pub fn revoke(&self, person: &str) -> io::Result<usize> {
        self.app.withdraw(person)
    }

    /// Whether the API takes this access token now.
    pub fn accepts(&self, access_token: &str) -> bool {
        self.app.book().live(access_token, self.app.clock.now()).is_some()
    }

    /// The fingerprint under which a code or token is recorded: the first 16 hex characters of its SHA-256.
    pub fn fingerprint(secret: &str) -> String {
        secrets::Digest::of(secret).fingerprint()
    }

    /// Stops listening, answers what has arrived (holds are released) for up to 5 s, and frees the state file.
    pub async fn shutdown(self) {
        self.clear_faults();
        drop(self.stop);
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
            settings: Mutex::new(Arc::new(Settings::new(&options))),
            clients: options.clients,
            places: options.people.iter().enumerate().map(|(at, person)| (person.username.clone(), at)).collect(),
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

    fn record(&self, request: Request) {
        self.recorder.add(request, self.settings().log_limit);
    }

    fn settings(&self) -> Arc<Settings> {
        Arc::clone(&self.settings.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn set_settings(&self, settings: Settings) {
        *self.settings.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(settings);
    }

    fn grants(&self, person: Option<&str>) -> Vec<Grant> {
        let (settings, now) = (self.settings(), self.clock.now());
        self.book().families.grants(person, &settings, now)
    }

    fn withdraw(&self, person: &str) -> io::Result<usize> {
        let (now, mut book) = (self.clock.now(), self.book());
        let ids = book.families.alive_of(person);
        let count = ids.len();
        book.end(ids, Ending::Person, now)?;
        Ok(count)
    }

    fn person(&self, username: &str) -> Option<&Person> {
        self.people.get(*self.places.get(username)?)
    }

    /// The person a `login_hint` means: a username, an e-mail address or a subject.
    fn hinted(&self, hint: &str) -> Option<&Person> {
        let names =
            |person: &Person| [&person.username, &person.email, &person.subject].iter().any(|name| *name == hint);
        self.people.iter().find(|person| names(person))
    }
}

fn routes(app: Arc<App>) -> Router {
    let endpoints = Router::new()
        .route("/authorize", get(authorize::show).post(authorize::decide))
        .route("/token", post(token::token))
        .route("/revoke", post(token::revoke))
        .route("/userinfo", get(token::userinfo).post(token::userinfo));
    Router::new()
        .route("/", get(home))
        .route("/.well-known/openid-configuration", get(metadata))
        .route("/.well-known/oauth-authorization-server", get(metadata))
        .nest("/tenants/acme", endpoints.clone())
        .merge(endpoints)
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
    app.record(request.decided(&Answer::new(StatusCode::OK)));
    Json(identity::metadata(&app.issuer))
}

async fn jwks(State(app): State<Arc<App>>) -> Json<Value> {
    let request = app.arrived(Endpoint::Jwks, &Method::GET);
    app.record(request.decided(&Answer::new(StatusCode::OK)));
    Json(app.signer.jwks())
}

fn assert_sound(rule: &Rule) {
    assert_eq!(rule.check(), Ok(()), "{rule:?}");
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
