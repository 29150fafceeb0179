//! `/token`, `/revoke` and `/userinfo`. What a request asks for is done even if its caller goes away meanwhile.

use std::future::Future;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use tokio_util::sync::CancellationToken;

use super::App;
use super::answer::{Answer, OauthError, Refusal};
use super::faults::{Acts, Subject};
use super::grants::{CodeAsk, Issued, Presented, Terms};
use super::identity;
use super::params::{Params, authenticate, authorization, is_form, named_client};
use super::recorder::{Endpoint, Request, Secrets, cut};
use super::rules::Operation;
use super::scopes::Scopes;
use super::secrets::{Digest, Secret};
use super::wire::Cutter;

type Body = Result<Bytes, BytesRejection>;

/// A request that has arrived and is not answered.
struct Arrival {
    request: Request,
    subject: Subject,
    presented: Presented,
    /// Its caller waits for no answer any more.
    gone: CancellationToken,
}

/// A refresh that is under way; dropping it counts it out.
struct UnderWay {
    app: Arc<App>,
    family: String,
}

/// `POST /token` (RFC 6749 sections 4.1.3 and 6).
pub(super) async fn token(
    State(app): State<Arc<App>>,
    ConnectInfo(cutter): ConnectInfo<Cutter>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let mut request = app.arrived(Endpoint::Token, &Method::POST);
    let form = match Params::form(&headers, body) {
        Ok(form) => form,
        Err(refusal) => return refused(&app, request, refusal),
    };
    request.client_id = named_client(&headers, &form).map(|id| cut(&id));
    request.grant_type = form.get("grant_type").map(cut);
    request.presented.code = form.get("code").map(|code| Digest::of(code).fingerprint());
    request.presented.refresh_token = form.get("refresh_token").map(|token| Digest::of(token).fingerprint());
    let of = |name, presented: fn(Digest) -> Presented| {
        form.get(name).map_or(Presented::Nothing, |secret| presented(Digest::of(secret)))
    };
    let (operation, presented) = match form.get("grant_type") {
        Some("authorization_code") => (Operation::Exchange, of("code", Presented::Code)),
        Some("refresh_token") => (Operation::Refresh, of("refresh_token", Presented::Refresh)),
        _ => return refused(&app, request, no_grant(&form)),
    };
    let mut arrival = Arrival::new(&app, request, operation, presented);
    // Not in the detached work: a caller who has gone away has no refresh under way.
    let _under_way = UnderWay::enter(&app, operation, &mut arrival.request);
    detached(&cutter, arrival.gone.clone(), async move {
        let work = |app: &App, acts| redeem(app, &headers, &form, operation, acts);
        arrival.answer(&app, work).await
    })
    .await
}

/// `POST /revoke` (RFC 7009).
pub(super) async fn revoke(
    State(app): State<Arc<App>>,
    ConnectInfo(cutter): ConnectInfo<Cutter>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let mut request = app.arrived(Endpoint::Revoke, &Method::POST);
    let form = match Params::form(&headers, body) {
        Ok(form) => form,
        Err(refusal) => return refused(&app, request, refusal),
    };
    request.client_id = named_client(&headers, &form).map(|id| cut(&id));
    let token = form.get("token").map(Digest::of);
    let (access, refresh) = token.map_or((None, None), |token| {
        let fingerprint = Some(token.fingerprint());
        if app.book().access.contains_key(&token) { (fingerprint, None) } else { (None, fingerprint) }
    });
    (request.presented.access_token, request.presented.refresh_token) = (access, refresh);
    let presented = token.map_or(Presented::Nothing, Presented::Token);
    let arrival = Arrival::new(&app, request, Operation::Revoke, presented);
    let gone = arrival.gone.clone();
    detached(&cutter, gone, async move { arrival.answer(&app, |app, _| revoked(app, &headers, &form)).await }).await
}

/// `GET` and `POST /userinfo` (OIDC Core section 5.3) with a bearer token in the header or the form (RFC 6750).
pub(super) async fn userinfo(
    State(app): State<Arc<App>>,
    ConnectInfo(cutter): ConnectInfo<Cutter>,
    method: Method,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let mut request = app.arrived(Endpoint::Userinfo, &method);
    let token = bearer(&headers, body);
    let digest = token.as_ref().ok().and_then(Option::as_deref).map(Digest::of);
    request.presented.access_token = digest.map(|digest| digest.fingerprint());
    let presented = digest.map_or(Presented::Nothing, Presented::Access);
    let arrival = Arrival::new(&app, request, Operation::Userinfo, presented);
    let gone = arrival.gone.clone();
    detached(&cutter, gone, async move { arrival.answer(&app, |app, _| Ok(who(app, token?.as_deref()))).await }).await
}

impl Arrival {
    fn new(app: &App, mut request: Request, on: Operation, presented: Presented) -> Self {
        let (mut subject, family) = app.book().arrived(on, &presented);
        if subject.client_id.is_none() {
            subject.client_id.clone_from(&request.client_id);
        }
        request.person.clone_from(&subject.person);
        request.family = family;
        Self { request, subject, presented, gone: CancellationToken::new() }
    }

    /// Meets the rules, does the work if they let it, and records both.
    async fn answer(self, app: &App, work: impl FnOnce(&App, Acts) -> Result<Answer, Refusal>) -> Answer {
        let Self { request, subject, presented, gone } = self;
        let work = |acts: Option<Acts>| match acts {
            Some(acts) => work(app, acts).unwrap_or_else(Answer::from),
            None => untouched(app, &subject, &presented),
        };
        let record = |answer: &Answer| app.record(request.decided(answer));
        app.faults.around(&subject, app.settings().seed, &gone, work, record).await
    }
}

impl UnderWay {
    fn enter(app: &Arc<App>, operation: Operation, request: &mut Request) -> Option<Self> {
        let family = request.family.clone().filter(|_| operation == Operation::Refresh)?;
        request.overlap = app.book().families.began(&family);
        Some(Self { app: Arc::clone(app), family })
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.app.book().families.left(&self.family);
    }
}

/// What is known of a request that a rule answers before the provider does anything.
fn untouched(app: &App, subject: &Subject, presented: &Presented) -> Answer {
    let mut answer = Answer::new(StatusCode::OK);
    if let Presented::Refresh(hash) = presented {
        let settings = app.settings().of(subject.client_id.as_deref().unwrap_or_default());
        answer.reuse = app.book().reuse(hash, &settings, app.clock.now());
    }
    answer
}

fn refused(app: &App, request: Request, refusal: Refusal) -> Response {
    let answer = Answer::from(refusal);
    app.record(request.decided(&answer));
    answer.into_response()
}

fn no_grant(form: &Params) -> Refusal {
    if form.get("grant_type").is_none() {
        return Refusal::request("grant_type is missing");
    }
    let why = "grant_type is neither authorization_code nor refresh_token";
    Refusal::new(OauthError::UnsupportedGrantType, why)
}

fn redeem(app: &App, headers: &HeaderMap, form: &Params, operation: Operation, acts: Acts) -> Result<Answer, Refusal> {
    form.once()?;
    let settings = app.settings();
    let client = authenticate(&app.clients, &settings.client_secrets, headers, form)?;
    let settings = settings.of(&client.id);
    let terms = Terms { now: app.clock.now(), settings: &settings, minter: &app.minter, acts };
    let mut issued_again = None;
    let issued = if operation == Operation::Exchange {
        let ask = CodeAsk {
            code: form.get("code").ok_or_else(|| Refusal::request("code is missing"))?,
            client_id: &client.id,
            redirect_uri: form.get("redirect_uri"),
            verifier: form.get("code_verifier"),
        };
        app.book().redeem_code(&terms, &ask)?
    } else {
        let token = form.get("refresh_token").ok_or_else(|| Refusal::request("refresh_token is missing"))?;
        let narrowed = form.get("scope").map(|scope| Scopes::parse(Some(scope)));
        let malformed = || Refusal::new(OauthError::InvalidScope, "scope is malformed");
        let narrowed = narrowed.map(|scopes| scopes.ok_or_else(malformed)).transpose()?;
        issued_again = Some(token).filter(|_| acts.repeat_refresh);
        app.book().redeem_refresh(&terms, token, &client.id, narrowed)?
    };
    given(app, &terms, &issued, issued_again)
}

/// The successful answer (RFC 6749 section 5.1, OIDC Core sections 3.1.3.3 and 12.2), with a refresh token that is told
/// again in place of a new one.
fn given(app: &App, terms: &Terms<'_>, issued: &Issued, again: Option<&str>) -> Result<Answer, Refusal> {
    let mut answer = Answer::new(StatusCode::OK)
        .with("access_token", issued.access.expose())
        .with("token_type", "Bearer")
        .with("expires_in", issued.lives.as_secs())
        .with("scope", issued.scopes.as_str());
    let refresh = again.or(issued.refresh.as_ref().map(Secret::expose));
    if let Some(refresh) = refresh {
        answer = answer.with("refresh_token", refresh);
    }
    if issued.scopes.has("openid") {
        let person = app.person(&issued.family.person).ok_or_else(|| Refusal::grant("the person is gone"))?;
        let token = app.signer.id_token(&app.issuer, person, issued, terms.now);
        let token = token.ok_or_else(|| Refusal::new(OauthError::ServerError, "the ID token could not be signed"))?;
        answer = answer.with("id_token", token);
    }
    answer.family = Some(issued.family_id.clone());
    answer.issued = Secrets {
        code: None,
        access_token: Some(issued.access.digest().fingerprint()),
        refresh_token: refresh.map(|refresh| Digest::of(refresh).fingerprint()),
    };
    answer.rotated = issued.rotated;
    answer.reuse = issued.reuse;
    Ok(answer)
}

fn revoked(app: &App, headers: &HeaderMap, form: &Params) -> Result<Answer, Refusal> {
    form.once()?;
    let settings = app.settings();
    let client = authenticate(&app.clients, &settings.client_secrets, headers, form)?;
    let token = form.get("token").ok_or_else(|| Refusal::request("token is missing"))?;
    let terms = Terms { now: app.clock.now(), settings: &settings, minter: &app.minter, acts: Acts::default() };
    let mut answer = Answer::new(StatusCode::OK);
    answer.family = app.book().revoke(&terms, token, &client.id)?;
    Ok(answer)
}

/// The one bearer token of a request, if it carries any.
fn bearer(headers: &HeaderMap, body: Body) -> Result<Option<String>, Refusal> {
    let of_header = authorization(headers, "bearer").map(ToOwned::to_owned);
    let of_form = if is_form(headers) {
        let form = Params::form(headers, body)?;
        form.once()?;
        form.get("access_token").map(ToOwned::to_owned)
    } else {
        None
    };
    match (of_header, of_form) {
        (Some(_), Some(_)) => Err(Refusal::request("the access token is sent in two ways at once")),
        (header, form) => Ok(header.or(form)),
    }
}

fn who(app: &App, token: Option<&str>) -> Answer {
    let Some(token) = token else {
        // RFC 6750 section 3.1: without a token the challenge names no error.
        return Answer::new(StatusCode::UNAUTHORIZED).challenging("Bearer realm=\"sandbox\"");
    };
    let book = app.book();
    let live = book.live(token, app.clock.now());
    let known = live.and_then(|(id, family, scopes)| Some((id, app.person(&family.person)?, scopes)));
    let Some((id, person, scopes)) = known else {
        return Refusal::new(OauthError::InvalidToken, "the access token is unknown, expired or revoked").into();
    };
    let claims = identity::claims(person, scopes).into_iter();
    let mut answer = claims.fold(Answer::new(StatusCode::OK), |answer, (name, value)| answer.with(name, value));
    answer.family = Some(id.into());
    answer
}

/// Runs to the end even if the connection is lost, which `gone` then tells, or cuts it.
async fn detached(
    cutter: &Cutter,
    gone: CancellationToken,
    work: impl Future<Output = Answer> + Send + 'static,
) -> Response {
    let _here = gone.drop_guard();
    let done = tokio::spawn(work).await;
    let answer = done.unwrap_or_else(|_| Refusal::new(OauthError::ServerError, "the sandbox failed").into());
    if let Some(how) = answer.cut {
        cutter.cut(how);
    }
    answer.into_response()
}
