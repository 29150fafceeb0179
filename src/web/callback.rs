//! `/oauth/callback/{provider}`: the provider sends the browser back (RFC 6749 section 4.1.2).

use axum::body::Bytes;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};

use super::{Rooms, page};
use crate::domain::error::Failure;
use crate::domain::reason::Level;
use crate::domain::secret::{AuthorizationCode, FlowState};
use crate::linking::{Callback, Received};

/// Longest query that is read, in bytes.
pub(super) const LONGEST_QUERY: usize = 16 * 1024;

/// The parameters that are read.
const PARAMETERS: [&str; 4] = ["state", "code", "error", "iss"];

/// `GET`.
pub(super) async fn receive(
    State(rooms): State<Rooms>,
    Path(provider): Path<String>,
    RawQuery(query): RawQuery,
) -> Response {
    let callback = read(provider, query.as_deref().unwrap_or_default());
    match rooms.linking.receive(callback).await {
        Ok(Received::Redirect(url)) => see_other(&url),
        Ok(Received::OwnPage { flow, ticket }) => page::finished(&rooms.grpc, &flow.to_string(), ticket.expose()),
        Ok(Received::OwnPageFailed(failure)) => page::failed(&failure.into()),
        Ok(Received::Bad) => page::bad_callback(),
        Err(failure) => {
            log(&failure);
            page::failed(&failure)
        }
    }
}

/// A look at the address (a link preview, a scanner) takes nothing: only the browser's own GET spends the state.
pub(super) async fn look() -> StatusCode {
    StatusCode::OK
}

/// `POST`, for providers that send the browser back by a form: no cookie of ours rides on it, so a page of our own goes
/// on by GET.
pub(super) async fn post(State(rooms): State<Rooms>, Path(provider): Path<String>, form: Bytes) -> Response {
    match rooms.linking.takes_form_posts(provider).await {
        Ok(true) => {}
        Ok(false) => return ([(header::ALLOW, "GET,HEAD")], page::method_not_allowed()).into_response(),
        Err(failure) => {
            log(&failure);
            return page::failed(&failure);
        }
    }
    // What stands twice still does, so that it is judged as in a query.
    let known = url::form_urlencoded::parse(&form).filter(|(key, _)| PARAMETERS.contains(&&**key));
    let query = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(known).finish();
    page::go_on(&query)
}

fn log(failure: &Failure) {
    let reason = failure.meaning().reason;
    match failure.meaning().kind.level() {
        Level::Error => tracing::error!(reason, "a callback could not be taken"),
        Level::Info => tracing::info!(reason, "a callback could not be taken"),
        Level::Debug => tracing::debug!(reason, "a callback could not be taken"),
    }
}

/// Reads the query. A parameter that stands twice is not a parameter: the flow is burned for it, or not found.
fn read(provider: String, query: &str) -> Callback {
    let query = if query.len() > LONGEST_QUERY { "" } else { query };
    let all = |wanted: &'static str| {
        let values = url::form_urlencoded::parse(query.as_bytes()).filter(move |(key, _)| key == wanted);
        values.map(|(_, value)| value.into_owned())
    };
    let once = |wanted| {
        let mut values = all(wanted);
        values.next().filter(|_| values.next().is_none())
    };
    Callback {
        provider,
        state: once("state").map(FlowState::new),
        code: once("code").map(AuthorizationCode::new),
        // An error beside a code burns the flow, and so does one that stands twice.
        error: all("error").next(),
        issuer: once("iss"),
    }
}

/// 303, so that the browser asks by GET and never repeats this request's method.
fn see_other(url: &str) -> Response {
    match HeaderValue::from_str(url) {
        Ok(location) => (StatusCode::SEE_OTHER, [(header::LOCATION, location)]).into_response(),
        Err(_) => page::failed(&Failure::Internal),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_counts_only_if_it_stands_once() {
        let callback = read("sandbox".into(), "state=s&code=a&code=b&iss=http%3A%2F%2Fi");
        assert_eq!(callback.state.map(|state| state.expose().to_owned()), Some("s".into()));
        assert!(callback.code.is_none());
        assert_eq!(callback.issuer.as_deref(), Some("http://i"));
        assert!(
            read("sandbox".into(), "code=a&error=x&error=y").error.is_some(),
            "an error counts however often it stands"
        );
        assert!(read("sandbox".into(), &format!("state={}", "s".repeat(LONGEST_QUERY))).state.is_none());
    }
}
