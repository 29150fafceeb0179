//! `/authorize` (RFC 6749 section 4.1.1): GET shows the page, POST takes the decision.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use data_encoding::BASE64URL_NOPAD;
use url::Url;

use super::answer::{Answer, OauthError, Refusal};
use super::book::Code;
use super::faults::Acts;
use super::grants::Terms;
use super::options::{Client, Person};
use super::params::Params;
use super::recorder::{Endpoint, Request, Secrets, cut};
use super::scopes::Scopes;
use super::secrets::Secret;
use super::{App, page};

/// A request that the page can be shown for.
pub(super) struct Ask<'a> {
    pub(super) client: &'a Client,
    pub(super) scopes: Scopes,
    /// Whom the page preselects: the person of `login_hint`, else the first.
    pub(super) person: &'a Person,
    back: Back,
    nonce: Option<String>,
    challenge: Option<String>,
}

/// Where a decision or an error is told: a redirect URI that its client may name.
struct Back {
    url: Url,
    text: String,
    state: Option<String>,
    /// By a form that the browser posts, not in the URL's query.
    form_post: bool,
}

/// A code to be told.
struct Approved {
    back: Back,
    code: Secret,
}

/// A request that gets no code.
struct Refused {
    /// Where this is told; none is a page, because nobody can be trusted to be told (RFC 6749 section 4.1.2.1).
    back: Option<Box<Back>>,
    refusal: Refusal,
}

impl Refused {
    fn page(why: &'static str) -> Self {
        Self { back: None, refusal: Refusal::request(why) }
    }
}

impl Ask<'_> {
    /// Where the person will be sent, for the page: scheme, host and port.
    pub(super) fn destination(&self) -> String {
        self.back.url.origin().ascii_serialization()
    }
}

/// `GET /authorize`.
pub(super) async fn show(State(app): State<Arc<App>>, RawQuery(query): RawQuery) -> Response {
    let params = Params::read(query.unwrap_or_default().as_bytes());
    match ask(&app, &params) {
        Ok(ask) => {
            let request = arrived(&app, &Method::GET, &params);
            app.record(request.decided(&Answer::new(StatusCode::OK)));
            page::consent(&ask, &app.people, &params)
        }
        Err(refused) => turn_away(&app, arrived(&app, &Method::GET, &params), refused),
    }
}

/// `POST /authorize`: the parameters of the request in the query, the form or both; `decision=approve|cancel`;
/// `person=<username>`, left out for the preselected one.
pub(super) async fn decide(
    State(app): State<Arc<App>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let query = Params::read(query.unwrap_or_default().as_bytes());
    let form = match Params::form(&headers, body) {
        Ok(form) => form,
        Err(refusal) => {
            return turn_away(&app, arrived(&app, &Method::POST, &query), Refused { back: None, refusal });
        }
    };
    let params = query.joined(form);
    let request = arrived(&app, &Method::POST, &params);
    match decided(&app, params) {
        Ok(approved) => send_back(&app, request, approved),
        Err(refused) => turn_away(&app, request, refused),
    }
}

fn arrived(app: &App, method: &Method, params: &Params) -> Request {
    let mut request = app.arrived(Endpoint::Authorize, method);
    request.client_id = params.get("client_id").map(cut);
    request
}

fn decided(app: &App, mut params: Params) -> Result<Approved, Refused> {
    let (decision, username) = (params.take("decision"), params.take("person"));
    let ask = ask(app, &params)?;
    let person = match username.filter(|name| !name.is_empty()) {
        Some(name) => app.person(&name),
        None => Some(ask.person),
    };
    match (decision.as_deref(), person) {
        (Some("cancel"), _) => {
            let refusal = Refusal::new(OauthError::AccessDenied, "the person said no");
            Err(Refused { back: Some(Box::new(ask.back)), refusal })
        }
        (Some("approve"), Some(person)) => approved(app, ask, person),
        (Some("approve"), None) => Err(Refused::page("there is no such person here")),
        _ => Err(Refused::page("decision is neither approve nor cancel")),
    }
}

fn approved(app: &App, ask: Ask<'_>, person: &Person) -> Result<Approved, Refused> {
    let (settings, now) = (app.settings(), app.clock.now());
    let code = Code {
        client_id: ask.client.id.clone(),
        redirect_uri: ask.back.text.clone(),
        person: person.username.clone(),
        scopes: ask.scopes,
        nonce: ask.nonce,
        challenge: ask.challenge,
        approved_at: now,
        expires_at: now.plus(settings.code_ttl),
        spent_for: None,
    };
    let terms = Terms { now, settings: &settings, minter: &app.minter, acts: Acts::default() };
    match app.book().approve(&terms, code) {
        Ok(code) => Ok(Approved { back: ask.back, code }),
        Err(refusal) => Err(Refused { back: Some(Box::new(ask.back)), refusal }),
    }
}

/// Reads a request. Client and redirect URI come first: without them nobody is redirected.
fn ask<'a>(app: &'a App, params: &Params) -> Result<Ask<'a>, Refused> {
    let page = Refused::page;
    let client = params.get("client_id").ok_or_else(|| page("client_id is missing"))?;
    let client = app.clients.iter().find(|known| known.id == client);
    let client = client.ok_or_else(|| page("the client is not registered here"))?;
    let text = params.get("redirect_uri").ok_or_else(|| page("redirect_uri is missing"))?;
    let url = client.redirect.accept(text).ok_or_else(|| page("the client may not use this redirect_uri"))?;
    let form_post = params.get("response_mode") == Some("form_post");
    let back = Back { url, text: text.into(), state: params.get("state").map(Into::into), form_post };
    match details(client, params) {
        Ok((scopes, challenge)) => Ok(Ask {
            client,
            scopes,
            person: params.get("login_hint").and_then(|hint| app.hinted(hint)).unwrap_or(&app.people[0]),
            back,
            nonce: params.get("nonce").map(Into::into),
            challenge,
        }),
        Err(refusal) => Err(Refused { back: Some(Box::new(back)), refusal }),
    }
}

fn details(client: &Client, params: &Params) -> Result<(Scopes, Option<String>), Refusal> {
    params.once()?;
    if params.get("request").is_some() {
        return Err(Refusal::new(OauthError::RequestNotSupported, "request objects are not supported"));
    }
    if params.get("request_uri").is_some() {
        return Err(Refusal::new(OauthError::RequestUriNotSupported, "request objects are not supported"));
    }
    match params.get("response_type") {
        Some("code") => {}
        None => return Err(Refusal::request("response_type is missing")),
        Some(_) => {
            return Err(Refusal::new(OauthError::UnsupportedResponseType, "only response_type=code is supported"));
        }
    }
    if params.get("response_mode").is_some_and(|mode| !matches!(mode, "query" | "form_post")) {
        return Err(Refusal::request("only response_mode=query and form_post are supported"));
    }
    let scopes = Scopes::parse(params.get("scope"));
    let scopes = scopes.ok_or_else(|| Refusal::new(OauthError::InvalidScope, "scope is malformed"))?;
    // Nobody is ever signed in here, and consent is asked for each time: what `prompt` may demand is the rule.
    let mut prompts = params.get("prompt").unwrap_or_default().split(' ');
    if prompts.any(|prompt| prompt == "none") {
        return Err(Refusal::new(OauthError::LoginRequired, "nobody is signed in"));
    }
    Ok((scopes, challenge(client, params)?))
}

/// The PKCE challenge (RFC 7636 section 4.3); a missing method would mean `plain`, which is refused.
fn challenge(client: &Client, params: &Params) -> Result<Option<String>, Refusal> {
    let Some(challenge) = params.get("code_challenge") else {
        if client.needs_pkce() {
            return Err(Refusal::request("code_challenge is missing: this client must use PKCE"));
        }
        return Ok(None);
    };
    if params.get("code_challenge_method") != Some("S256") {
        return Err(Refusal::request("code_challenge_method must be S256"));
    }
    let hash = BASE64URL_NOPAD.decode(challenge.as_bytes()).ok().filter(|hash| hash.len() == 32);
    hash.map(|_| Some(challenge.into())).ok_or_else(|| Refusal::request("code_challenge is not a SHA-256"))
}

fn send_back(app: &App, request: Request, approved: Approved) -> Response {
    let mut answer = Answer::new(StatusCode::SEE_OTHER);
    answer.issued = Secrets { code: Some(approved.code.digest().fingerprint()), ..Secrets::default() };
    app.record(request.decided(&answer));
    redirect(app, approved.back, &[("code", approved.code.expose())])
}

fn turn_away(app: &App, request: Request, refused: Refused) -> Response {
    let why = refused.refusal.why;
    let error = refused.refusal.error.code();
    let mut answer = Answer::from(refused.refusal);
    if refused.back.is_some() {
        answer.status = StatusCode::SEE_OTHER;
    }
    app.record(request.decided(&answer));
    match refused.back {
        Some(back) => redirect(app, *back, &[("error", error), ("error_description", why)]),
        None => page::problem(answer.status, why),
    }
}

/// The authorization response (RFC 6749 section 4.1.2), with `iss` saying who answers (RFC 9207).
fn redirect(app: &App, back: Back, told: &[(&str, &str)]) -> Response {
    let mut url = back.url;
    let state = back.state.iter().map(|state| ("state", state.as_str()));
    let told = told.iter().copied().chain(state).chain([("iss", app.issuer.as_str())]);
    if back.form_post {
        return page::post_back(&url, told);
    }
    url.query_pairs_mut().extend_pairs(told);
    let mut response = StatusCode::SEE_OTHER.into_response();
    let headers = response.headers_mut();
    // A serialised URL is ASCII without controls, so this holds for every URL.
    if let Ok(location) = HeaderValue::from_str(url.as_str()) {
        headers.insert(header::LOCATION, location);
    }
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}
