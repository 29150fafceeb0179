//! `/token`, `/revoke` and `/userinfo`. What a request asks for is done even if its caller goes away meanwhile.

use std::future::Future;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse as _, Response};

use super::App;
use super::answer::{Answer, OauthError, Refusal};
use super::faults::Operation;
use super::grants::{CodeAsk, Issued, Revoked, Terms};
use super::identity;
use super::params::{Params, authenticate, authorization, is_form, named_client};
use super::recorder::{Endpoint, Request, Secrets, cut};
use super::scopes::Scopes;
use super::secrets::Digest;

type Body = Result<Bytes, BytesRejection>;

/// `POST /token` (RFC 6749 sections 4.1.3 and 6).
pub(super) async fn token(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Response {
    detached(async move { answer_token(&app, &headers, body).await }).await
}

/// `POST /revoke` (RFC 7009).
pub(super) async fn revoke(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Response {
    let mut request = app.arrived(Endpoint::Revoke, &Method::POST);
    let answer = revoked(&app, &headers, body, &mut request).unwrap_or_else(Answer::from);
    app.recorder.add(request.decided(&answer));
    answer.into_response()
}

/// `GET` and `POST /userinfo` (OIDC Core section 5.3) with a bearer token in the header or the form (RFC 6750).
pub(super) async fn userinfo(State(app): State<Arc<App>>, method: Method, headers: HeaderMap, body: Body) -> Response {
    detached(async move {
        let mut request = app.arrived(Endpoint::Userinfo, &method);
        let token = bearer(&headers, body);
        if let Ok(Some(token)) = &token {
            request.presented.access_token = Some(Digest::of(token).fingerprint());
        }
        let work = |_| token.map_or_else(Answer::from, |token| who(&app, token.as_deref()));
        let record = |answer: &Answer| app.recorder.add(request.decided(answer));
        app.faults.around(Operation::Userinfo, work, record).await
    })
    .await
}

async fn answer_token(app: &App, headers: &HeaderMap, body: Body) -> Answer {
    let mut request = app.arrived(Endpoint::Token, &Method::POST);
    let form = match Params::form(headers, body) {
        Ok(form) => form,
        Err(refusal) => {
            let answer = Answer::from(refusal);
            app.recorder.add(request.decided(&answer));
            return answer;
        }
    };
    request.client_id = named_client(headers, &form).map(|id| cut(&id));
    request.grant_type = form.get("grant_type").map(cut);
    request.presented.code = form.get("code").map(|code| Digest::of(code).fingerprint());
    request.presented.refresh_token = form.get("refresh_token").map(|token| Digest::of(token).fingerprint());
    let operation = match form.get("grant_type") {
        Some("authorization_code") => Some(Operation::Exchange),
        Some("refresh_token") => Some(Operation::Refresh),
        _ => None,
    };
    let record = |answer: &Answer| app.recorder.add(request.decided(answer));
    let Some(operation) = operation else {
        let answer = Answer::from(no_grant(&form));
        record(&answer);
        return answer;
    };
    let work = |withhold| redeem(app, headers, &form, operation, withhold).unwrap_or_else(Answer::from);
    app.faults.around(operation, work, record).await
}

fn no_grant(form: &Params) -> Refusal {
    if form.get("grant_type").is_none() {
        return Refusal::request("grant_type is missing");
    }
    let why = "grant_type is neither authorization_code nor refresh_token";
    Refusal::new(OauthError::UnsupportedGrantType, why)
}

fn redeem(
    app: &App,
    headers: &HeaderMap,
    form: &Params,
    operation: Operation,
    withhold_refresh: bool,
) -> Result<Answer, Refusal> {
    form.once()?;
    let client = authenticate(&app.clients, headers, form)?;
    let settings = app.settings();
    let terms = Terms { now: app.clock.now(), settings: &settings, minter: &app.minter, withhold_refresh };
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
        app.book().redeem_refresh(&terms, token, &client.id, narrowed)?
    };
    given(app, &terms, &issued)
}

/// The successful answer (RFC 6749 section 5.1, OIDC Core sections 3.1.3.3 and 12.2).
fn given(app: &App, terms: &Terms<'_>, issued: &Issued) -> Result<Answer, Refusal> {
    let mut answer = Answer::new(StatusCode::OK)
        .with("access_token", issued.access.expose())
        .with("token_type", "Bearer")
        .with("expires_in", issued.lives.as_secs())
        .with("scope", issued.scopes.as_str());
    if let Some(refresh) = &issued.refresh {
        answer = answer.with("refresh_token", refresh.expose());
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
        refresh_token: issued.refresh.as_ref().map(|refresh| refresh.digest().fingerprint()),
    };
    Ok(answer)
}

fn revoked(app: &App, headers: &HeaderMap, body: Body, request: &mut Request) -> Result<Answer, Refusal> {
    let form = Params::form(headers, body)?;
    request.client_id = named_client(headers, &form).map(|id| cut(&id));
    let token = form.get("token");
    let fingerprint = token.map(|token| Digest::of(token).fingerprint());
    form.once()?;
    let client = authenticate(&app.clients, headers, &form)?;
    let token = token.ok_or_else(|| Refusal::request("token is missing"))?;
    let now = app.clock.now();
    let mut answer = Answer::new(StatusCode::OK);
    match app.book().revoke(now, token, &client.id)? {
        Revoked::Access { family } => {
            request.presented.access_token = fingerprint;
            answer.family = Some(family);
        }
        Revoked::Family { family } => {
            request.presented.refresh_token = fingerprint;
            answer.family = Some(family);
        }
        Revoked::Nothing => request.presented.refresh_token = fingerprint,
    }
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
        let mut answer = Answer::new(StatusCode::UNAUTHORIZED);
        answer.challenge = Some("Bearer realm=\"sandbox\"");
        return answer;
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

/// Runs to the end even if the connection is lost.
async fn detached(work: impl Future<Output = Answer> + Send + 'static) -> Response {
    let done = tokio::spawn(work).await;
    done.unwrap_or_else(|_| Refusal::new(OauthError::ServerError, "the sandbox failed").into()).into_response()
}
