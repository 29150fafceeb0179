//! Pages: plain HTML with one style, no scripts. Whatever is shown is escaped.

use std::fmt::Write as _;
use std::sync::LazyLock;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use data_encoding::BASE64;
use sha2::{Digest as _, Sha256};

use crate::domain::error::Failure;
use crate::domain::reason::{Meaning, Page};

const STYLE: &str = "\
:root{color-scheme:light dark;font:16px/1.5 system-ui,sans-serif}\
body{max-width:40rem;margin:12vh auto;padding:0 1.25rem}\
h1{font-size:1.4rem}\
pre{padding:1rem;border:1px solid color-mix(in srgb,currentColor 25%,transparent);border-radius:.5rem;\
white-space:pre-wrap;overflow-wrap:anywhere}";

/// Allows the one style above and nothing else.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let style = BASE64.encode(&Sha256::digest(STYLE.as_bytes()));
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{style}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    HeaderValue::try_from(policy).unwrap_or(HeaderValue::from_static("default-src 'none'"))
});

pub(super) fn content_security_policy() -> HeaderValue {
    POLICY.clone()
}

/// The end of a flow without a redirect URL, in development: shows the call that completes it.
pub(super) fn finished(grpc: &str, flow: &str, ticket: &str) -> Response {
    let call = format!(
        "grpcurl -plaintext -H \"authorization: Bearer $TOKEN_WALLET_API_KEY\" \\\n  \
         -d '{{\"user_id\": \"THE USER\", \"ticket\": \"{ticket}\"}}' \\\n  \
         {grpc} tokenwallet.v1.ExternalAccountService/CompleteLink"
    );
    let body = format!(
        "<h1>One call to go</h1><p>The provider said yes. Flow <code>{}</code> is complete when the service that \
         started it makes this call, within a minute, for the user that it started it for:</p><pre>{}</pre>\
         <p>Set <code>TOKEN_WALLET_API_KEY</code> to the API key of that service (<code>token-wallet dev</code> prints \
         its own), and put that user in for <code>THE USER</code> before the call: a call for anybody else ends the \
         flow.</p><p>A flow that is given a redirect URL ends there instead, with the ticket.</p>",
        escape(flow),
        escape(&call)
    );
    page(StatusCode::OK, "One call to go", &body)
}

/// What a person reads of a failure.
pub(super) fn failed(failure: &Failure) -> Response {
    let Meaning { kind, page, .. } = failure.meaning();
    let status = StatusCode::from_u16(kind.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    message(status, *page)
}

/// Goes on at this page's own address by GET, with this query.
pub(super) fn go_on(query: &str) -> Response {
    let query = escape(query);
    let head = format!("<meta http-equiv=\"refresh\" content=\"0;url=?{query}\">");
    let body = format!("<h1>One moment</h1><p>If nothing happens, <a href=\"?{query}\">go on</a>.</p>");
    html(StatusCode::OK, "One moment", &head, &body)
}

/// Whatever is wrong with a state: one and the same page.
pub(super) fn bad_callback() -> Response {
    message(
        StatusCode::BAD_REQUEST,
        Page {
            title: "This link cannot be used",
            sentence: "This link is not valid, or not any more.",
            next: "Go back to the application and start again.",
        },
    )
}

/// No page has this address.
pub(super) fn not_found() -> Response {
    message(
        StatusCode::NOT_FOUND,
        Page {
            title: "Nothing here",
            sentence: "There is no page at this address.",
            next: "Go back to the application that you came from.",
        },
    )
}

/// The page is there, but not to be asked for like this.
pub(super) fn method_not_allowed() -> Response {
    message(
        StatusCode::METHOD_NOT_ALLOWED,
        Page {
            title: "Not like this",
            sentence: "This page cannot be asked for in this way.",
            next: "Go back to the application that you came from.",
        },
    )
}

fn message(status: StatusCode, Page { title, sentence, next }: Page) -> Response {
    let (sentence, next) = (escape(sentence), escape(next));
    page(status, title, &format!("<h1>{}</h1><p>{sentence}</p><p>{next}</p>", escape(title)))
}

fn page(status: StatusCode, title: &str, body: &str) -> Response {
    html(status, title, "", body)
}

fn html(status: StatusCode, title: &str, head: &str, body: &str) -> Response {
    let html = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <meta name=\"color-scheme\" content=\"light dark\"><title>{}</title>{head}<style>{STYLE}</style></head>\
         <body><main>{body}</main></body></html>",
        escape(title)
    );
    (status, [(header::CONTENT_TYPE, "text/html; charset=utf-8")], html).into_response()
}

fn escape(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut html, character| {
        match character {
            '<' | '>' | '&' | '"' | '\'' => {
                // Writing to a string does not fail.
                let _ = write!(html, "&#{};", u32::from(character));
            }
            plain => html.push(plain),
        }
        html
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_escaped() {
        assert_eq!(escape("<b a='\"'>&"), "&#60;b a=&#39;&#34;&#39;&#62;&#38;");
    }

    async fn html(page: Response) -> String {
        let body = axum::body::to_bytes(page.into_body(), 1 << 16).await.unwrap();
        String::from_utf8(body.to_vec()).unwrap()
    }

    #[tokio::test]
    async fn what_a_flow_brings_cannot_become_markup() {
        let evil = "</code></pre><script>alert('x')</script>\"&";
        let page = html(finished(evil, evil, evil)).await;
        assert!(!page.contains("<script") && page.matches("&#60;script&#62;").count() == 3, "{page}");
    }

    #[tokio::test]
    async fn every_reason_has_a_page_that_says_what_to_do_next() {
        use std::time::Duration;
        let retry_after = Duration::from_secs(1);
        for (failure, status, told) in [
            (Failure::FlowCancelled, 400, "was not given"),
            (Failure::FlowSessionMismatch { stolen: true }, 403, "start again"),
            (Failure::AccountLinkedToAnotherUser, 409, "by another user"),
            (Failure::RedirectUrlNotAllowed, 400, "may not be returned to"),
            (Failure::ProviderUnavailable { retry_after }, 503, "Reload this page"),
            (Failure::StoreUnavailable, 503, "Reload this page"),
            (Failure::Internal, 500, "on our side"),
        ] {
            let page = failed(&failure);
            assert_eq!(page.status().as_u16(), status, "{failure}");
            let html = html(page).await;
            assert!(html.contains(told) && html.starts_with("<!doctype html><html lang=\"en\">"), "{failure}: {html}");
        }
        for meaning in Failure::MEANINGS {
            let (status, Page { title, sentence, next }) = (meaning.kind.http_status(), meaning.page);
            assert!(
                StatusCode::from_u16(status).is_ok_and(|status| status.is_client_error() || status.is_server_error())
            );
            assert!([title, sentence, next].iter().all(|text| !text.is_empty()), "{}", meaning.reason);
        }
    }
}
