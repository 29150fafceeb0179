//! The pages for people: plain HTML, one style sheet inside, no script.

use std::fmt::Write as _;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use data_encoding::BASE64;
use sha2::{Digest as _, Sha256};

use super::authorize::Ask;
use super::options::Person;
use super::params::Params;

const STYLE: &str = "\
:root{color-scheme:light dark;--back:#f4f4f1;--card:#fff;--ink:#1c1c1a;--soft:#5d5d57;--line:#d9d9d3;--main:#1f5fbf;\
--on:#fff;--note:#fff3cd;--noteink:#5c4700}\
@media(prefers-color-scheme:dark){:root{--back:#161615;--card:#212120;--ink:#ededea;--soft:#a9a9a2;--line:#3b3b38;\
--main:#8ab4f8;--on:#10141c;--note:#3a3011;--noteink:#f5dc8f}}\
*{box-sizing:border-box}\
body{margin:0;padding:6vh 1rem;background:var(--back);color:var(--ink);font:1rem/1.5 system-ui,sans-serif}\
main{max-width:27rem;margin:0 auto;padding:1.75rem;background:var(--card);border:1px solid var(--line);\
border-radius:.75rem}\
h1{margin:0 0 1rem;font-size:1.35rem;line-height:1.3;overflow-wrap:anywhere}\
p,ul{margin:0 0 1rem}\
main>:last-child{margin-bottom:0}\
.note{margin:-1.75rem -1.75rem 1.5rem;padding:.7rem 1.75rem;border-radius:.7rem .7rem 0 0;background:var(--note);\
color:var(--noteink);font-size:.9rem}\
ul{padding-left:1.25rem}\
code{overflow-wrap:anywhere}\
fieldset{margin:0 0 1.25rem;padding:0;border:0}\
legend{margin-bottom:.5rem;font-weight:600}\
label{display:flex;gap:.75rem;align-items:center;padding:.6rem .75rem;border:1px solid var(--line);cursor:pointer}\
label:first-of-type{border-radius:.5rem .5rem 0 0}\
label:last-of-type{border-radius:0 0 .5rem .5rem}\
label+label{border-top:0}\
small{display:block;color:var(--soft);overflow-wrap:anywhere}\
.soft{color:var(--soft);font-size:.9rem}\
.row{display:flex;gap:.75rem;margin-bottom:1.25rem}\
button{flex:1;padding:.7rem;border:1px solid var(--line);border-radius:.5rem;background:transparent;color:inherit;\
font:inherit;font-weight:600;cursor:pointer}\
button.main{border-color:var(--main);background:var(--main);color:var(--on)}\
:focus-visible{outline:3px solid var(--main);outline-offset:2px}";

const NOTE: &str = "<p class=\"note\"><strong>Sandbox.</strong> This is a test provider. The people are made up and \
    nobody is asked for a password.</p>";

/// The page that asks for consent. Its form posts every parameter of the request back.
pub(super) fn consent(ask: &Ask<'_>, people: &[Person], params: &Params) -> Response {
    let client = escape(&ask.client.id);
    let mut body = format!("<h1>Let “{client}” act for you?</h1>");
    let scopes: String = ask.scopes.iter().map(meaning).collect();
    if !scopes.is_empty() {
        let _ = write!(body, "<p>It asks to:</p><ul>{scopes}</ul>");
    }
    body.push_str("<form method=\"post\" action=\"authorize\">");
    for (name, value) in params.iter() {
        let _ = write!(body, "<input type=\"hidden\" name=\"{}\" value=\"{}\">", escape(name), escape(value));
    }
    body.push_str("<fieldset><legend>Who are you?</legend>");
    for person in people {
        let checked = if person.username == ask.person.username { " checked" } else { "" };
        let _ = write!(
            body,
            "<label><input type=\"radio\" name=\"person\" value=\"{}\"{checked} required><span>{}<small>{}</small>\
             </span></label>",
            escape(&person.username),
            escape(&person.name),
            escape(&person.email)
        );
    }
    let _ = write!(
        body,
        "</fieldset><div class=\"row\"><button name=\"decision\" value=\"cancel\">Cancel</button>\
         <button class=\"main\" name=\"decision\" value=\"approve\">Approve</button></div></form>\
         <p class=\"soft\">Either way you go back to <code>{}</code>.</p>",
        escape(&ask.destination())
    );
    html(StatusCode::OK, "Approve access", &body)
}

/// The page whose form takes the answer to the client (OAuth 2.0 Form Post Response Mode), at the press of a button.
pub(super) fn post_back<'a>(to: &url::Url, told: impl Iterator<Item = (&'a str, &'a str)>) -> Response {
    let mut body = format!("<h1>Back to the application</h1><form method=\"post\" action=\"{}\">", escape(to.as_str()));
    for (name, value) in told {
        let _ = write!(body, "<input type=\"hidden\" name=\"{}\" value=\"{}\">", escape(name), escape(value));
    }
    body.push_str("<button class=\"main\">Go on</button></form>");
    html(StatusCode::OK, "Back to the application", &body)
}

/// The page of a request that cannot be answered by a redirect.
pub(super) fn problem(status: StatusCode, why: &str) -> Response {
    let body = format!(
        "<h1>This request cannot go on</h1><p>The application that sent you here made a mistake: {}.</p>\
         <p class=\"soft\">Nothing was approved. You can close this page.</p>",
        escape(why)
    );
    html(status, "Request refused", &body)
}

/// The page at the root: what this is and where to point a client.
pub(super) fn home(issuer: &str) -> Response {
    let issuer = escape(issuer);
    let body = format!(
        "<h1>An OAuth provider for tests</h1><p>Point a client at the issuer <code>{issuer}</code>; everything else is \
         in its <a href=\".well-known/openid-configuration\">metadata</a>.</p>\
         <p>What was asked so far: <a href=\"_sandbox/requests\">requests</a>. How it behaves: \
         <a href=\"_sandbox/settings\">settings</a>, <a href=\"_sandbox/faults\">faults</a>.</p>"
    );
    html(StatusCode::OK, "OAuth sandbox", &body)
}

/// One scope as a list item, in words where it has a meaning here.
fn meaning(scope: &str) -> String {
    match scope {
        "openid" => "<li>know which account this is</li>".into(),
        "profile" => "<li>see your name</li>".into(),
        "email" => "<li>see your e-mail address</li>".into(),
        "offline_access" => "<li>keep access while you are away</li>".into(),
        other => format!("<li><code>{}</code></li>", escape(other)),
    }
}

/// No `form-action`: browsers apply it to the redirects after the form too, and those lead to the client.
fn html(status: StatusCode, title: &str, body: &str) -> Response {
    let style = BASE64.encode(&Sha256::digest(STYLE.as_bytes()));
    let policy = format!("default-src 'none'; style-src 'sha256-{style}'; base-uri 'none'; frame-ancestors 'none'");
    let page = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title} (sandbox)</title>\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><style>{STYLE}</style></head>\
         <body><main>{NOTE}{body}</main></body></html>"
    );
    let mut response = (status, page).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Ok(policy) = HeaderValue::from_str(&policy) {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    response
}

fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            other => safe.push(other),
        }
    }
    safe
}
