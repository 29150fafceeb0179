//! `/_sandbox/…`: how a test reads the log and changes the behaviour over HTTP. Errors are
//! `{"error": "invalid_request", "error_description": …}`.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use serde_json::json;

use super::App;
use super::params::Params;
use super::rules::Rule;
use super::settings::Settings;

/// The longest a `GET /_sandbox/faults?held=N` waits.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/_sandbox/requests", get(requests).delete(clear_requests))
        .route("/_sandbox/settings", get(settings).put(change_settings))
        .route("/_sandbox/faults", get(faults).post(add_fault).put(set_faults).delete(clear_faults))
        .route("/_sandbox/faults/{id}", delete(clear_fault))
        .route("/_sandbox/faults/release", post(release))
        .route("/_sandbox/grants", get(grants))
        .route("/_sandbox/grants/{person}/revoke", post(revoke))
}

async fn requests(State(app): State<Arc<App>>, RawQuery(query): RawQuery) -> Response {
    match number(query, "since") {
        Ok(since) => {
            let (requests, last) = app.recorder.since(since.unwrap_or(0));
            Json(json!({ "requests": requests, "last_sequence": last })).into_response()
        }
        Err(refused) => refused,
    }
}

async fn clear_requests(State(app): State<Arc<App>>) -> StatusCode {
    app.recorder.clear();
    StatusCode::NO_CONTENT
}

async fn settings(State(app): State<Arc<App>>) -> Response {
    Json(&*app.settings()).into_response()
}

async fn change_settings(State(app): State<Arc<App>>, body: Bytes) -> Response {
    let changed = serde_json::from_slice(&body).and_then(|changes| app.settings().with(changes));
    let changed = match changed {
        Ok(changed) => changed,
        Err(error) => return refused(&error.to_string()),
    };
    if let Some(id) = stranger(&app, &changed) {
        return refused(&format!("client_secrets: {id} is no confidential client here"));
    }
    if let Some(id) = changed.clients.keys().find(|id| app.clients.iter().all(|client| client.id != **id)) {
        return refused(&format!("clients: {id} is no client here"));
    }
    app.set_settings(changed);
    settings(State(app)).await
}

async fn faults(State(app): State<Arc<App>>, RawQuery(query): RawQuery) -> Response {
    match number(query, "held") {
        Ok(Some(held)) => {
            let held = usize::try_from(held).unwrap_or(usize::MAX);
            // Late or not, the answer tells how many wait.
            let _ = tokio::time::timeout(LONGEST_WAIT, app.faults.wait_held(held)).await;
            shown(&app)
        }
        Ok(None) => shown(&app),
        Err(refused) => refused,
    }
}

async fn set_faults(State(app): State<Arc<App>>, body: Bytes) -> Response {
    match serde_json::from_slice(&body) {
        Ok(rules) => {
            let rules: Vec<Rule> = rules;
            if let Err(why) = rules.iter().try_for_each(Rule::check) {
                return refused(why);
            }
            app.faults.set(rules);
            shown(&app)
        }
        Err(error) => refused(&error.to_string()),
    }
}

async fn add_fault(State(app): State<Arc<App>>, body: Bytes) -> Response {
    let rule: Rule = match serde_json::from_slice(&body) {
        Ok(rule) => rule,
        Err(error) => return refused(&error.to_string()),
    };
    if let Err(why) = rule.check() {
        return refused(why);
    }
    let id = app.faults.add(rule);
    Json(json!({ "id": id })).into_response()
}

async fn clear_fault(State(app): State<Arc<App>>, Path(id): Path<u64>) -> Response {
    if app.faults.remove(id) { shown(&app) } else { refused("there is no such rule") }
}

async fn clear_faults(State(app): State<Arc<App>>) -> Response {
    app.faults.set(Vec::new());
    shown(&app)
}

async fn grants(State(app): State<Arc<App>>, RawQuery(query): RawQuery) -> Response {
    let params = Params::read(query.unwrap_or_default().as_bytes());
    let grants = app.grants(params.get("person"));
    Json(json!({ "grants": grants, "totals": app.book().families.totals() })).into_response()
}

async fn revoke(State(app): State<Arc<App>>, Path(person): Path<String>) -> Response {
    if app.person(&person).is_none() {
        return refused("there is no such person here");
    }
    match app.withdraw(&person) {
        Ok(count) => Json(json!({ "revoked": count })).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// A client that secrets are given for and that could not use one.
fn stranger<'s>(app: &App, settings: &'s Settings) -> Option<&'s String> {
    let is_known = |id: &str| app.clients.iter().any(|client| client.id == id && client.secret.is_some());
    settings.client_secrets.keys().find(|id| !is_known(id))
}

async fn release(State(app): State<Arc<App>>) -> Response {
    app.faults.release();
    shown(&app)
}

fn shown(app: &App) -> Response {
    Json(json!({ "faults": app.faults.get(), "held": app.faults.held() })).into_response()
}

/// A whole number of the query.
#[expect(clippy::result_large_err, reason = "the error is the answer, made once")]
fn number(query: Option<String>, name: &str) -> Result<Option<u64>, Response> {
    let params = Params::read(query.unwrap_or_default().as_bytes());
    let number = params.get(name).map(str::parse).transpose();
    number.map_err(|_| refused(&format!("{name} is not a whole number")))
}

fn refused(why: &str) -> Response {
    let body = json!({ "error": "invalid_request", "error_description": why });
    (StatusCode::BAD_REQUEST, Json(body)).into_response()
}
